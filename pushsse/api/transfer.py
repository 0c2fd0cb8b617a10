"""`/v1/preferences/export` and `/import`: many people's switches in pages, for administrators."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import HttpProblem, Query, json_response, read_body
from pushsse.api.identity import ADMIN, Identifier
from pushsse.preferences.transfer import MOST_ROWS, Place, SwitchLine, Transfer

_MOST_EXPORTED = 1000
# For 500 rows with the longest names; reading far more rows would hold the event loop.
_MOST_BYTES = 384 * 1024
_place = msgspec.json.Decoder(Place)


class ExportView(Struct, frozen=True):
    """Some rows, and what `after` of the next call is; null at the end."""

    rows: tuple[SwitchLine, ...]
    next: str | None


class ImportRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of which each is about one type or one category."""

    rows: Annotated[tuple[SwitchLine, ...], Meta(min_length=1, max_length=MOST_ROWS)]


@dataclass(frozen=True, slots=True)
class TransferEndpoint:
    """Everybody's switches."""

    identifier: Identifier
    transfer: Transfer

    async def get(self, request: Request) -> Response:
        """A page of them."""
        await self.identifier.identify(request, ADMIN)
        query = Query(request)
        limit = query.number("limit", default=_MOST_EXPORTED, most=_MOST_EXPORTED)
        page = await self.transfer.export(_read_place(query.get("after")), limit=limit)
        return json_response(ExportView(page.lines, None if page.next is None else _written(page.next)))

    async def post(self, request: Request) -> Response:
        """Imports a page; nothing of it where a row can't be used."""
        await self.identifier.identify(request, ADMIN)
        wanted = strictjson.read(await read_body(request, _MOST_BYTES), ImportRequest)
        return json_response(await self.transfer.import_page(wanted.rows))


def _written(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _read_place(text: str | None) -> Place:
    if text is None:
        return Place()
    try:
        return _place.decode(base64.urlsafe_b64decode(text))
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise HttpProblem(400, "parameter_invalid", "after= is no place of an export") from None
