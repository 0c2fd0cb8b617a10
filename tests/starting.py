"""pushsse as a process that is forked instead of started: what a start costs is paid once.

A fresh Python takes 0.9 s of CPU for what `pushsse serve` imports, and the tests start hundreds. So each
process of the tests has one starter, this module run as a program. It has imported everything, and forks for
each process that is wanted. A forked process differs from a fresh one in nothing that pushsse looks at:
arguments, environment, folder, standard streams, module search path and signals. It is a session of its own.

`start` and `run` are what subprocess.Popen and subprocess.run are. Tests about the start itself (what is
imported when, another interpreter, limits, a terminal) don't use them.
"""

import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TextIO

import pushsse
from pushsse.questions.answerers import faq

_MOST_BYTES = 200_000
_NUMBER = struct.Struct("i")
_STREAMS = ("stdin", "stdout", "stderr")
# Python, its allocator and libraries read these once, before the starter could set them.
_READ_AT_START = ("PYTHON", "COVERAGE_", "LD_", "LC_", "LANG", "MALLOC_", "TZ", "FAKETIME")
# Of those, the starter sees to these.
_SET_LATER = {"PYTHONPATH", "PYTHONUNBUFFERED"}


class Started(Protocol):
    """What tests do with a process, forked or not."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """The exit status, once it was waited for."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; the exit status. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """A signal, unless it has ended."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


class Forked:
    """A process of `python -m MODULE ARGUMENTS`; `start` makes it."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: "Sequence[int | IO[Any] | None]",
    ) -> None:
        self.args = ("-m", module, *arguments)
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        wanted = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
        self._status, theirs = socket.socketpair()
        with ExitStack() as sent:
            sent.enter_context(theirs)
            fds = [self._end(name, stream, sent) for name, stream in zip(_STREAMS, streams, strict=True)]
            socket.send_fds(_starter().control, [json.dumps(wanted).encode()], [theirs.fileno(), *fds])
        self.pid = self._number("couldn't be forked")

    def _end(self, name: str, stream: "int | IO[Any] | None", sent: ExitStack) -> int:
        """The descriptor that the process gets as a stream. What is opened here is closed when it is sent."""
        if stream is None:
            return _STREAMS.index(name)
        if stream == subprocess.DEVNULL:
            theirs = os.open(os.devnull, os.O_RDWR)
        elif stream == subprocess.PIPE:
            reads, writes = os.pipe()
            theirs, ours, mode = (reads, writes, "wb") if name == "stdin" else (writes, reads, "rb")
            setattr(self, name, open(ours, mode))  # noqa: SIM115
        else:
            return stream if isinstance(stream, int) else stream.fileno()
        sent.callback(os.close, theirs)
        return theirs

    def _number(self, otherwise: str) -> int:
        said = self._status.recv(_NUMBER.size, socket.MSG_WAITALL)
        if not said:
            raise RuntimeError(f"a process {otherwise}: the starter has died")
        return int(_NUMBER.unpack(said)[0])

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; the exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            with self._status:
                self.returncode = self._number("can't be waited for")
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:
                pass

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def start(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    stdin: "int | IO[Any] | None" = subprocess.DEVNULL,
    stdout: "int | IO[Any] | None" = None,
    stderr: "int | IO[Any] | None" = None,
    module: str = "pushsse",
) -> "Forked | subprocess.Popen[bytes]":
    """A process of `python -m pushsse ARGUMENTS`, or of another module. The streams are those of Popen."""
    if _only_a_fresh_one_knows(env):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
    return Forked(module, arguments, cwd=cwd, env=env, streams=(stdin, stdout, stderr))


def run(
    *arguments: str, cwd: Path, env: Mapping[str, str], input: bytes = b"", timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m pushsse ARGUMENTS` to its end. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input)
        given.seek(0)
        process = start(*arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, status, out.read().decode(), err.read().decode())


def stop() -> None:
    """Ends the starter, if there is one; at the end of the tests."""
    if _starter.cache_info().currsize:
        _starter().stop()
        _starter.cache_clear()


def _only_a_fresh_one_knows(env: Mapping[str, str]) -> bool:
    """Whether a process in this environment would differ from a forked one."""
    names = {name for name in {*env, *os.environ} if name.startswith(_READ_AT_START)} - _SET_LATER
    # Coverage measures a fresh process by itself.
    return any(name.startswith("COVERAGE_") or env.get(name) != os.environ.get(name) for name in names)


class _Starter:
    """The tests' end of a starter."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own: Ctrl-C at the terminal ends the tests, and they end this.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self) -> None:
        self.control.close()
        self._process.wait()


@cache
def _starter() -> _Starter:
    return _Starter()


# The starter


def _import_everything() -> None:
    """What a process of pushsse may import, however late."""
    for found in pkgutil.walk_packages(pushsse.__path__, "pushsse."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in ("uvloop", "uvicorn.loops.auto", "uvicorn.lifespan.on"):
        importlib.import_module(name)
    # `serve` has it read and indexed at each start.
    faq.load("")


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Forks until the tests end, which is None; what is wanted, in a process that was forked for it."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is not control:
                    pid, asked = running.pop(key.fd)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    with asked:
                        _tell(asked, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    continue
                said, fds, _, _ = socket.recv_fds(control, _MOST_BYTES, 1 + len(_STREAMS))
                if not said:
                    return None
                asked, streams = socket.socket(fileno=fds[0]), fds[1:]
                if (pid := os.fork()) == 0:
                    _take(streams)
                    # By their objects, which would otherwise close what gets these numbers later.
                    for number, (_, other) in running.items():
                        os.close(number)
                        other.close()
                    asked.close()
                    return dict(json.loads(said))
                for fd in streams:
                    os.close(fd)
                _tell(asked, pid)
                number = os.pidfd_open(pid)
                running[number] = pid, asked
                ready.register(number, selectors.EVENT_READ)


def _tell(asked: socket.socket, number: int) -> None:
    try:
        asked.sendall(_NUMBER.pack(number))
    except OSError:
        # Whoever asked has gone without waiting.
        pass


def _take(streams: Sequence[int]) -> None:
    """Gives a forked process a session and its standard streams."""
    os.setsid()
    # Whoever runs the tests may have it ignored (nohup, some runners).
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)


def _become(wanted: Mapping[str, Any]) -> None:
    """Makes a forked process what `python -m MODULE ARGUMENTS` is."""
    environment = wanted["env"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(wanted["cwd"])
    # The folder and PYTHONPATH come first, then Python's own.
    own = next(at for at, each in enumerate(sys.path) if each.startswith(sys.base_prefix))
    named = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [wanted["cwd"], *named, *sys.path[own:]]
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = _stream(0, "r", sys.stdin, unbuffered=unbuffered)
    sys.stdout = _stream(1, "w", sys.stdout, unbuffered=unbuffered)
    sys.stderr = _stream(2, "w", sys.stderr, unbuffered=unbuffered)
    sys.argv = [wanted["module"], *wanted["arguments"]]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


def _stream(fd: int, mode: str, starters: TextIO, *, unbuffered: bool) -> io.TextIOWrapper:
    """A standard stream, as CPython's create_stdio makes it; its encoding is that of the starter's."""
    raw = io.FileIO(fd, mode, closefd=False)
    buffer: Any = io.BufferedReader(raw) if mode == "r" else raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=starters.encoding,
        errors=starters.errors,
        newline="\n",
        line_buffering=not unbuffered and (fd == 2 or os.isatty(fd)),
        write_through=unbuffered and mode == "w",
    )


def main() -> None:
    """The starter, whose argument is its end of a socket pair."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.set_inheritable(False)
        _import_everything()
        gc.collect()
        # A collection would otherwise write to all of it, and each process would have its own copy.
        gc.freeze()
        wanted = _serve(control)
    if wanted is not None:
        _become(wanted)


if __name__ == "__main__":
    main()
