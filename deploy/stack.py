"""`make stack`: the whole deployment on this machine, in the foreground, until Ctrl-C or SIGTERM.

Deliberate: a part that dies is shown and left dead, so that one can look at what the others make of it;
SIGUSR1 starts the dead ones again.
"""

import atexit
import fcntl
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from deploy.parts import Part, PartFailed, PartMissing
from deploy.parts.part import kill_family
from deploy.parts.ports import is_free
from deploy.parts.postgres import is_home
from deploy.whole import TOPIC, Stack

_LOCK = "lock"
_LOOK_S = 0.3


def main() -> int:
    """Runs it; the exit status."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _fail("it runs already; stop that one first")
        _end_leftovers(folder)
        try:
            ports = _port("STACK_PORT", 8080), _port("STACK_TLS_PORT", 8443)
        except ValueError as error:
            return _fail(str(error))
        _empty(folder)
        # So that `pushsse explain` knows what became of events.
        stack = Stack(folder, port=ports[0], tls_port=ports[1], settings={"PUSHSSE_OUTCOMES": "on"})
        return _run(stack)


def _run(stack: Stack) -> int:
    # When all threads have ended: whatever was still starting when a second Ctrl-C came.
    atexit.register(stack.kill)
    # Also where a script put us into the background, which has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)
    status = 0
    try:
        try:
            _start(stack)
            _watch(stack)
        except KeyboardInterrupt:
            print("\nstopping; open streams are told so first, Ctrl-C again ends at once", flush=True)
        except (PartMissing, PartFailed) as error:
            status = _fail(str(error))
        finally:
            stack.stop()
    except KeyboardInterrupt:
        stack.kill()
    print("everything is stopped", flush=True)
    return status


def _start(stack: Stack) -> None:
    begun = time.monotonic()
    print(f"starting Kafka, Redis, PostgreSQL, nginx and two nodes; logs are in {stack.logs}", flush=True)
    with ThreadPoolExecutor(1) as pool:
        tokens = pool.submit(_tokens, stack)
        stack.start()
        listener, publisher = tokens.result()
    print(_banner(stack, listener, publisher, time.monotonic() - begun), flush=True)


def _tokens(stack: Stack) -> tuple[str, str]:
    stack.folder.mkdir(parents=True, exist_ok=True)
    return stack.token("ann"), stack.token("ops", "publish")


def _banner(stack: Stack, listener: str, publisher: str, took_s: float) -> str:
    where = "  ".join(f"{node.name} {node.url}" for node in stack.nodes)
    bearer = 'curl -N{more} -H "Authorization: Bearer {token}"'
    listen = bearer.format(more="", token=listener)
    publish = bearer.format(more=f" --cacert {shlex.quote(str(stack.authority))}", token=publisher)
    return "\n".join(
        (
            f"up in {took_s:.1f} s",
            f"  nginx     {stack.nginx.url}/  {stack.nginx.tls_url}/  (authority: {stack.authority})",
            f"  nodes     {where}",
            f"  kafka     {stack.kafka.url}, topic {TOPIC}",
            f"  redis     {stack.redis.url}",
            f"  postgres  {stack.postgres.url}",
            f"  all of it in shell lines: {stack.folder}/env",
            "listen as ann, and from another terminal publish (through Kafka) to everybody:",
            f'  {listen} "{stack.nginx.url}/v1/stream"',
            f'  {publish} -d "hello" "{stack.nginx.tls_url}/v1/events?type=news&to=all"',
            "Ctrl-C stops everything",
        )
    )


def _watch(stack: Stack) -> None:
    """For ever: says which part died, and starts the dead ones again when asked to."""
    again = threading.Event()
    signal.signal(signal.SIGUSR1, lambda number, frame: again.set())
    shown: set[str] = set()
    while True:
        for part in stack.parts:
            if not part.running and part.name not in shown:
                shown.add(part.name)
                print(_died(part), flush=True)
        if again.wait(_LOOK_S):
            again.clear()
            for part in stack.parts:
                if part.name in shown:
                    part.kill()
                    part.start()
                    print(f"{part.name} runs again", flush=True)
            shown.clear()
            stack.write_files()


def _died(part: Part) -> str:
    return f"{part.failure('died')}\n(the others go on; kill -USR1 {os.getpid()} starts {part.name} again)"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"{variable}: {text!r} isn't a port")
    if not is_free(int(text)):
        raise ValueError(f"{variable}: somebody else listens on port {text}; name another one")
    return int(text)


def _folder() -> Path:
    """Where all of it is: STACK_DIR, else `.stack` in the repository."""
    named = os.environ.get("STACK_DIR")
    return Path(named).resolve() if named else Path(__file__).resolve().parents[1] / ".stack"


def _end_leftovers(folder: Path) -> None:
    """Ends what a stack that was killed has left running here."""
    for file in (folder / "pids").glob("*"):
        process = Path("/proc", file.read_text().strip())
        try:
            place = Path(os.readlink(process / "cwd"))
        except OSError:
            continue
        # By now the number may be another process's: ours are known by where they run.
        if place.is_relative_to(folder) or is_home(place.parent):
            kill_family(int(process.name))
        if is_home(place.parent):
            shutil.rmtree(place.parent, ignore_errors=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink()


def _fail(why: str) -> int:
    print(f"stack: {why}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
