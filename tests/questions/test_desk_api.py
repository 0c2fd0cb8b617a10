"""Keys, asking anew, feedback, conversations and what staff do, over HTTP at a whole node."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.keys import SECRET
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
TEXT = "How do I get a refund?"
LATER = {
    "name": "Sam",
    "text": "Your refund is on its way.",
    "links": [{"title": "Refunds", "url": "/refunds"}],
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Running]:
    """A node with tokens."""
    async with serving(tmp_path, jwt_secret=SECRET) as running:
        yield running


def by(user: str, *scopes: str, **more: object) -> Mapping[str, str]:
    now = int(time.time())
    claims: dict[str, object] = {"sub": user, "iat": now, "exp": now + 3600, **more}
    if scopes:
        claims["scope"] = " ".join(f"pushsse:{scope}" for scope in scopes)
    return {"authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


ANN, BO, SAM, KIM = by("ann"), by("bo"), by("sam", "answer", "stream"), by("kim", "admin")
LEE = by("lee", "answer", "stream")


async def ask(node: Running, who: Mapping[str, str], conversation: str = "c", text: str = TEXT) -> str:
    body = {"text": text, "conversation": conversation}
    reply = await node.http.post("/v1/questions", headers=who, json=body)
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


async def until(node: Running, who: Mapping[str, str], question: str, status: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def there() -> bool:
        reply = await node.http.get(f"/v1/questions/{question}", headers=who)
        found.clear()
        found.update(reply.json())
        return bool(found["status"] == status)

    await eventually(there)
    return found


@pytest.mark.parametrize("key", ["abc", "7f3c-41", "x" * 128, "a;b=1", 'x"y'])
async def test_a_key_in_quotes_is_the_same_key(node: Running, key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ids = set()
    for given in (key, quoted, key):
        reply = await node.http.post(
            "/v1/questions?user=ann", json={"text": TEXT}, headers={"idempotency-key": given}
        )
        assert reply.status_code == 202, reply.text
        ids.add(reply.json()["id"])
    assert len(ids) == 1
    other = await node.http.post(
        "/v1/questions?user=ann", json={"text": "another"}, headers={"idempotency-key": quoted}
    )
    assert (other.status_code, other.json()["errors"][0]["at"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("key", ["", '""', '"abc', "a b", '"a\\b"', "x" * 129, f'"{"x" * 129}"', "ä"])
async def test_a_key_that_cant_be_one_is_refused_by_name(node: Running, key: str) -> None:
    reply = await node.http.post(
        "/v1/questions?user=ann", json={"text": TEXT}, headers={b"idempotency-key": key.encode()}
    )
    assert (reply.status_code, reply.json()["errors"][0]["at"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize("text", ["", " \n\t", "x" * 8_001, "bell \x07", "del \x7f", "c1 \x85", "nul \x00"])
async def test_a_text_that_cant_be_a_question_is_refused_by_name(node: Running, text: str) -> None:
    reply = await node.http.post("/v1/questions?user=ann", json={"text": text})
    assert reply.status_code == 422, reply.text
    assert reply.json()["errors"][0]["at"] in ("$.text", "$")
    for fine in ("x" * 8_000, "two\r\nlines\tand a tab", "发票在哪里？"):
        assert (await node.http.post("/v1/questions?user=ann", json={"text": fine})).status_code == 202


async def test_a_long_text_of_blanks_and_one_control_character_is_refused_at_once(node: Running) -> None:
    for text in (" " * 7_999 + "\x07", "a" * 7_999 + "\x07", " a" * 3_999 + "\x07"):
        began = time.thread_time()
        reply = await node.http.post("/v1/questions?user=ann", json={"text": text})
        assert reply.status_code == 422
        assert time.thread_time() - began < 0.5


async def test_a_lone_surrogate_is_refused(node: Running) -> None:
    reply = await node.http.post(
        "/v1/questions?user=ann",
        content=b'{"text": "a\\ud800b"}',
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == 422


async def test_pages_of_a_conversation_and_of_conversations(guarded: Running) -> None:
    ids = [await ask(guarded, ANN, "c") for _ in range(3)]
    await ask(guarded, ANN, "d")
    page = (await guarded.http.get("/v1/questions?conversation=c&limit=2", headers=ANN)).json()
    assert ([one["id"] for one in page["questions"]], page["more"]) == ([ids[2], ids[1]], True)
    rest = await guarded.http.get(f"/v1/questions?conversation=c&limit=2&before={ids[1]}", headers=ANN)
    assert ([one["id"] for one in rest.json()["questions"]], rest.json()["more"]) == ([ids[0]], False)
    first = (await guarded.http.get("/v1/conversations?limit=1", headers=ANN)).json()
    assert ([one["id"] for one in first["conversations"]], first["more"]) == (["d"], True)
    assert first["conversations"][0]["title"] == TEXT
    newest = first["conversations"][0]["newest"]
    rest = await guarded.http.get(f"/v1/conversations?before={newest}", headers=ANN)
    assert [one["id"] for one in rest.json()["conversations"]] == ["c"]
    for path in ("/v1/questions?conversation=c", "/v1/questions?conversation=none"):
        for who in (BO, SAM, KIM):
            status = (await guarded.http.get(path, headers=who)).status_code
            # Who may not ask has no conversations of their own.
            assert status == (403 if who is SAM else 404)
    assert (await guarded.http.get("/v1/conversations", headers=BO)).json()["conversations"] == []


async def test_an_answer_is_given_anew_and_rated(guarded: Running) -> None:
    question = await ask(guarded, ANN)
    first = await until(guarded, ANN, question, "answered")
    assert (first["earlier"], first["feedback"], first["regenerations"]) == ([], None, 0)
    rated = await guarded.http.post(
        f"/v1/questions/{question}/feedback", headers=ANN, json={"rating": "down", "comment": "no"}
    )
    assert rated.json()["feedback"] == {"rating": "down", "comment": "no"}
    again = await guarded.http.post(f"/v1/questions/{question}/regenerate", headers=ANN)
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    second = await until(guarded, ANN, question, "answered")
    [earlier] = second["earlier"]
    assert earlier["answer"]["text"] == first["answer"]["text"]
    assert earlier["feedback"] == {"rating": "down", "comment": "no"}
    assert second["feedback"] is None
    streamed = await guarded.http.post(
        f"/v1/questions/{question}/regenerate", headers={**ANN, "accept": "text/event-stream"}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "event: answer\n" in streamed.text
    for call in ("regenerate", "feedback", "cancel"):
        body = {"rating": "up"} if call == "feedback" else None
        refused = await guarded.http.post(f"/v1/questions/{question}/{call}", headers=BO, json=body)
        assert refused.status_code == 404
    for wrong in (
        {"rating": "great"},
        {},
        {"rating": "up", "comment": "x" * 2_001},
        {"rating": "up", "x": 1},
    ):
        refused = await guarded.http.post(f"/v1/questions/{question}/feedback", headers=ANN, json=wrong)
        assert refused.status_code == 422


async def test_staff_see_answer_and_release_what_is_handed_over_and_nothing_else(guarded: Running) -> None:
    http = guarded.http
    await until(guarded, ANN, await ask(guarded, ANN), "answered")
    hidden = await ask(guarded, BO, "hidden")
    # Before the handover it isn't there for staff.
    for method, path, body in (
        ("GET", "/v1/questions?conversation=c", None),
        ("POST", "/v1/conversations/c/messages", LATER),
        ("POST", "/v1/conversations/c/release", None),
        ("POST", f"/v1/questions/{hidden}/answer", LATER),
    ):
        reply = await http.request(method, path, headers=KIM, json=body)
        assert reply.status_code == 404, path
    handed = await http.post("/v1/conversations/c/handover", headers=ANN, json={"reason": "a person, please"})
    assert handed.json()["handed_over"]["reason"] == "a person, please"
    question = await ask(guarded, ANN, text="Are you there?")
    assert (await until(guarded, ANN, question, "handed_over"))["answer"] is None
    listed = (await http.get("/v1/conversations?status=handed_over", headers=SAM)).json()["conversations"]
    assert [(one["id"], one["user"], one["handed_over"]["waiting"]) for one in listed] == [("c", "ann", 1)]
    read = (await http.get("/v1/questions?conversation=c", headers=SAM)).json()["questions"]
    assert [one["text"] for one in read] == ["Are you there?", TEXT]
    answered = await http.post(f"/v1/questions/{question}/answer", headers=SAM, json=LATER)
    assert answered.json()["answer"]["by"] == {"kind": "staff", "name": "Sam"}
    again = await http.post(f"/v1/questions/{question}/answer", headers=KIM, json=LATER)
    assert (again.status_code, again.json()["code"]) == (409, "already_ended")
    message = await http.post("/v1/conversations/c/messages", headers=SAM, json={"text": "Anything else?"})
    assert (message.status_code, message.json()["answer"]["by"]["name"]) == (201, "sam")
    own = (await http.get(message.headers["location"], headers=ANN)).json()
    assert (own["text"], own["answer"]["text"]) == ("", "Anything else?")
    released = await http.post("/v1/conversations/c/release", headers=SAM)
    assert (released.json()["status"], released.json()["handed_over"]) == ("open", None)
    assert (await http.get("/v1/conversations?status=handed_over", headers=SAM)).json()["conversations"] == []
    assert (await http.get("/v1/questions?conversation=c", headers=KIM)).status_code == 404
    await until(guarded, ANN, await ask(guarded, ANN), "answered")


async def test_a_message_with_a_key_is_sent_once(guarded: Running) -> None:
    await ask(guarded, ANN)
    await guarded.http.post("/v1/conversations/c/handover", headers=ANN)
    path = "/v1/conversations/c/messages"
    keyed = {**SAM, "idempotency-key": "k"}
    sent = await asyncio.gather(*(guarded.http.post(path, headers=keyed, json=LATER) for _ in range(4)))
    assert {reply.status_code for reply in sent} <= {201, 409}
    [message] = {reply.json()["id"] for reply in sent if reply.status_code == 201}
    again = await guarded.http.post(path, headers={**SAM, "idempotency-key": '"k"'}, json=LATER)
    assert again.json()["id"] == message
    other = await guarded.http.post(path, headers=keyed, json={"text": "another"})
    assert (other.status_code, other.json()["errors"][0]["at"]) == (422, "Idempotency-Key")
    # Somebody else's key is another one, and the person's own, too.
    for who in (KIM, SAM):
        plain = {**who, "idempotency-key": "k2"}
        assert (await guarded.http.post(path, headers=plain, json=LATER)).json()["id"] != message
    own = await guarded.http.post(
        "/v1/questions", headers={**ANN, "idempotency-key": "k"}, json={"text": "?"}
    )
    assert own.status_code == 202


async def test_the_calls_of_staff_need_their_scope(guarded: Running) -> None:
    question = await ask(guarded, ANN)
    await guarded.http.post("/v1/conversations/c/handover", headers=ANN)
    for method, path in (
        ("GET", "/v1/conversations?status=handed_over"),
        ("POST", f"/v1/questions/{question}/answer"),
        ("POST", "/v1/conversations/c/messages"),
    ):
        for who in (ANN, BO, by("eve", "publish", "stream", "ask", "preferences")):
            reply = await guarded.http.request(method, path, headers=who, json=LATER)
            assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
        assert (await guarded.http.request(method, path, json=LATER)).status_code == 401
    for call in ("handover", "release"):
        reply = await guarded.http.post(f"/v1/conversations/c/{call}", headers=BO)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert "ann" not in reply.text
    for path in ("/v1/conversations", "/v1/questions", "/v1/questions?conversation=other"):
        assert (await guarded.http.get(path, headers=SAM)).status_code == 403
    # A person may go back by themselves.
    back = await guarded.http.post("/v1/conversations/c/release", headers=ANN)
    assert back.json()["status"] == "open"


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": ""},
        {"text": " "},
        {"text": "x" * 20_001},
        {"text": "bell \x07"},
        {"text": "a", "name": "\x1b[2J"},
        {"text": "a", "links": [{"title": "t", "url": "javascript:alert(1)"}]},
        {"text": "a", "links": [{"title": "", "url": "/x"}]},
        {"text": "a", "links": [{"title": "t", "url": "/x"}] * 21},
        {"text": "a", "more": 1},
    ],
)
async def test_what_staff_may_not_say_is_refused(node: Running, wrong: object) -> None:
    asked = await node.http.post("/v1/questions?user=ann", json={"text": TEXT, "conversation": "c"})
    await node.http.post("/v1/conversations/c/handover?user=ann")
    for path in (f"/v1/questions/{asked.json()['id']}/answer", "/v1/conversations/c/messages"):
        reply = await node.http.post(f"{path}?user=sam", json=wrong)
        assert reply.status_code == 422, reply.text


async def test_staff_are_told_on_their_stream_and_the_person_on_theirs(guarded: Running) -> None:
    await until(guarded, ANN, await ask(guarded, ANN), "answered")
    await guarded.http.get("/v1/conversations?status=handed_over", headers=SAM)
    async with (
        guarded.stream("", **{"authorization": SAM["authorization"]}) as staff,
        guarded.stream("", **{"authorization": ANN["authorization"]}) as person,
        guarded.stream("", **{"authorization": BO["authorization"]}) as other,
    ):
        for stream in (staff, person, other):
            await stream.ready()
        await guarded.http.post("/v1/conversations/c/handover", headers=ANN)
        told = await staff.until("pushsse.desk")
        assert '"status":"waiting"' in told.data
        question = await ask(guarded, ANN, text="Are you there?")
        told = await staff.until("pushsse.desk")
        assert question in told.data
        await guarded.http.post(f"/v1/questions/{question}/answer", headers=SAM, json=LATER)
        answer = await person.until("answer")
        assert '"kind":"staff"' in answer.data
        assert b"desk" not in person.raw
        assert b"Are you there?" not in other.raw
        # What stays in the log of staff when the person is forgotten.
        await guarded.http.post("/v1/conversations/c/release", headers=SAM)
        assert '"status":"answered"' in (await staff.until("pushsse.desk")).data
        assert '"status":"released"' in (await staff.until("pushsse.desk")).data
        assert staff.raw.count(b"event: pushsse.desk\n") == 4
        assert b"Are you there?" not in staff.raw
        assert b'"ann"' not in staff.raw


async def test_whoever_was_kicked_isnt_told_however_they_come_back(guarded: Running) -> None:
    list_, publish = "/v1/conversations?status=handed_over", by("ops", "publish")
    await until(guarded, ANN, await ask(guarded, ANN), "answered")
    for who in (SAM, LEE):
        assert (await guarded.http.get(list_, headers=who)).status_code == 200
    kicked = await guarded.http.post("/v1/users/sam/kick", headers=KIM)
    assert kicked.status_code == 200
    back = by("sam", "stream", iat=kicked.json()["kicked_at"] + 1)
    async with (
        guarded.stream("", authorization=back["authorization"]) as sam,
        guarded.stream("", authorization=LEE["authorization"]) as lee,
    ):
        for stream in (sam, lee):
            await stream.ready()
        await guarded.http.post("/v1/conversations/c/handover", headers=ANN)
        question = await ask(guarded, ANN, text="Are you there?")
        for _ in range(2):
            told = await lee.until("pushsse.desk")
        assert question in told.data
        last = {"type": "last", "message": "", "to": {"users": ["sam"]}}
        assert (await guarded.http.post("/v1/events", headers=publish, json=last)).status_code == 202
        await sam.until("last")
        assert b"pushsse.desk" not in sam.raw


async def test_staff_arent_told_for_longer_than_their_token_is_good(guarded: Running) -> None:
    short = by("sam", "answer", exp=time.time() + 2)
    for who in (short, LEE):
        listed = await guarded.http.get("/v1/conversations?status=handed_over", headers=who)
        assert listed.status_code == 200
    store = guarded.node.questions.life.conversations

    async def over() -> bool:
        return await store.staff() == ["lee"]

    await eventually(over)


async def test_a_reply_that_streams_ends_when_people_take_over(node: Running) -> None:
    await node.http.post("/v1/questions?user=ann", json={"text": TEXT, "conversation": "c"})
    await node.http.post("/v1/conversations/c/handover?user=ann")
    reply = await asyncio.wait_for(
        node.http.post(
            "/v1/questions?user=ann",
            json={"text": TEXT, "conversation": "c"},
            headers={"accept": "text/event-stream"},
        ),
        20,
    )
    assert reply.text.count("event: ") == 1
    assert '"status":"handed_over"' in reply.text


async def test_a_bad_page_is_refused_by_name(node: Running) -> None:
    for query in ("limit=0", "limit=101", "before=x", "status=open"):
        reply = await node.http.get(f"/v1/conversations?user=ann&{query}")
        assert (reply.status_code, reply.json()["code"]) == (400, "parameter_invalid")
    for query in (
        "limit=0",
        "before=x",
        "conversation=a%00b",
        "conversation=a%20b",
        f"conversation={'x' * 65}",
    ):
        reply = await node.http.get(f"/v1/questions?user=ann&{query}")
        assert (reply.status_code, reply.json()["code"]) == (400, "parameter_invalid")
