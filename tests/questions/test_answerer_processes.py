"""Answerers as people run them: settings, `doctor`, the log, and the example of an agent."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.running import pushsse, served
from tests.questions.model_server import MODEL
from tests.starting import start

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
KEY = "sk-very-secret"


@contextmanager
def model_server_beside() -> Iterator[str]:
    """The URL of a model server in a process of its own."""
    module = "tests.questions.model_server"
    with start("0", module=module, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
        finally:
            process.terminate()


def about_the_answerer(folder: Path, **settings: str) -> str:
    ended = pushsse(folder, "doctor", **settings)
    assert KEY not in ended.stdout + ended.stderr
    return "\n".join(line for line in ended.stdout.splitlines() if line.split()[1] == "answerer")


def test_a_model_answers_and_doctor_says_that_it_will(tmp_path: Path) -> None:
    with model_server_beside() as url:
        settings = {"PUSHSSE_ANSWERER": f"openai:{url}?model={MODEL}", "PUSHSSE_OPENAI_KEY": KEY}
        assert about_the_answerer(tmp_path, **settings).startswith("ok      answerer")
        with served(tmp_path, **settings) as node:
            said = node.run("ask", "[think 2]", "[words 3]", "--user", "ann")
            assert said.stdout.split() == ["word0", "word1", "word2"]
            assert "small, 18 characters" in node.logged
            assert KEY not in node.logged + node.printed
        settings["PUSHSSE_ANSWERER"] = f"openai:{url}?model=large"
        assert "has no model 'large'; it has small" in about_the_answerer(tmp_path, **settings)
    assert about_the_answerer(tmp_path, **settings).startswith("fault")


def test_the_file_asks_the_question_file_first_then_the_model(tmp_path: Path) -> None:
    with model_server_beside() as url:
        (tmp_path / "pushsse.toml").write_text(
            f'[[answerer]]\nurl = "faq:"\n[[answerer]]\nurl = "openai:{url}"\nmodel = "{MODEL}"\n'
        )
        assert about_the_answerer(tmp_path).count("ok      answerer") == 2
        with served(tmp_path) as node:
            assert "switch" in node.run("ask", "How do I switch an event type off?", "--user", "ann").stdout
            assert node.run("ask", "Is it cold in winter?", "--user", "ann").stdout.startswith("word0 ")


def test_the_example_of_an_agent_runs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/agent/agent.py", tmp_path)
    named = re.findall(r"PUSHSSE_ANSWERER=(\S+)", (ROOT / "examples/agent/README.md").read_text())
    assert named == ["python:agent:answer"]
    with served(tmp_path, PUSHSSE_ANSWERER=named[0]) as node:
        said = node.run("ask", "Where is my order 17?", "--user", "ann").stdout
        assert said.startswith("Your order 17 is on its way.")
        said = node.run("ask", "What is the weather?", "--user", "ann").stdout
        assert "Where is my order 18?" in said


def test_a_wrong_name_is_one_line_at_the_start(tmp_path: Path) -> None:
    for command in ("serve", "doctor"):
        ended = pushsse(tmp_path, command, PUSHSSE_ANSWERER="python:agent:answer")
        assert ended.returncode == 2
        (line,) = [each for each in ended.stderr.splitlines() if "agent" in each and "answerer  " not in each]
        assert line.startswith("pushsse: PUSHSSE_ANSWERER: python:agent:answer: there is no module 'agent'")


def test_an_http_client_is_loaded_only_where_a_model_is_asked(tmp_path: Path) -> None:
    code = (
        "import sys; from pushsse import build, settings; build.build(settings.load({}, {}));"
        "print([name for name in ('httpx', 'httpx_sse') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUSHSSE_")}
    for answerer, loaded in (("faq:", "[]"), ("openai:http://h/v1?model=a", "['httpx', 'httpx_sse']")):
        line = code.replace("{}, {}", f"{{}}, {{'answerer': {answerer!r}}}")
        done = subprocess.run(
            [sys.executable, "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == loaded


def test_one_service_may_ask_another(tmp_path: Path) -> None:
    """Which speaks the same, wants a token, and streams as the node of a question file does."""
    asked, asking = tmp_path / "asked", tmp_path / "asking"
    asked.mkdir()
    asking.mkdir()
    secret = "0123456789abcdef0123456789abcdef"
    with served(asked, PUSHSSE_JWT_SECRET=secret) as other:
        token = pushsse(asked, "token", "--user", "bot", PUSHSSE_JWT_SECRET=secret).stdout.strip()
        settings = {"PUSHSSE_ANSWERER": f"openai:{other.url}/v1?model=pushsse", "PUSHSSE_OPENAI_KEY": token}
        assert about_the_answerer(asking, **settings).startswith("ok      answerer")
        with served(asking, **settings) as node:
            said = node.run("ask", "How do I switch an event type off?", "--user", "ann").stdout
            whole = pushsse(
                asked, "ask", "How do I switch an event type off?", PUSHSSE_URL=other.url, PUSHSSE_TOKEN=token
            ).stdout
            # Links are its sources there, which aren't printed.
            assert len(said) > 100
            assert whole.startswith(said.strip())
        settings["PUSHSSE_OPENAI_KEY"] = "another"
        assert "refuses the key of PUSHSSE_OPENAI_KEY" in about_the_answerer(asking, **settings)
        with served(asking, **settings) as node:
            failed = node.run("ask", "Hello?", "--user", "ann")
            assert failed.returncode == 1
            assert failed.stderr.startswith("pushsse: answerer_unavailable: ")
            assert "status 401" in node.logged
            assert token not in failed.stderr + node.logged


def test_where_nobody_is_to_answer_questions_are_refused_or_go_to_people(tmp_path: Path) -> None:
    nobody = {"PUSHSSE_ANSWERER": "none:"}
    assert "nobody answers" in about_the_answerer(tmp_path, **nobody)
    with served(tmp_path, **nobody) as node:
        assert "answerer   nobody" in node.logged
        said = node.run("ask", "Is anybody there?", "--user", "ann")
        assert said.returncode == 1
        assert "nobody answers questions here" in said.stderr
    people = nobody | {"PUSHSSE_HANDOVER_UNSURE": "on"}
    assert "people alone" in about_the_answerer(tmp_path, **people)
    with served(tmp_path, **people) as node:
        node.run("ask", "Is anybody there?", "--user", "ann")
        assert "Is anybody there?" in node.run("desk", "list", "--user", "sam").stdout
