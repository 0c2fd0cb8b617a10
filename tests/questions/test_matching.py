"""How well the shipped file answers what people ask, measured; and what a question may cost."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pushsse.questions.answerers import faq
from pushsse.questions.answerers.faq import Matcher, Wording, folded, is_answer

SHIPPED = faq.load("")
ASKED: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("asked.toml").read_text("utf-8"))
_FILE = tomllib.loads(faq.SHIPPED.read_text("utf-8"))
_IDS = {
    wording["answer"]: entry["id"]
    for entry in _FILE["entry"]
    for language, wording in entry.items()
    if language != "id"
}


def answered_by(text: str) -> str:
    """The id of the entry that answers; "" where suggestions do."""
    found = SHIPPED.match(text)
    return _IDS[found.answer] if isinstance(found, Wording) else ""


@pytest.mark.parametrize("halves", [("tuned",), ("held",), ("tuned", "held")])
def test_of_what_has_an_answer_nine_in_ten_get_it(halves: tuple[str, ...]) -> None:
    wanted = {text: entry for half in halves for text, entry in ASKED[half].items() if entry}
    wrong = {text: answered_by(text) for text, entry in wanted.items() if answered_by(text) != entry}
    assert len(wrong) <= 0.1 * len(wanted), wrong
    # Suggestions are no answer, but no wrong one either.
    assert sum(1 for entry in wrong.values() if entry) <= 0.05 * len(wanted), wrong


def test_of_what_has_none_one_in_twenty_is_answered() -> None:
    without = [text for half in ASKED.values() for text, entry in half.items() if not entry]
    wrong = [text for text in without if answered_by(text)]
    assert len(wrong) <= 0.05 * len(without), wrong


def test_the_list_is_what_it_says() -> None:
    questions = [text for half in ASKED.values() for text in half]
    assert len(set(questions)) == 60
    assert sum(1 for half in ASKED.values() for entry in half.values() if not entry) == 20
    assert {entry for half in ASKED.values() for entry in half.values()} - {""} <= set(_IDS.values())


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("如何关闭某种消息的推送?", "switch-off"),
        ("如何關閉某種訊息的推播？", "switch-off"),
        ("ＰＵＳＨ推送怎么关", "switch-off"),
        ("push推送怎么关", "switch-off"),
        ("关闭通知怎么弄", "switch-off"),
        ("How do I turn of notifcations?", "switch-off"),
        ("notifications, how to swtich them off", "switch-off"),
        ("Dear team, I like your service. How do I turn off notifications? Kind regards", "switch-off"),
        ("你好，我用了很多年了，一直都很满意。请问怎么关闭通知？谢谢", "switch-off"),
        ("怎么用 EventSource 连接？", "connect"),
    ],
)  # fmt: skip
def test_spelling_width_script_and_order_are_free(text: str, entry: str) -> None:
    assert answered_by(text) == entry


def test_the_answer_is_in_the_language_of_the_question() -> None:
    for text, language in (("push 推送怎么关", "zh"), ("How do I turn 推送 notifications off?", "en")):
        found = SHIPPED.match(text)
        assert isinstance(found, Wording)
        assert found in {phrasing.wording for phrasing in SHIPPED.phrasings if phrasing.language == language}


def test_two_entries_that_are_as_close_are_a_choice() -> None:
    matcher = Matcher(["open the red door", "open the blue door"], [0, 1])
    found = matcher.closest("open a door")
    assert len(found) == 2
    assert not is_answer(found)
    assert is_answer(matcher.closest("open the red door"))


def test_folding() -> None:
    assert folded("Ｃａｎ't  I，關閉？") == "not i 关闭"
    assert folded("The event I want; I DON’T, dont") == "the event i want i not not"


def steps_of(act: Callable[[], object]) -> int:
    """How many lines of Python it takes, in all functions: the same on any machine."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def large() -> Matcher:
    """5,000 entries with the words of one: everything that is asked is in many of them."""
    words = sorted({word for phrasing in SHIPPED.phrasings for word in phrasing.text.split()})
    han = "".join(
        sorted({each for phrasing in SHIPPED.phrasings for each in phrasing.text if each > "\u3000"})
    )
    phrasings, entries = [], []
    for entry in range(5_000):
        for number in (entry * 2, entry * 2 + 1):
            at, step = number % 97, 1 + number % 13
            english = " ".join(words[(at + step * place) % len(words)] for place in range(10))
            chinese = "".join(han[(at + step * place) % len(han)] for place in range(20))
            phrasings.append(english if entry % 2 else chinese)
            entries.append(entry)
    return Matcher(phrasings, entries)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(phrasing.text for phrasing in SHIPPED.phrasings if phrasing.language == "en")[:8000],
        "".join(phrasing.text for phrasing in SHIPPED.phrasings if phrasing.language == "zh") * 4,
        "怎么关闭通知？" * 1000,
        "turn off? " * 800,
        "x" * 8000,
        "?" * 8000,
        "n't " * 2000,
        " ".join(f"notification{number}" for number in range(400)),
    ],
)
def test_the_work_for_a_question_is_bounded(large: Matcher, text: str) -> None:
    # 15 lines of Python are about a microsecond: this is well below 20 ms, for the longest and for any file.
    assert steps_of(lambda: large.closest(text[:8000])) < 60_000
