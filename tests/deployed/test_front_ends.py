"""The clients of front ends, as they are: one process of each does all its cases against two nodes.

`tests/questions/front.py` has what a question's text says about its answer.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.parts import PartMissing
from deploy.parts.java import parts_folder
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.metrics import Metrics
from tests.deployed import npm
from tests.migrated import migrated
from tests.parts import missing
from tests.questions.conftest import SHARDS, Nodes
from tests.questions.front import Front, fronts

pytestmark = [pytest.mark.real, pytest.mark.anyio]
FOLDER = Path(__file__).parent
# The newest of each, and the first ones, which end the stream at a member that they don't know.
NEWEST_AI_SDK = ("7.0.173", "6.0.326", "5.0.277")
FIRST_AI_SDK = ("6.0.0", "5.0.0")
AG_UI = ("1.0.0", "0.0.40")
OPENAI_NODE = "6.49.0"
OPENAI_PYTHON = "3.57.0"
_LIMIT_S = 180
Told = dict[str, Any]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    backplane = MemoryBackplane(shards=SHARDS, keep_s=3600, keep_bytes=4 * 1024**2, metrics=Metrics())
    async with (
        Database(migrated(tmp_path / "questions.db"), timeout_s=10) as database,
        fronts(Nodes(database, backplane), count=2, most_open=1000) as found,
    ):
        yield found


async def package(name: str, version: str) -> Path:
    try:
        return await asyncio.to_thread(npm.package, name, version)
    except PartMissing as error:
        missing(error)


def openai_python() -> str:
    """A Python that has OpenAI's client. Raises PartMissing."""
    folder = parts_folder() / f"openai-python-{OPENAI_PYTHON}"
    python = folder / "bin" / "python"
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", f"openai=={OPENAI_PYTHON}"],
    )
    if not any(folder.glob("lib/*/site-packages/openai/__init__.py")):
        for command in commands:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_LIMIT_S)
            if done.returncode:
                raise PartMissing(f"pip can't install openai: {done.stderr[-500:].strip()}")
    return str(python)


async def told(*command: str) -> list[tuple[str, Told]]:
    """What a client printed, case by case."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_LIMIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = [json.loads(line) for line in out.decode().splitlines()]
    assert found, err.decode()
    assert found[-1]["name"] == "end", f"{err.decode()} after {found[-1]}"
    return [(each["name"], each["data"]) for each in found[:-1]]


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param(NEWEST_AI_SDK, id="newest"),
        pytest.param(FIRST_AI_SDK, marks=pytest.mark.long, id="first"),
    ],
)
async def test_the_ai_sdk_s_chat_in_all_its_versions(front: Front, versions: Sequence[str]) -> None:
    folders = [f"{await package('ai', version)}={version}" for version in versions]
    found = await told("node", str(FOLDER / "ai-sdk.mjs"), front.url, *folders)
    for version in versions:
        cases = {name: data for name, data in found if data["version"] == version}
        whole = {"status": "ready", "error": "", "roles": "user assistant"}
        for name, text in {
            "answer": "one two rich ",
            "reload": "one two ",
            "stop": "one ",
            "leave": "one two ",
            "again": "anew ",
            "cut": "one two ",
            "drain": "one two ",
            "takenOver": "one two ",
            "takenOverInOtherWords": "uno dos ",
        }.items():
            assert cases[name].items() >= {**whole, "text": text}.items(), (version, name, cases[name])
        kinds = ["step-start", "text", "data-order", "source-url", "source-url", "data-suggestions"]
        assert cases["answer"]["parts"] == kinds
        assert cases["answer"]["loaded"] == 2
        assert cases["heard"]["heard"] == ["data-status", "data-order", "data-suggestions"]
        # One message under one id, however it is followed.
        assert cases["reload"]["same"]
        assert cases["reload"]["first"] == "one two "
        assert cases["again"]["same"]
        assert cases["nothing"] == {"version": version, "status": "ready", "messages": 0}
        assert cases["stop"]["first"] == "ready"
        failed = (cases["failure"]["status"], cases["failure"]["error"], cases["failure"]["text"])
        assert failed == ("error", "answerer_failed: broken", "one ")
        problem = cases["refusal"]["problem"]
        assert (problem["status"], problem["errors"][0]["at"]) == (422, "$.messages[0].parts[0]")
        assert cases["cut"]["lost"] == "error"
        assert cases["drain"]["lost"].startswith("interrupted: ")
        # Version 7 can be told to empty the message; all others have to be interrupted.
        lost = cases["takenOverInOtherWords"]["lost"]
        assert not lost if version.startswith("7.") else lost.startswith("interrupted: ")


@pytest.mark.parametrize("version", [AG_UI[0], pytest.param(AG_UI[1], marks=pytest.mark.long)])
async def test_ag_ui_s_http_agent(front: Front, version: str) -> None:
    folder = await package("@ag-ui/client", version)
    cases = dict(await told("node", str(FOLDER / "ag-ui.mjs"), front.url, str(folder)))
    for name, text, status in (
        ("answer", "one two rich ", "answered"),
        ("again", "one two ", "answered"),
        ("leave", "one two ", "answered"),
        ("stop", "one ", "cancelled"),
        ("cancel", "one ", "cancelled"),
        ("drain", "one two ", "answered"),
        ("takenOver", "one two ", "answered"),
        ("takenOverInOtherWords", "uno dos ", "answered"),
    ):
        case = cases[name]
        assert (case["text"], case["roles"]) == (text, "user assistant"), (name, case)
        assert (case["last"]["type"], case["last"]["result"]["status"]) == ("RUN_FINISHED", status), name
        assert case["kinds"][0] == "RUN_STARTED"
    custom = ["question", "status", "data", "source", "source", "data"]
    assert [kind for kind in cases["answer"]["kinds"] if kind.islower()] == custom
    assert cases["again"]["lost"]
    assert cases["drain"]["lost"]["code"] == "shutdown"
    failed = cases["failure"]
    expected = {"type": "RUN_ERROR", "message": "broken", "code": "answerer_failed"}
    assert (failed["text"], failed["last"]) == ("one ", expected)
    refused = cases["refusal"]["error"]
    if version == AG_UI[0]:
        assert (refused["status"], refused["payload"]["code"]) == (422, "invalid")
    assert "messages[0].content[0]" in refused["message"]


@pytest.mark.parametrize("language", ["node", "python"])
async def test_openai_s_clients(front: Front, language: str) -> None:
    if language == "node":
        folder = str(await package("openai", OPENAI_NODE))
        cases = dict(await told("node", str(FOLDER / "openai-node.mjs"), front.url, folder))
    else:
        try:
            python = await asyncio.to_thread(openai_python)
        except PartMissing as error:
            missing(error)
        cases = dict(await told(python, str(FOLDER / "openai_client.py"), front.url))
    urls = ["https://example.com/terms", "/refunds"]
    expected = {"text": "one two rich ", "reason": "stop", "urls": urls}
    assert cases["answer"].items() >= expected.items()
    for name, text in (("streamed", "one two "), ("stop", "one "), ("takenOver", "one two ")):
        found = (cases[name]["text"], cases[name]["reason"], cases[name]["error"])
        assert found == (text, "stop", None), (name, found)
    assert cases["streamed"]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert (cases["reconnect"]["text"], cases["reconnect"]["same"]) == ("one two ", True)
    assert cases["reconnect"]["lost"]
    assert (cases["failure"]["text"], cases["failure"]["error"]["code"]) == ("one ", "answerer_failed")
    assert cases["drain"]["error"]["code"] == "shutdown"
    refused = {"name": "UnprocessableEntityError", "status": 422, "param": "messages[0].content[0]"}
    assert cases["refusal"].items() >= refused.items()
    assert (cases["failed"]["status"], cases["failed"]["code"]) == (502, "answerer_failed")
    assert cases["models"]["models"] == ["pushsse"]
    if language == "node":
        assert cases["takenOverInOtherWords"]["error"]["code"] == "restarted"
    # Nobody asked again by himself what had failed.
    failures = [each for each in await front.nodes[0].service.page("ann", limit=50) if each.text == "!broken"]
    assert len(failures) == 1
