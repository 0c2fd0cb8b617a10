"""nginx with the very file that is used in production; what differs is in small files beside it."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.parts.certificate import Certificate, make_certificate
from deploy.parts.packages import program
from deploy.parts.part import Part, PartFailed
from deploy.parts.ports import answers, take_port

CONFIGURATION = Path(__file__).resolve().parents[1] / "nginx-sse.conf"
# As in deploy/nginx-sse.d/server.conf.
_LISTEN = "backlog=4096 so_keepalive=20s:5s:3"
# From this version on, HTTP/2 is a directive of its own; before, it is a word after `listen`.
_HTTP2_DIRECTIVE = (1, 25, 1)


class Nginx(Part):
    """One nginx, HTTP on `port` and HTTPS on `tls_port`, before `upstreams` (`host:port`).

    `internal` are the nodes' internal addresses, in the same order, if they have such.
    All clients of a test have one address: it is `exempt`, and `connections_per_address` is large.
    """

    def __init__(
        self,
        folder: Path,
        upstreams: Sequence[str],
        *,
        port: int | None = None,
        tls_port: int | None = None,
        log: Path | None = None,
        connections_per_address: int = 20_000,
        certificate: Certificate | None = None,
        exempt: Sequence[str] = ("127.0.0.1",),
        address: str = "127.0.0.1",
        internal: Sequence[str] = (),
    ) -> None:
        super().__init__("nginx", folder, port=port, log=log)
        self.tls_port = tls_port or take_port(self)
        self._upstreams = tuple(upstreams)
        self._internal = tuple(internal or upstreams)
        self._connections = connections_per_address
        self._certificate = certificate
        self._exempt = tuple(exempt)
        self._address = address
        self._program = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """With HTTP/2; `certificate.authority` vouches for it."""
        return f"https://localhost:{self.tls_port}"

    @property
    def certificate(self) -> Certificate:
        """What it shows to clients. Raises PartFailed before the first start."""
        if self._certificate is None:
            raise PartFailed("nginx has no certificate yet")
        return self._certificate

    @property
    def access_log(self) -> Path:
        """The log of requests."""
        return self.folder / "access.log"

    def prepare(self) -> None:
        self._program = self._program or program("nginx", "nginx")
        self._certificate = self._certificate or make_certificate(self.folder / "tls")
        beside = self.folder / "nginx-sse.d"
        beside.mkdir(exist_ok=True)
        (self.folder / "temp").mkdir(exist_ok=True)
        configuration = self.folder / CONFIGURATION.name
        if not configuration.is_symlink():
            configuration.symlink_to(CONFIGURATION)
        for name, lines in self._files(self._certificate).items():
            (beside / f"{name}.conf").write_text("\n".join(lines) + "\n")
        self._check()

    def command(self) -> Sequence[str]:
        return [*self._nginx(), "-g", "daemon off;"]

    def is_ready(self) -> bool:
        # Any answer will do: the nodes may be away, and the health of theirs is not ours.
        request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        return answers(self.port, request).startswith(b"HTTP/1.1 404")

    def reload(self) -> None:
        """Reads its files again; old workers stay until their streams end."""
        self.send(signal.SIGHUP)

    def _nginx(self) -> list[str]:
        return [self._program, "-p", f"{self.folder}/", "-c", str(self.folder / CONFIGURATION.name)]

    def _check(self) -> None:
        checked = subprocess.run(
            [*self._nginx(), "-t"], check=False, capture_output=True, text=True, timeout=20
        )
        if checked.returncode:
            raise PartFailed(f"nginx refuses its configuration: {checked.stderr.strip()}")

    def _files(self, certificate: Certificate) -> dict[str, list[str]]:
        """The small files: name and lines."""
        folder = self.folder
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        return {
            # As root it would become another user, who may not be let into our folder.
            "main": [
                *(["user root;"] if os.getuid() == 0 else []),
                f"pid {_quoted(folder / 'nginx.pid')};",
                f"error_log {_quoted(self.log)} crit;",
            ],
            "http": [f"access_log {_quoted(self.access_log)} pushsse;"]
            + [f"{name}_temp_path {_quoted(folder / 'temp' / name)};" for name in temporary],
            "nodes": [f"server {upstream} max_fails=1 fail_timeout=2s;" for upstream in self._upstreams],
            "streams": [f"server {at} max_fails=1 fail_timeout=2s;" for at in self._internal],
            "any": [f"server {upstream} max_fails=0;" for upstream in self._upstreams],
            "exempt": [f"{address} 1;" for address in self._exempt],
            "server": [
                f"listen {self._address}:{self.port} {_LISTEN};",
                *self._listen_tls(),
                f"ssl_certificate {_quoted(certificate.chain)};",
                f"ssl_certificate_key {_quoted(certificate.key)};",
                f"limit_conn per_address {self._connections};",
            ],
        }

    def _listen_tls(self) -> list[str]:
        said = subprocess.run(
            [self._program, "-v"], check=True, capture_output=True, text=True, timeout=10
        ).stderr
        found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", said)
        version = tuple(int(number) for number in found.groups()) if found else (0, 0, 0)
        where = f"{self._address}:{self.tls_port}"
        if version >= _HTTP2_DIRECTIVE:
            return [f"listen {where} ssl {_LISTEN};", "http2 on;"]
        return [f"listen {where} ssl http2 {_LISTEN};"]


def _quoted(path: Path) -> str:
    """A path as nginx reads it, with blanks, quotes and backslashes."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
