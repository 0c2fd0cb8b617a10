"""A process that the tests fork is what a fresh Python would be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import LIMIT_S, environment
from tests.starting import Forked, start

pytestmark = pytest.mark.real

HANGUP = str(int(signal.SIGHUP))
SURROUNDINGS = """
import json, os, signal, sys
streams = [(each.encoding, each.errors, each.line_buffering, each.isatty(), each.fileno())
           for each in (sys.stdin, sys.stdout, sys.stderr)]
handlers = {number: str(signal.getsignal(number)).partition(" at ")[0] for number in signal.valid_signals()}
print(json.dumps({
    "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
    "streams": streams, "handlers": handlers, "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "files": sorted(os.listdir("/proc/self/fd")), "own session": os.getsid(0) == os.getpid(),
    "given": sys.stdin.read(),
}))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_forked_process_finds_what_a_fresh_one_finds(tmp_path: Path, unbuffered: str) -> None:
    (tmp_path / "surroundings.py").write_text(SURROUNDINGS)
    env = environment({"PUSHSSE_PORT": "1", "PYTHONPATH": f"{tmp_path}/é:/nowhere"})
    env |= {"PYTHONUNBUFFERED": unbuffered}

    def told(process: "Forked | subprocess.Popen[bytes]") -> dict[str, Any]:
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"one\r\ntwo")
            process.stdin.close()
            return dict(json.loads(process.stdout.read()))

    pipe = subprocess.PIPE
    forked = start("a", "b c", module="surroundings", cwd=tmp_path, env=env, stdin=pipe, stdout=pipe)
    command = [sys.executable, "-m", "surroundings", "a", "b c"]
    fresh = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=pipe, stdout=pipe, start_new_session=True)
    found, expected = told(forked), told(fresh)
    # A runner such as nohup has it ignored in whatever it starts; a forked process never does.
    assert found["handlers"].pop(HANGUP) == "0"
    expected["handlers"].pop(HANGUP)
    assert found == expected


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
    ],
)
def test_a_forked_process_ends_as_a_fresh_one(tmp_path: Path, code: str, status: int, said: str) -> None:
    (tmp_path / "ending.py").write_text(code)
    with start(module="ending", cwd=tmp_path, env=environment({}), stderr=subprocess.PIPE) as process:
        assert process.wait(LIMIT_S) == status
        assert process.poll() == status
        assert process.stderr is not None
        assert said in process.stderr.read().decode()
    # Nothing happens, whoever has this number now.
    process.send_signal(signal.SIGKILL)


def test_a_forked_process_is_signalled_and_waited_for_for_so_long(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text("import signal; print(1, flush=True); signal.pause()")
    with start(module="waiting", cwd=tmp_path, env=environment({}), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert os.getsid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(LIMIT_S) == -signal.SIGTERM


def test_what_only_a_fresh_python_reads_starts_one(tmp_path: Path) -> None:
    # It has to be there before Python is.
    env = environment({"PYTHONHASHSEED": "0"})
    with start("--version", cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as process:
        assert isinstance(process, subprocess.Popen)
        assert process.wait(LIMIT_S) == 0
