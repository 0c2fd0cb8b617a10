"""The FAQ answerer: what it matches, what it doesn't, and what it says about a bad file."""

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pushsse.errors import SettingsError
from pushsse.questions import Answered, Question
from pushsse.questions.answerers import Delta, NotSure, faq
from pushsse.questions.answerers.faq import Wording
from tests.questions.conftest import NoAnswers, running
from tests.waiting import eventually

SHIPPED = faq.load("")
GOOD = """
[nothing]
en = "Sorry."
[[entry]]
id = "hours"
[entry.en]
ask = ["When are you open?"]
answer = "From nine to five."
"""


def wording(text: str) -> Wording:
    found = SHIPPED.match(text)
    assert isinstance(found, Wording), found
    return found


def question(text: str) -> Question:
    now = datetime.now(UTC)
    return Question(
        id="Q",
        user="ann",
        conversation="c",
        text=text,
        status="answering",
        asked_at=now,
        updated_at=now,
        deadline_at=now,
    )


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("How do I switch an event type off?", "How do I switch an event type off?"),
        ("how do i SWITCH an event type off", "How do I switch an event type off?"),
        ("please tell me how to turn off an event type", "How do I switch an event type off?"),
        ("swich an event typ off", "How do I switch an event type off?"),
        ("How do I switch an event type on?", "How do I switch an event type on again?"),
        ("turn on an event type", "How do I switch an event type on again?"),
        ("what types of events are there", "Which event types are there?"),
        ("why don't I get events?", "Why did I not get an event?"),
        ("my token expired, what now?", "Why does my stream end with token_expired?"),
        ("What happens when I'm offline?", "What happens while I am offline?"),
        ("怎么关闭一种事件类型？", "怎么关闭一种事件类型？"),
        ("如何关闭事件类型", "怎么关闭一种事件类型？"),
        ("请问怎么关掉通知？", "怎么关闭一种事件类型？"),
        ("怎么打开事件类型", "怎么重新打开一种事件类型？"),
        ("收不到消息", "为什么我没有收到事件？"),
        ("可以取消提问吗", "怎么取消提问？"),
    ],
)
def test_a_question_in_other_words_is_recognised(asked: str, first: str) -> None:
    assert wording(asked).ask[0] == first


@pytest.mark.parametrize("phrasing", SHIPPED.phrasings, ids=lambda phrasing: phrasing.text)
def test_every_phrasing_of_the_shipped_file_leads_to_its_own_answer(phrasing: faq.Phrasing) -> None:
    for ask in phrasing.wording.ask:
        assert wording(ask) is phrasing.wording


@pytest.mark.parametrize(
    "asked",
    [
        "What is the weather tomorrow?",
        "How do I bake bread?",
        "asdf qwer zxcv",
        "Where is my order?",
        "How do I switch my phone off?",
        "?",
    ],
)
def test_nonsense_gets_suggestions_in_english(asked: str) -> None:
    found = SHIPPED.match(asked)
    assert isinstance(found, Answered)
    assert found.text == SHIPPED.nothing["en"]
    assert len(found.suggestions) == 3
    assert all(suggestion.isascii() for suggestion in found.suggestions)


@pytest.mark.parametrize("asked", ["今天天气怎么样", "怎么做红烧肉", "我的订单在哪里", "啊啊啊啊"])
def test_nonsense_gets_suggestions_in_chinese(asked: str) -> None:
    found = SHIPPED.match(asked)
    assert isinstance(found, Answered)
    assert found.text == SHIPPED.nothing["zh"]
    assert len(found.suggestions) == 3
    assert not any(suggestion.isascii() for suggestion in found.suggestions)


def test_every_entry_of_the_shipped_file_is_in_both_languages() -> None:
    languages = [phrasing.language for phrasing in SHIPPED.phrasings]
    english = {phrasing.wording for phrasing in SHIPPED.phrasings if phrasing.language == "en"}
    assert set(languages) == {"en", "zh"}
    assert len(english) >= 12
    assert len(english) * 2 == len({phrasing.wording for phrasing in SHIPPED.phrasings})


@pytest.mark.anyio
@pytest.mark.parametrize("asked", ["How do I switch an event type off?", "怎么关闭事件类型"])
async def test_the_answer_comes_sentence_by_sentence(asked: str) -> None:
    quick = replace(SHIPPED, pace_s=0)
    *deltas, last = [piece async for piece in quick.answer(question(asked))]
    assert isinstance(last, Answered)
    assert (last.by.kind, last.by.name) == ("bot", "faq")
    texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert len(texts) == len(deltas)
    assert "".join(texts) == last.text
    assert len(texts) >= 2


@pytest.mark.anyio
async def test_where_nothing_fits_it_isnt_sure_and_has_suggestions() -> None:
    (last,) = [piece async for piece in SHIPPED.answer(question("bread?"))]
    assert isinstance(last, NotSure)
    assert last.instead == SHIPPED.match("bread?")


def answer_to(asked: str, answerer: faq.FaqAnswerer) -> str:
    found = answerer.faq.match(asked)
    assert isinstance(found, Wording)
    return found.answer


@pytest.mark.anyio
async def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "faq.toml"
    path.write_text(GOOD, encoding="utf-8")
    answerer = faq.FaqAnswerer(path, "here", look_s=0.01)
    async with running(answerer.run(NoAnswers())):
        assert answer_to("When are you open?", answerer) == "From nine to five."
        path.write_text(GOOD.replace("nine", "ten"), encoding="utf-8")
        await eventually(lambda: answer_to("When are you open?", answerer) == "From ten to five.")
        # As editors and orchestrators do it: another file takes the name.
        other = tmp_path / "other.toml"
        other.write_text(GOOD.replace("nine", "two"), encoding="utf-8")
        other.replace(path)
        await eventually(lambda: answer_to("When are you open?", answerer) == "From two to five.")


@pytest.mark.anyio
async def test_a_bad_file_is_told_once_and_the_old_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "faq.toml"
    path.write_text(GOOD, encoding="utf-8")
    answerer = faq.FaqAnswerer(path, "here", look_s=0.01)
    async with running(answerer.run(NoAnswers())):
        bad = tmp_path / "bad.toml"
        bad.write_text("[nothing", encoding="utf-8")
        # At once: a half-written file would be told by itself.
        for spoil, word in ((lambda: bad.replace(path), "declaration"), (path.unlink, "No such")):
            caplog.clear()
            spoil()
            await eventually(lambda: caplog.messages)
            assert answer_to("When are you open?", answerer) == "From nine to five."
            # Longer than many looks.
            await asyncio.sleep(0.2)
            (message,) = caplog.messages
            assert word in message
        path.write_text(GOOD.replace("nine", "ten"), encoding="utf-8")
        await eventually(lambda: answer_to("When are you open?", answerer) == "From ten to five.")


def test_a_file_may_be_toml_or_json(tmp_path: Path) -> None:
    toml, other = tmp_path / "faq.toml", tmp_path / "faq.json"
    toml.write_text(GOOD, encoding="utf-8")
    entry = {"id": "hours", "en": {"ask": ["When are you open?"], "answer": "From nine to five."}}
    other.write_text(json.dumps({"nothing": {"en": "Sorry."}, "entry": [entry]}), encoding="utf-8")
    for path in (toml, other):
        found = faq.load(str(path)).match("when are you open")
        assert isinstance(found, Wording)
        assert found.answer == "From nine to five."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace('answer = "From nine to five."', ""), "entry hours: en: .*answer.*required"),
        (GOOD.replace("ask = [", "asks = ["), "entry hours: en"),
        (GOOD.replace('["When are you open?"]', "[]"), r"entry hours: en: \$.ask"),
        (GOOD.replace("[entry.en]", "[entry.de]"), "entry hours: .*'de'"),
        (GOOD.replace("[nothing]", "[nothing"), "line 2"),
        ("[nothing]\nen = 'x'\n", r"\$.entry"),
        ("[nothing]\nen = 'x'\n[[entry]]\n", "entry number 1: has no language"),
        ("", "nothing"),
    ],
)
def test_a_bad_file_is_named_with_its_entry(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "faq.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=f"PUSHSSE_ANSWERER: {path}.*{says}"):
        faq.load(str(path))


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"PUSHSSE_ANSWERER: /nowhere\.toml: No such file"):
        faq.load("/nowhere.toml")
    path = tmp_path / "faq.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="PUSHSSE_ANSWERER"):
        faq.load(str(path))


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_largest_file_is_read_again_while_the_loop_goes_on(tmp_path: Path) -> None:
    words = [f"{a}{b}{c}" for a in "bdfglmnp" for b in ("ar", "en", "ol") for c in ("and", "eck", "out")]
    asks = [
        [" ".join(words[(at * step) % 72] for step in range(1, 9)) for at in range(first, first + 4)]
        for first in range(0, 20_000, 4)
    ]
    entry = [{"id": str(at), "en": {"ask": ask, "answer": "x" * 400}} for at, ask in enumerate(asks)]
    path = tmp_path / "faq.json"
    path.write_text(json.dumps({"nothing": {"en": "Sorry."}, "entry": entry}), encoding="utf-8")
    assert path.stat().st_size > 3_000_000
    answerer = faq.FaqAnswerer(path, "here", look_s=0.01)
    before = answerer.faq.nothing
    longest_s = 0.0
    async with running(answerer.run(NoAnswers())):
        path.write_text(path.read_text(encoding="utf-8").replace("Sorry.", "Sorry!"), encoding="utf-8")
        while answerer.faq.nothing == before:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.thread_time() - began)
    # Of this thread's own time: the machine may do other work.
    assert longest_s < 0.15
