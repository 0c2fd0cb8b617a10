"""The protocols of front ends byte by byte; `tests/deployed/test_front_ends.py` has their own clients."""

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from pushsse.api.agui import AguiTeller, RunRequest
from pushsse.api.chat import ChatTeller
from pushsse.api.completions import CompletionTeller
from pushsse.api.front_ends import continued
from pushsse.questions import DataPart, Question, SourcePart, StatusPart
from pushsse.questions.following import Grown, Idle, Parted, QuestionEnded, Restarted, Update
from pushsse.questions.service import Desk, Said
from pushsse.strictjson import peek
from tests.questions.conftest import Nodes
from tests.questions.front import Front, fronts
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
# What a client has of an answer that it has stopped reading.
PARTIAL: list[Any] = ["one ", "on", "", None, []]
ANN, BO = {"user": "ann"}, {"user": "bo"}


@pytest.fixture
async def front(nodes: Nodes) -> AsyncIterator[Front]:
    async with fronts(nodes) as found:
        yield found


def chat(text: str, *, chat_id: str = "chat-1", message: str = "m-1", **more: Any) -> dict[str, Any]:
    said = {"id": message, "role": "user", "parts": [{"type": "text", "text": text}]}
    return {"id": chat_id, "trigger": "submit-message", "messages": [said], **more}


def run(text: str, *, thread: str = "thread-1", run_id: str = "run-1", **more: Any) -> dict[str, Any]:
    said = {"id": "m-1", "role": "user", "content": text}
    empty: dict[str, Any] = {"state": {}, "tools": [], "context": [], "forwardedProps": {}}
    return {"threadId": thread, "runId": run_id, "messages": [said], **empty, **more}


def completion(text: object, **more: Any) -> dict[str, Any]:
    return {"model": "pushsse", "messages": [{"role": "user", "content": text}], **more}


BODIES: dict[str, Any] = {"/v1/chat": chat, "/v1/agui": run, "/v1/chat/completions": completion}


def frames(body: str) -> list[Any]:
    """The data of each event; a stream has nothing else but comments."""
    assert "\r" not in body
    found = []
    for block in body.split("\n\n")[:-1]:
        if not block.startswith(":"):
            assert block.startswith("data: "), block
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


async def ask(front: Front, path: str, body: object, *, user: str = "ann") -> httpx.Response:
    return await front.http.post(path, params={"user": user}, json=body)


async def told(front: Front, path: str, body: object, **params: str) -> list[Any]:
    reply = await front.http.post(path, params={**ANN, **params}, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return frames(reply.text)


async def open_questions(front: Front, user: str = "ann") -> list[Question]:
    return [each for each in await front.nodes[0].service.page(user, limit=20) if each.is_open]


async def test_a_chat_s_answer_has_these_chunks_and_no_member_more(front: Front) -> None:
    reply = await ask(front, "/v1/chat", chat("+one +two +rich"))
    assert reply.headers["x-vercel-ai-ui-message-stream"] == "v1"
    found = frames(reply.text)
    question = (await front.nodes[0].service.page("ann", limit=1))[0]
    deltas = [each["delta"] for each in found[:-1] if each["type"] == "text-delta"]
    assert "".join(deltas) == "one two rich "
    assert [each for each in found if not isinstance(each, dict) or each["type"] != "text-delta"] == [
        {"type": "start", "messageId": question.id},
        {"type": "start-step"},
        {"type": "text-start", "id": "text"},
        *[each for each in found[:-1] if each.get("url") == "https://example.com/terms"],
        {"type": "text-end", "id": "text"},
        *[each for each in found[:-1] if each.get("url") == "/refunds"],
        *[each for each in found[:-1] if each["type"] == "data-suggestions"],
        {"type": "finish-step"},
        {"type": "finish"},
        "[DONE]",
    ]
    known = {
        "start": {"type", "messageId"},
        "text-start": {"type", "id"},
        "text-delta": {"type", "id", "delta"},
        "text-end": {"type", "id"},
        "source-url": {"type", "sourceId", "url", "title"},
        "data-suggestions": {"type", "id", "data"},
    }
    for each in found[:-1]:
        assert set(each) == known.get(each["type"], {"type"})


async def test_a_chat_resumes_from_its_beginning_under_the_same_id_and_stops(front: Front) -> None:
    asking = asyncio.create_task(ask(front, "/v1/chat", chat("+one @more +two")))
    await eventually(lambda: open_questions(front))
    async with front.http.stream("GET", "/v1/chat/chat-1/stream", params=ANN) as resumed:
        assert resumed.status_code == 200
        front.gates.open["more"].set()
        second = frames((await resumed.aread()).decode())
    first = frames((await asking).text)
    assert first[0] == second[0]
    for told_so in (first, second):
        deltas = [each["delta"] for each in told_so[:-1] if each["type"] == "text-delta"]
        assert "".join(deltas) == "one two "
    assert (await front.http.get("/v1/chat/chat-1/stream", params=ANN)).status_code == 204
    asking = asyncio.create_task(ask(front, "/v1/chat", chat("+one @never", message="m-2")))
    await eventually(lambda: open_questions(front))
    assert (await front.http.post("/v1/chat/chat-1/stop", params=ANN)).status_code == 204
    assert frames((await asking).text)[-2:] == [{"type": "abort"}, "[DONE]"]


async def test_the_same_message_is_asked_once_and_an_edited_one_again(front: Front) -> None:
    first = await told(front, "/v1/chat", chat("+one"))
    assert (await told(front, "/v1/chat", chat("+one")))[0] == first[0]
    edited = await told(front, "/v1/chat", chat("+other"))
    assert edited[0] != first[0]
    # As `sendMessage()` without a message sends it once more.
    assert (await told(front, "/v1/chat", chat("+one", messageId="m-1")))[0] == first[0]


async def test_an_answer_is_made_again_under_the_same_id(front: Front) -> None:
    first = await told(front, "/v1/chat", chat("+one || +anew"))
    body = chat("", trigger="regenerate-message", messageId=first[0]["messageId"])
    again = await told(front, "/v1/chat", body)
    assert again[0] == first[0]
    assert {"type": "text-delta", "id": "text", "delta": "anew "} in again
    last = await told(front, "/v1/chat", chat("", trigger="regenerate-message"))
    assert last[0] == first[0]
    for odd in ("a\x00", "a b", ""):
        none = await ask(front, "/v1/chat", chat("", trigger="regenerate-message", chat_id=odd))
        assert none.status_code == 404
    none = await ask(front, "/v1/chat", chat("", trigger="regenerate-message", chat_id="other"))
    assert none.status_code == 404


@pytest.mark.parametrize("how", ["loaded", "sent", "sent with another context"])
async def test_the_question_whose_message_is_named_is_answered_again_and_no_other(
    front: Front, how: str
) -> None:
    first = await told(front, "/v1/chat", chat("+one || +anew"))
    running = asyncio.create_task(ask(front, "/v1/chat", chat("+two @go", message="m-2")))
    await eventually(lambda: open_questions(front))
    name = f"{first[0]['messageId']}.question" if how == "loaded" else "m-1"
    more: dict[str, Any] = {"context": {"page": 2}} if how.endswith("context") else {}
    body = chat("+one || +anew", message=name, trigger="regenerate-message", messageId=name, **more)
    again = await told(front, "/v1/chat", body)
    assert again[0] == first[0]
    assert {"type": "text-delta", "id": "text", "delta": "anew "} in again
    # Nothing else was stopped.
    assert len(await open_questions(front)) == 1
    front.gates.open["go"].set()
    await running


@pytest.mark.parametrize("text", ["", "+unknown"])
async def test_a_named_message_that_was_never_asked_is_not_found_and_stops_nothing(
    front: Front, text: str
) -> None:
    running = asyncio.create_task(ask(front, "/v1/chat", chat("+two @go")))
    await eventually(lambda: open_questions(front))
    body = chat(text, message="m-9", trigger="regenerate-message", messageId="m-9")
    reply = await ask(front, "/v1/chat", body)
    assert reply.status_code == 404
    assert len(await open_questions(front)) == 1
    front.gates.open["go"].set()
    await running


async def test_a_chat_s_messages_are_those_of_the_server_without_what_is_running(front: Front) -> None:
    assert (await front.http.get("/v1/chat/chat-1/messages", params=ANN)).json()["messages"] == []
    await told(front, "/v1/chat", chat("+one +rich"))
    running = asyncio.create_task(ask(front, "/v1/chat", chat("+two @go", message="m-2")))
    await eventually(lambda: open_questions(front))
    found = (await front.http.get("/v1/chat/chat-1/messages", params=ANN)).json()
    assert [(each["role"], each["parts"][0]["text"]) for each in found["messages"]] == [
        ("user", "+one +rich"),
        ("assistant", "one rich "),
        ("user", "+two @go"),
    ]
    kinds = [part["type"] for part in found["messages"][1]["parts"]]
    assert kinds == ["text", "source-url", "source-url", "data-suggestions"]
    assert found["more"] is False
    page = (await front.http.get("/v1/chat/chat-1/messages", params={**ANN, "limit": "1"})).json()
    assert [each["role"] for each in page["messages"]] == ["user"]
    assert page["more"] is True
    older = {**ANN, "before": page["before"]}
    rest = (await front.http.get("/v1/chat/chat-1/messages", params=older)).json()
    assert [each["role"] for each in rest["messages"]] == ["user", "assistant"]
    front.gates.open["go"].set()
    await running


async def test_a_run_has_these_events(front: Front) -> None:
    found = await told(front, "/v1/agui", run("+one +two +rich"))
    question = (await front.nodes[0].service.page("ann", limit=1))[0]
    kinds = [each["type"] for each in found if each["type"] not in ("TEXT_MESSAGE_CONTENT", "CUSTOM")]
    assert kinds == ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert found[0] == {"type": "RUN_STARTED", "threadId": "thread-1", "runId": "run-1"}
    names = {"id": question.id, "conversation": "thread-1"}
    assert found[1] == {"type": "CUSTOM", "name": "question", "value": names}
    pieces = [each for each in found if each["type"] == "TEXT_MESSAGE_CONTENT"]
    assert all(each["delta"] and each["messageId"] == question.id for each in pieces)
    assert "".join(each["delta"] for each in pieces) == "one two rich "
    custom = [each["name"] for each in found if each["type"] == "CUSTOM"]
    assert sorted(custom) == ["data", "question", "source", "source"]
    assert found[-1]["result"] == {"question": question.id, "status": "answered"}


async def test_the_same_run_is_asked_once_and_what_its_client_has_is_taken_back(front: Front) -> None:
    first = await told(front, "/v1/agui", run("+one"))
    body = run("+one")
    body["messages"].append({"id": first[1]["value"]["id"], "role": "assistant", "content": "on"})
    again = await told(front, "/v1/agui", body)
    assert again[1] == first[1]
    assert again[2] == {"type": "MESSAGES_SNAPSHOT", "messages": [run("+one")["messages"][0]]}
    assert again[3]["type"] == "TEXT_MESSAGE_START"
    other = await told(front, "/v1/agui", run("+one", run_id="run-2"))
    assert other[1] != first[1]


async def test_what_a_client_gets_back_of_its_messages_is_one_line(front: Front) -> None:
    first = await told(front, "/v1/agui", run("+one"))
    body = run("+one")
    body["messages"].append({"id": first[1]["value"]["id"], "role": "assistant", "content": "on"})
    pretty = json.dumps(body, indent=1).replace("\n", "\n\r\n").encode()
    headers = {"content-type": "application/json"}
    reply = await front.http.post("/v1/agui", params=ANN, content=pretty, headers=headers)
    assert "\r" not in reply.text
    assert all(len(frame.splitlines()) <= 1 for frame in reply.text.split("\n\n"))
    assert frames(reply.text)[2] == {"type": "MESSAGES_SNAPSHOT", "messages": run("+one")["messages"]}
    odd = pretty.replace(b'"on"', b'"\xff"')
    reply = await front.http.post("/v1/agui", params=ANN, content=odd, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (400, "not_json")


def test_a_run_holds_its_body_and_no_object_for_each_message() -> None:
    body = b'{"threadId":"t","runId":"r","messages":[%b]}' % b",".join([b'{"role":"x"}'] * 50_000)
    tracemalloc.start()
    try:
        teller = AguiTeller(body, peek(body, RunRequest))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < len(body) / 4
    assert b"MESSAGES_SNAPSHOT" in teller.restarted()


async def test_a_run_that_is_stopped_finishes_and_one_that_fails_errs(front: Front) -> None:
    asking = asyncio.create_task(ask(front, "/v1/agui", run("+one @never")))
    await eventually(lambda: open_questions(front))
    assert (await front.http.post("/v1/agui/thread-1/stop", params=ANN)).status_code == 204
    last = frames((await asking).text)[-1]
    assert (last["type"], last["result"]["status"]) == ("RUN_FINISHED", "cancelled")
    failed = await told(front, "/v1/agui", run("+one !broken", run_id="run-2"))
    assert failed[-1] == {"type": "RUN_ERROR", "message": "broken", "code": "answerer_failed"}
    assert failed[-2]["type"] == "TEXT_MESSAGE_END"


async def test_the_name_that_each_chunk_repeats_is_bounded(front: Front) -> None:
    assert await told(front, "/v1/chat/completions", completion("+one", model="m" * 256, stream=True))
    reply = await ask(front, "/v1/chat/completions", completion("+one", model="m" * 257, stream=True))
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "model")


async def test_a_completion_has_these_members(front: Front) -> None:
    reply = await ask(front, "/v1/chat/completions", completion("+one +two +rich", model="any"))
    found = reply.json()
    question = (await front.nodes[0].service.page("ann", limit=1))[0]
    assert reply.headers["location"] == f"/v1/questions/{question.id}"
    assert (found["id"], found["object"], found["model"]) == (
        f"chatcmpl-{question.id}",
        "chat.completion",
        "any",
    )
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "one two rich "
    urls = [each["url_citation"]["url"] for each in choice["message"]["annotations"]]
    assert urls == ["https://example.com/terms", "/refunds"]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_a_streamed_completion_has_these_chunks(front: Front) -> None:
    found = await told(front, "/v1/chat/completions", completion("+one +two", stream=True))
    assert found[-1] == "[DONE]"
    assert len({each["id"] for each in found[:-1]}) == 1
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = [each["choices"][0]["delta"].get("content", "") for each in found[:-1]]
    assert "".join(text) == "one two "
    reasons = [each["choices"][0]["finish_reason"] for each in found[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert all("usage" not in each for each in found[:-1])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    found = await told(front, "/v1/chat/completions", completion("+one", **options))
    assert [each["usage"] for each in found[:-2]] == [None] * (len(found) - 2)
    assert (found[-2]["choices"], found[-2]["usage"]["total_tokens"]) == ([], 5)


async def test_a_completion_says_that_its_model_came_to_a_limit(front: Front) -> None:
    whole = await ask(front, "/v1/chat/completions", completion("+one +short"))
    assert whole.json()["choices"][0]["finish_reason"] == "length"
    found = await told(front, "/v1/chat/completions", completion("+one +short", stream=True))
    assert found[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("place", ["header", "body", "metadata", None])
async def test_a_completion_s_conversation_is_the_named_one_or_its_own(
    front: Front, place: str | None
) -> None:
    more: dict[str, Any] = {
        "body": {"conversation": "c-1"},
        "metadata": {"metadata": {"conversation": "c-1"}},
    }
    body = completion("+one", user="bo", **more.get(place or "", {}))
    headers = {"x-conversation-id": "c-1"} if place == "header" else {}
    for _ in range(2):
        await front.http.post("/v1/chat/completions", params=ANN, json=body, headers=headers)
    found = await front.nodes[0].service.page("ann", limit=5)
    assert len(found) == 2
    names = {each.conversation for each in found}
    assert names == {"c-1"} if place else len(names) == 2
    assert await front.nodes[0].service.page("bo", limit=5) == []


async def test_a_completion_goes_on_with_the_conversation_whose_last_turn_it_has(front: Front) -> None:
    system = {"role": "system", "content": "be kind"}
    said: list[dict[str, Any]] = []
    for text in ("+one", "+two", "+three"):
        said.append({"role": "user", "content": text})
        reply = await ask(front, "/v1/chat/completions", {"model": "m", "messages": [system, *said]})
        said.append(reply.json()["choices"][0]["message"])
        # Clients trim what they keep, and drop what they don't know.
        said[-1] = {"role": "assistant", "content": [{"type": "text", "text": said[-1]["content"].strip()}]}
    found = await front.nodes[0].service.page("ann", limit=5)
    assert len({question.conversation for question in found}) == 1
    assert len(found) == 3
    # Somebody else's conversation and another answer are no such turn.
    for user, history in (("bo", said), ("ann", [said[0], {**said[1], "content": "other"}])):
        messages = [*history, {"role": "user", "content": "+four"}]
        await ask(front, "/v1/chat/completions", {"messages": messages}, user=user)
        (newest, *_) = await front.nodes[0].service.page(user, limit=1)
        assert newest.conversation not in {question.conversation for question in found}


@pytest.mark.parametrize("is_answered", [False, True], ids=["running", "answered"])
@pytest.mark.parametrize(
    "had",
    [[{"role": "assistant", "content": text}] for text in PARTIAL] + [[]],
    ids=str,
)
async def test_a_completion_goes_on_after_one_whose_client_left_before_its_end(
    front: Front, had: list[dict[str, Any]], is_answered: bool
) -> None:
    first = {"role": "user", "content": "+one @more +two"}
    asking = asyncio.create_task(ask(front, "/v1/chat/completions", {"messages": [first], "stream": True}))
    await eventually(lambda: open_questions(front))
    if is_answered:
        front.gates.open["more"].set()
        await asking
    next_one = {"role": "user", "content": "+three"}
    await ask(front, "/v1/chat/completions", {"messages": [first, *had, next_one]})
    found = await front.nodes[0].service.page("ann", limit=5)
    assert [each.text for each in found] == ["+three", "+one @more +two"]
    assert len({each.conversation for each in found}) == 1
    front.gates.open["more"].set()
    await asking


async def test_a_completion_goes_on_after_a_long_answer(front: Front) -> None:
    text = "+" + "x" * 7_000
    first = {"role": "user", "content": f"{text} +long"}
    reply = await ask(front, "/v1/chat/completions", {"messages": [first]})
    message = reply.json()["choices"][0]["message"]
    assert len(message["content"]) > 120_000
    await ask(
        front, "/v1/chat/completions", {"messages": [first, message, {"role": "user", "content": "+two"}]}
    )
    assert len({each.conversation for each in await front.nodes[0].service.page("ann", limit=5)}) == 1


async def test_a_completion_that_people_answer_says_so_and_the_next_one_is_theirs_too(front: Front) -> None:
    await ask(front, "/v1/chat/completions", completion("+one", conversation="c-1"))
    await front.nodes[0].service.hand_over("ann", "c-1", "wants people")
    first = {"role": "user", "content": "+two"}
    reply = await ask(front, "/v1/chat/completions", {"messages": [first], "conversation": "c-1"})
    (question, *_) = await front.nodes[0].service.page("ann", limit=1)
    handover = {"type": "handover", "question": question.id}
    assert reply.json()["pushsse"] == handover
    message = reply.json()["choices"][0]["message"]
    body = {"messages": [first, message, {"role": "user", "content": "+three"}], "stream": True}
    found = await told(front, "/v1/chat/completions", body)
    (last, *_) = await front.nodes[0].service.page("ann", limit=1)
    assert (last.text, last.conversation, last.status) == ("+three", "c-1", "handed_over")
    assert [each["pushsse"]["type"] for each in found[:-1] if "pushsse" in each] == ["handover"]


async def test_a_completion_goes_on_after_one_that_people_have_answered(front: Front) -> None:
    service = front.nodes[0].service
    first = {"role": "user", "content": "+one @never"}
    asking = asyncio.create_task(ask(front, "/v1/chat/completions", {"messages": [first]}))
    await eventually(lambda: open_questions(front))
    (question,) = await service.page("ann", limit=1)
    await service.hand_over("ann", question.conversation, "wants people")
    await asking
    assert await Desk(service.life).answer("eve", question.id, Said("It is on its way.", "Eve"))
    had = {"role": "assistant", "content": "one"}
    body = {"messages": [first, had, {"role": "user", "content": "+two"}]}
    await ask(front, "/v1/chat/completions", body)
    (last, *_) = await service.page("ann", limit=1)
    assert (last.text, last.conversation) == ("+two", question.conversation)


async def test_a_repeat_with_a_key_is_the_first_wherever_its_turn_is_found_by_then(front: Front) -> None:
    body = {"messages": [*completion("+one")["messages"], {"role": "assistant", "content": "one"}]}
    body["messages"].append({"role": "user", "content": "+two"})
    headers = {"idempotency-key": "k"}
    path = "/v1/chat/completions"
    # The turn isn't there the first time, and is the second time.
    first = await front.http.post(path, params=ANN, json=body, headers=headers)
    await ask(front, path, completion("+one"))
    again = await front.http.post(path, params=ANN, json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    # With another history it is another question.
    body["messages"][1]["content"] = "other"
    other = await front.http.post(path, params=ANN, json=body, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "invalid")


async def test_a_repeat_of_a_completion_with_its_key_is_the_first(front: Front) -> None:
    for _ in range(2):
        headers = {"idempotency-key": "k"}
        reply = await front.http.post(
            "/v1/chat/completions", params=ANN, json=completion("+one"), headers=headers
        )
        assert reply.status_code == 200
    assert len(await front.nodes[0].service.page("ann", limit=5)) == 1


async def test_a_failed_completion_is_not_tried_again_by_its_client(front: Front) -> None:
    reply = await ask(front, "/v1/chat/completions", completion("!broken"))
    assert reply.status_code == 502
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json()["error"]["code"] == "answerer_failed"
    found = await told(front, "/v1/chat/completions", completion("+one !broken", stream=True))
    assert found[-2]["error"]["code"] == "answerer_failed"


def code(path: str, reply: httpx.Response) -> str:
    """The code of a refusal, as this protocol tells it."""
    body = reply.json()
    if path == "/v1/chat/completions":
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["code"])
    assert body["type"] == ("RUN_ERROR" if path == "/v1/agui" else "about:blank")
    return str(body["code"])


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_question_is_refused_and_named(front: Front, path: str) -> None:
    body = BODIES[path]
    for text in ("", "  ", "x" * 8_001, "a\u0000b"):
        reply = await ask(front, path, body(text))
        assert (reply.status_code, code(path, reply)) == (422, "invalid"), text
        assert "messages[0]" in reply.text
    lone = json.dumps(body("MARK")).replace("MARK", "\\ud800")
    headers = {"content-type": "application/json"}
    reply = await front.http.post(path, params=ANN, content=lone, headers=headers)
    assert (reply.status_code, code(path, reply)) == (422, "invalid")
    for broken, status, expected in (
        (b"{", 400, "not_json"),
        (b"{}", 422, "invalid"),
        (b"[]", 422, "invalid"),
    ):
        reply = await front.http.post(path, params=ANN, content=broken, headers=headers)
        assert (reply.status_code, code(path, reply)) == (status, expected)
    packed = gzip.compress(b" " * (1024 * 1024 + 1))
    more = {**headers, "content-encoding": "gzip"}
    reply = await front.http.post(path, params=ANN, content=packed, headers=more)
    assert (reply.status_code, code(path, reply)) == (413, "body_too_large")
    reply = await ask(front, path, body("+one"), user="two words")
    assert (reply.status_code, code(path, reply)) == (400, "user_invalid")
    reply = await front.http.put(path, params=ANN)
    assert (reply.status_code, code(path, reply)) == (405, "method_not_allowed")
    assert await front.nodes[0].service.page("ann", limit=5) == []
    assert front.refusals["invalid"] >= 7


@pytest.mark.parametrize("kind", ["file", "image_url", "input_audio", "tool-search", "binary", 7, None])
@pytest.mark.parametrize("path", BODIES)
async def test_a_part_that_is_no_text_is_refused_and_named(front: Front, path: str, kind: object) -> None:
    body = BODIES[path]("+one")
    name = "parts" if path == "/v1/chat" else "content"
    body["messages"][0][name] = [{"type": "text", "text": "+one"}, {"type": kind, "url": "data:,x"}]
    reply = await ask(front, path, body)
    assert (reply.status_code, code(path, reply)) == (422, "invalid")
    assert f"messages[0].{name}[1]" in reply.text
    assert await front.nodes[0].service.page("ann", limit=5) == []


@pytest.mark.parametrize("path", BODIES)
async def test_the_last_message_has_to_be_the_user_s_and_no_tool_s(front: Front, path: str) -> None:
    body = BODIES[path]("+one")
    role = "assistant" if path == "/v1/chat" else "tool"
    last = {"id": "t", "role": role, "parts": [], "content": "x", "toolCallId": "1", "tool_call_id": "1"}
    body["messages"].append(last)
    reply = await ask(front, path, body)
    assert (reply.status_code, code(path, reply)) == (422, "invalid")
    assert "messages[1]" in reply.text
    reply = await ask(front, path, {**body, "messages": []})
    assert (reply.status_code, code(path, reply)) == (422, "invalid")


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"functions": [{}]},
        {"modalities": ["audio"]},
        {"response_format": {"type": "json_object"}},
    ],
    ids=str,
)
async def test_another_kind_of_completion_is_refused_and_named(front: Front, more: dict[str, Any]) -> None:
    reply = await ask(front, "/v1/chat/completions", completion("+one", **more))
    assert reply.status_code == 422
    assert reply.json()["error"]["param"].startswith(next(iter(more)))


async def test_somebody_else_s_conversation_is_not_found(front: Front) -> None:
    await told(front, "/v1/chat", chat("+one", chat_id="ann-s"))
    for path, body in (
        ("/v1/chat", chat("+one", chat_id="ann-s")),
        ("/v1/agui", run("+one", thread="ann-s")),
        ("/v1/chat/completions", completion("+one", conversation="ann-s")),
        ("/v1/chat/ann-s/stop", None),
        ("/v1/agui/ann-s/stop", None),
    ):
        reply = await ask(front, path, body, user="bo")
        assert reply.status_code == 404, path
    # What can't be a conversation's name is nobody's.
    for name in ("ann-s", "a%00b", "%ff", "two%20words", "x" * 65):
        assert (await front.http.post(f"/v1/chat/{name}/stop", params=BO)).status_code == 404, name
    for path in ("/v1/chat/ann-s/stream", "/v1/chat/ann-s/messages", "/v1/chat/a%00b/messages"):
        assert (await front.http.get(path, params=BO)).status_code == 404, path


async def test_over_the_limits_it_is_429_in_each_protocol(nodes: Nodes) -> None:
    async with fronts(nodes, most_open=1) as front:
        waiting = asyncio.create_task(ask(front, "/v1/chat", chat("@never")))
        await eventually(lambda: open_questions(front))
        for path, body in BODIES.items():
            reply = await ask(front, path, body("+another", **({"message": "m-9"} if body is chat else {})))
            assert (reply.status_code, code(path, reply)) == (429, "too_many_questions")
            assert reply.headers["retry-after"]
        await front.http.post("/v1/chat/chat-1/stop", params=ANN)
        await waiting


async def test_where_nobody_answers_it_is_503_in_each_protocol(nodes: Nodes) -> None:
    async with fronts(nodes, has_answerer=False) as front:
        for path, body in BODIES.items():
            reply = await ask(front, path, body("+another"))
            assert (reply.status_code, code(path, reply)) == (503, "no_answerer")
            assert int(reply.headers["retry-after"]) > 0


async def test_over_the_calls_of_a_minute_it_is_429_in_each_protocol(nodes: Nodes) -> None:
    async with fronts(nodes, quota=1) as front:
        reply = await ask(front, "/v1/chat", chat("+one"))
        assert reply.headers["ratelimit"].startswith('"questions";r=0;')
        for path, body in BODIES.items():
            reply = await ask(front, path, body("+another"))
            assert (reply.status_code, code(path, reply)) == (429, "rate_limited")
            assert 0 < int(reply.headers["retry-after"]) <= 60
        assert front.limited["questions"] == len(BODIES)


async def test_a_quiet_stream_has_comments_and_nothing_else(front: Front) -> None:
    async with front.http.stream("POST", "/v1/chat", params=ANN, json=chat("@never")) as reply:
        raw = ""
        async for piece in reply.aiter_text():
            raw += piece
            if raw.count(": \n\n") == 2:
                break
    assert [each["type"] for each in frames(raw)] == ["start", "start-step"]
    # Leaving has stopped nothing.
    assert len(await open_questions(front)) == 1
    await front.http.post("/v1/chat/chat-1/stop", params=ANN)


async def test_a_status_that_lasts_is_told_to_whoever_comes_later(front: Front) -> None:
    asking = asyncio.create_task(ask(front, "/v1/chat", chat("~looking @go +one")))
    await eventually(lambda: open_questions(front))
    status = {"type": "data-status", "data": {"text": "looking"}, "transient": True}
    async with front.http.stream("GET", "/v1/chat/chat-1/stream", params=ANN) as resumed:
        raw = ""
        async for piece in resumed.aiter_text():
            raw += piece
            if status in frames(raw):
                break
    front.gates.open["go"].set()
    assert status in frames((await asking).text)


@pytest.mark.parametrize("path", BODIES)
async def test_a_node_that_stops_says_so_and_the_answer_goes_on(nodes: Nodes, path: str) -> None:
    async with fronts(nodes, count=2) as front:
        body = BODIES[path]("+one @more +two", **({"stream": True} if path.endswith("ions") else {}))
        asking = asyncio.create_task(ask(front, path, body))
        await eventually(lambda: open_questions(front))
        front.nodes[0].draining = True
        last = [each for each in frames((await asking).text) if each != "[DONE]"][-1]
        assert "stopping" in json.dumps(last)
        front.gates.open["more"].set()
        front.nodes[0].draining = False

        async def answered() -> bool:
            (found,) = await front.nodes[1].service.page("ann", limit=2, characters=99)
            return found.answer == "one two "

        await eventually(answered)


async def grown(*updates: Update) -> list[Update]:
    async def all_of() -> AsyncGenerator[Update, None]:
        for update in updates:
            yield update

    return [update async for update in continued(all_of())]


NOW = datetime.now(UTC)
QUESTION = Question(
    id="0" * 26,
    user="ann",
    conversation="c",
    text="?",
    status="answered",
    asked_at=NOW,
    updated_at=NOW,
    deadline_at=NOW,
)
END = QuestionEnded(QUESTION)
SOURCE = Parted(SourcePart("Terms", "/terms"))


async def test_an_attempt_that_says_the_same_goes_on_where_the_last_one_ended() -> None:
    parts = (Grown("on"), Grown("e "), Restarted(), Grown("o"), Grown("ne "), Grown("two"), END)
    assert await grown(*parts) == [Grown("on"), Grown("e "), Grown("two"), END]
    assert await grown(Grown("one"), Restarted(), Grown("one two"), END) == [Grown("one"), Grown(" two"), END]


async def test_an_attempt_that_says_something_else_restarts_and_all_of_it_comes() -> None:
    assert await grown(Grown("one "), Restarted(), Grown("on"), Idle(), Grown("ly"), Grown("!"), END) == [
        Grown("one "),
        Idle(),
        Restarted(),
        Grown("only"),
        Grown("!"),
        END,
    ]
    # It ends before it has said as much.
    assert await grown(Grown("one"), Restarted(), Grown("on"), END) == [
        Grown("one"),
        Restarted(),
        Grown("on"),
        END,
    ]
    assert await grown(Grown("one"), Restarted(), END) == [Grown("one"), Restarted(), END]


async def test_a_part_comes_once_and_a_status_always() -> None:
    status = Parted(StatusPart("looking"))
    assert await grown(status, SOURCE, Grown("a"), Restarted(), status, SOURCE, Grown("ab"), END) == [
        status,
        SOURCE,
        Grown("a"),
        status,
        Grown("b"),
        END,
    ]
    assert await grown(SOURCE, Grown("a"), Restarted(), SOURCE, Grown("b"), END) == [
        SOURCE,
        Grown("a"),
        Restarted(),
        Grown("b"),
        SOURCE,
        END,
    ]


async def test_each_protocol_has_its_words_for_parts_and_for_what_is_void() -> None:
    parts = (StatusPart("looking"), SourcePart("Terms", "/terms"), DataPart("order", {"no": 7}))
    chatting = ChatTeller(resets=True)
    assert [frames(chatting.parted(part).decode())[0] for part in parts] == [
        {"type": "data-status", "data": {"text": "looking"}, "transient": True},
        {"type": "source-url", "sourceId": "part-1", "url": "/terms", "title": "Terms"},
        {"type": "data-order", "id": "part-2", "data": {"no": 7}},
    ]
    assert chatting.restarted() == b'data: {"type":"reset-step"}\n\n'
    assert ChatTeller(resets=False).restarted() is None
    running = AguiTeller(b'{"messages":[]}', RunRequest("t", "r", []))
    running.begun(QUESTION)
    assert [frames(running.parted(part).decode())[0] for part in parts] == [
        {"type": "CUSTOM", "name": "status", "value": {"text": "looking"}},
        {"type": "CUSTOM", "name": "source", "value": {"title": "Terms", "url": "/terms"}},
        {"type": "CUSTOM", "name": "data", "value": {"name": "order", "data": {"no": 7}}},
    ]
    running.grown("one")
    kinds = [each["type"] for each in frames(running.restarted().decode())]
    assert kinds == ["TEXT_MESSAGE_END", "MESSAGES_SNAPSHOT", "CUSTOM"]
    completing = CompletionTeller("m", with_usage=False)
    completing.begun(QUESTION)
    status, source, data = (frames(completing.parted(part).decode())[0] for part in parts)
    assert status["pushsse"] == {"type": "status", "text": "looking"}
    assert source["choices"][0]["delta"]["annotations"][0]["url_citation"]["url"] == "/terms"
    assert data["pushsse"] == {"type": "data", "name": "order", "data": {"no": 7}}
    assert completing.restarted() is None


async def test_each_protocol_ends_where_people_take_over() -> None:
    waiting = replace(QUESTION, status="handed_over")
    chatting = ChatTeller(resets=False)
    chatting.begun(waiting)
    chunks = frames(chatting.ended(waiting).decode())
    assert chunks[0] == {"type": "data-handover", "id": "handover", "data": {"question": QUESTION.id}}
    assert chunks[-2:] == [{"type": "finish"}, "[DONE]"]
    running = AguiTeller(b'{"messages":[]}', RunRequest("t", "r", []))
    running.begun(waiting)
    custom, finished = frames(running.ended(waiting).decode())
    assert (custom["name"], finished["result"]["status"]) == ("handover", "handed_over")
    completing = CompletionTeller("m", with_usage=False)
    completing.begun(waiting)
    told_so, last, _ = frames(completing.ended(waiting).decode())
    assert told_so["pushsse"] == {"type": "handover", "question": QUESTION.id}
    assert last["choices"][0]["finish_reason"] == "stop"
