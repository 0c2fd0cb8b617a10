"""OpenAI's client for Python, run by a Python that has it; prints what each case came to, as lines of JSON.

openai_client.py URL
"""

import json
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import openai  # type: ignore[import-not-found]

URL = sys.argv[1]
CLIENT = openai.OpenAI(api_key="a token", base_url=f"{URL}/v1", default_query={"user": "ann"})
Then = Callable[[str], object]


def post(path: str) -> None:
    """What the test is asked for, or a call without a body."""
    request = urllib.request.Request(f"{URL}{path}", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


def asked(content: object, **more: object) -> dict[str, Any]:
    return {"model": "pushsse", "messages": [{"role": "user", "content": content}], **more}


def stream(then: Then | None = None, **body: Any) -> dict[str, Any]:
    """Streams; calls `then` with the question's id once there is text."""
    found: dict[str, Any] = {"text": "", "reason": None, "usage": None, "error": None}
    try:
        for chunk in CLIENT.chat.completions.create(**body, stream=True):
            found["id"] = chunk.id
            if chunk.usage is not None:
                found["usage"] = chunk.usage.model_dump(exclude_none=True)
            for choice in chunk.choices:
                first = not found["text"]
                found["text"] += choice.delta.content or ""
                found["reason"] = choice.finish_reason or found["reason"]
                if found["text"] and first and then is not None:
                    then(chunk.id.removeprefix("chatcmpl-"))
    except (openai.OpenAIError, OSError) as error:
        found["error"] = {"name": type(error).__name__, "code": getattr(error, "code", None)}
    return found


def refused(**body: Any) -> dict[str, Any]:
    try:
        CLIENT.chat.completions.create(**body)
    except openai.APIStatusError as error:
        return {
            "name": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
        }
    raise AssertionError("it was taken")


def answer() -> dict[str, Any]:
    found = CLIENT.chat.completions.create(**asked("+one +two +rich"))
    message = found.choices[0].message
    urls = [each.url_citation.url for each in message.annotations]
    return {"text": message.content, "reason": found.choices[0].finish_reason, "urls": urls}


def reconnect() -> dict[str, Any]:
    body = asked("+one @python-1 +two", extra_headers={"Idempotency-Key": "python-1"})
    lost = stream(lambda _: post("/test/cut/0"), **body)
    found = stream(lambda _: post("/test/open/python-1"), **body)
    return {**found, "lost": lost["error"]["name"], "same": lost["id"] == found["id"]}


def drain() -> dict[str, Any]:
    found = stream(lambda _: post("/test/drain/0"), **asked("+one @never"))
    post("/test/undrain/0")
    return found


def taken_over() -> dict[str, Any]:
    def give_up(_: str) -> None:
        post("/test/give-up/0")
        post("/test/open/python-2")

    found = stream(give_up, **asked("+one @python-2 +two"))
    post("/test/revive/0")
    return found


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "answer": answer,
    "streamed": lambda: stream(**asked("+one +two", stream_options={"include_usage": True})),
    "stop": lambda: stream(
        lambda question: post(f"/v1/questions/{question}/cancel?user=ann"), **asked("+one @never")
    ),
    "failure": lambda: stream(**asked("+one !broken")),
    "reconnect": reconnect,
    "drain": drain,
    "takenOver": taken_over,
    "refusal": lambda: refused(**asked([{"type": "image_url", "image_url": {"url": "data:,"}}])),
    "failed": lambda: refused(**asked("!broken")),
    "models": lambda: {"models": [model.id for model in CLIENT.models.list()]},
}

for name, case in CASES.items():
    print(json.dumps({"name": name, "data": case()}), flush=True)
print(json.dumps({"name": "end", "data": {}}), flush=True)
