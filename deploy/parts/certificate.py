"""A certificate for this machine's names, and the authority that vouches for it, made by OpenSSL.

`python -m deploy.parts.certificate FOLDER [NAME…]` makes one where there is none yet; compose.yaml does that.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.parts.packages import program
from deploy.parts.part import PartFailed

_DAYS = 365
_NAMES = ("localhost",)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM: what clients are to trust, what the server shows, its key."""

    authority: Path
    chain: Path
    key: Path


def make_certificate(folder: Path, names: Sequence[str] = _NAMES) -> Certificate:
    """Makes an authority, whose key is thrown away, and one certificate for these names and loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    if made.chain.exists():
        return made
    authority_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "server.ext"
    alternatives = ",".join([*(f"DNS:{name}" for name in names), "IP:127.0.0.1", "IP:::1"])
    extensions.write_text(
        f"subjectAltName={alternatives}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
        "keyUsage=digitalSignature\nauthorityKeyIdentifier=keyid\n"
    )
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subject = ("-subj", "/CN=pushsse on this machine")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    days = ("-days", str(_DAYS))
    _openssl("req", "-x509", *key, *subject, *usage, *days, "-keyout", authority_key, "-out", made.authority)
    _openssl("req", *key, "-subj", f"/CN={names[0]}", "-keyout", made.key, "-out", request)
    by = ("-CA", made.authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *by, *days, "-out", made.chain)
    for path in (authority_key, request, extensions, folder / "ca.srl"):
        path.unlink(missing_ok=True)
    return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        [program("openssl", "openssl"), *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise PartFailed(f"openssl failed: {done.stderr.strip()}")


if __name__ == "__main__":
    make_certificate(Path(sys.argv[1]), sys.argv[2:] or _NAMES)
