"""`/v1/types`: the catalogue of types, for administrators."""

from dataclasses import dataclass

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import HttpProblem, json_response, read_json
from pushsse.api.identity import ADMIN, Identifier
from pushsse.errors import InvalidInput
from pushsse.event import TypeName
from pushsse.preferences import Catalogue
from pushsse.preferences.catalogue import (
    CatalogueFull,
    CatalogueStore,
    TypeInFile,
    TypeRules,
    TypeView,
    is_reserved,
)


class TypeList(Struct, frozen=True):
    """All types of the catalogue, in its order."""

    types: tuple[TypeView, ...]


@dataclass(frozen=True, slots=True)
class TypesEndpoint:
    """The catalogue's types: all of them, set one, remove one."""

    identifier: Identifier
    store: CatalogueStore
    catalogue: Catalogue

    async def get(self, request: Request) -> Response:
        """All types, with every language."""
        await self.identifier.identify(request, ADMIN)
        return json_response(TypeList(await self.store.all()))

    async def put(self, request: Request) -> Response:
        """Sets a type; all nodes act on it within seconds."""
        name = await self._name(request)
        rules = await read_json(request, TypeRules)
        try:
            is_new = await self.store.put(name, rules)
        except TypeInFile as error:
            raise HttpProblem(409, "type_in_file", str(error)) from None
        except CatalogueFull as error:
            raise HttpProblem(409, "catalogue_full", str(error)) from None
        await self.catalogue.announce()
        view = msgspec.convert(msgspec.to_builtins(rules) | {"name": name, "in_file": False}, TypeView)
        return json_response(view, 201 if is_new else 200)

    async def delete(self, request: Request) -> Response:
        """Removes a type. The next event of it brings it back, unless new types are refused."""
        name = await self._name(request)
        try:
            was_there = await self.store.remove(name)
        except TypeInFile as error:
            raise HttpProblem(409, "type_in_file", str(error)) from None
        if not was_there:
            raise HttpProblem(404, "type_unknown", "there is no such type in the catalogue")
        await self.catalogue.announce()
        return Response(status_code=204)

    async def _name(self, request: Request) -> str:
        await self.identifier.identify(request, ADMIN)
        name: str = request.path_params["type"]
        try:
            strictjson.convert(name, TypeName)
        except InvalidInput as error:
            raise HttpProblem(400, "type_invalid", error.violations[0].detail) from None
        if is_reserved(name):
            raise HttpProblem(400, "type_invalid", f"{name!r} is a name that pushsse itself uses")
        return name
