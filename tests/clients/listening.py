"""A client's process and what it told: a line of JSON for each event, or for curl the stream itself."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from httpx_sse._decoders import SSEDecoder

_LINES_KEPT = 40


@dataclass(frozen=True, slots=True)
class Told:
    """An event, and when it came (time.monotonic)."""

    at: float
    event: str
    data: Mapping[str, Any]


@dataclass
class Listening:
    """One run of a client. Browsers tell their events by HTTP (`hear`), others by standard output."""

    told: list[Told] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], *, raw: bool
    ) -> None:
        """Starts the process."""
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._read_out, args=(self.process.stdout, raw), daemon=True).start()
        threading.Thread(target=self._read_errors, args=(self.process.stderr,), daemon=True).start()

    def hear(self, line: bytes) -> None:
        """One line of JSON. What isn't one is of the error log."""
        try:
            told = json.loads(line)
            self.told.append(Told(time.monotonic(), told["event"], told["data"]))
        except (ValueError, TypeError, KeyError):
            self._note(line)

    @property
    def over(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def all(self, event: str) -> list[Told]:
        """All events of a name."""
        return [each for each in self.told if each.event == event]

    def numbers(self) -> list[int]:
        """What was published, as it came."""
        return [int(each.data["message"]) for each in list(self.told) if each.data.get("type") == "number"]

    def stop(self) -> None:
        """Ends it, with its children."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def _note(self, line: bytes) -> None:
        self.errors.append(line.decode(errors="replace").rstrip())
        del self.errors[:-_LINES_KEPT]

    def _read_out(self, out: IO[bytes], raw: bool) -> None:
        with out:
            if not raw:
                for line in out:
                    self.hear(line)
                return
            for event, data in _decoded(out):
                self.told.append(Told(time.monotonic(), event, data))

    def _read_errors(self, errors: IO[bytes]) -> None:
        with errors:
            for line in errors:
                self._note(line)


def _decoded(out: IO[bytes]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    decoder = SSEDecoder()
    for line in out:
        event = decoder.decode(line.decode().rstrip("\n"))
        if event is not None and event.data:
            yield event.event, json.loads(event.data)
