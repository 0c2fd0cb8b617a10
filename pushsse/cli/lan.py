"""What `pushsse serve --lan` prints: how to come in from the local network, by a code that a phone reads.

`running` prints it when the service is ready. The key is made for this run (`settings.load`), so what is
printed is all that there is to come in with. Deliberate: the code has colours of its own, since a phone's
camera may not read one that is light on dark; its token stands after the #, which no browser sends and no
server logs; and where the terminal's encoding has no such blocks (GBK has half of them), its link is printed.
"""

import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import segno

from pushsse import __version__
from pushsse.api.identity import SCOPE_PREFIX, SCOPES
from pushsse.api.identity.tokens import signed
from pushsse.cli.serve import base_url
from pushsse.settings import Settings

_LIVES_S = 3600
# The name that whoever scans the code has.
GUEST = "phone"
OWNER = "me"
EVERYTHING = " ".join(SCOPE_PREFIX + each for each in SCOPES)
# Nothing is sent there (RFC 5737): the system only says from which address it would be.
_ELSEWHERE = ("192.0.2.1", 9)
# Two rows of a code to a line: light above and below, above, below, neither.
_BLOCKS = {(1, 1): "█", (1, 0): "▀", (0, 1): "▄", (0, 0): " "}
_BLOCKS_USED = "".join(_BLOCKS.values())
_MARGIN = 2
_LIGHT_ON_DARK, _PLAIN = "\033[97;40m", "\033[0m"


def invitation(settings: Settings, port: int, *, colours: bool, encoding: str = "utf-8") -> str:
    """What is printed when the service is ready; `colours` for a terminal."""
    here, url = base_url(settings, port), network_url(settings, port)
    minutes = lives_s(settings) // 60
    link = f"{url}/#token={token(settings, GUEST)}"
    has_blocks = _BLOCKS_USED.encode(encoding, "ignore").decode(encoding) == _BLOCKS_USED
    lines = [
        f"pushsse {__version__} is ready on this network: {url}/",
        f"  {'Scan' if has_blocks else 'Open'} this with a phone in the same network."
        f' It is then "{GUEST}", for {minutes} minutes:',
        "",
        *(drawn(link, colours=colours) if has_blocks else [f"  {link}"]),
        "",
        "  publish:",
        f"    TOKEN={token(settings, OWNER, EVERYTHING)}",
        f'    curl -H "Authorization: Bearer $TOKEN" -d "hello" "{here}/v1/events?type=news&to=all"',
        f"  The page at {here}/ takes this token, too. It may do everything: keep it to yourself.",
    ]
    if _is_here_alone(url):
        lines.insert(1, "  No network was found: only this machine has this address. --host names another.")
    return "\n".join(lines)


def drawn(text: str, *, colours: bool) -> list[str]:
    """A QR code (ISO/IEC 18004) of a text, as lines of a terminal."""
    code = segno.make(text, error="l", micro=False, boost_error=False)
    rows = [[0 if dark else 1 for dark in row] for row in code.matrix]
    begin, end = (_LIGHT_ON_DARK, _PLAIN) if colours else ("", "")
    return [f"  {begin}{line}{end}" for line in _lines(rows)]


def _lines(rows: Sequence[Sequence[int]]) -> Iterable[str]:
    width = len(rows[0]) + 2 * _MARGIN
    empty = [1] * width
    side = [1] * _MARGIN
    all_rows = [empty] * _MARGIN + [[*side, *row, *side] for row in rows] + [empty] * _MARGIN
    if len(all_rows) % 2:
        all_rows.append(empty)
    for upper, lower in zip(all_rows[::2], all_rows[1::2], strict=True):
        yield "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))


def token(settings: Settings, user: str, scope: str = "") -> str:
    """A token for as long as `lives_s` says; without a scope it is that of anybody."""
    return signed(settings, user, scope=scope, lives_s=lives_s(settings))[0]


def lives_s(settings: Settings) -> int:
    """An hour, or as long as a token may be valid."""
    return int(min(_LIVES_S, settings.token_max_s))


def network_url(settings: Settings, port: int) -> str:
    """The service's URL for another machine of the network."""
    host = settings.host
    try:
        if ip_address(host).is_unspecified:
            host = _address()
    except ValueError:
        # A name.
        pass
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _address() -> str:
    """This machine's address in its network; 127.0.0.1 without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(asked.getsockname()[0])


def _is_here_alone(url: str) -> bool:
    return url.startswith(("http://127.", "http://localhost", "http://[::1]"))
