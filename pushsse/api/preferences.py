"""`/v1/preferences`: a person's switches, read and changed."""

from dataclasses import dataclass

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import json_response, read_json
from pushsse.api.identity import PREFERENCES, Identifier
from pushsse.api.limits import CallLimit
from pushsse.preferences import Preferences
from pushsse.preferences.store import Preference, PreferenceStore


class ChangeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Switches to set: type to on (true) or off."""

    types: dict[str, bool]


class PreferenceList(Struct, frozen=True):
    """All of a person's switches, in the catalogue's order."""

    types: tuple[Preference, ...]


@dataclass(frozen=True, slots=True)
class PreferencesEndpoint:
    """A person's own switches."""

    identifier: Identifier
    preferences: Preferences
    store: PreferenceStore
    limit: CallLimit

    async def get(self, request: Request) -> Response:
        """All switches."""
        who = await self.identifier.identify(request, PREFERENCES)
        return json_response(PreferenceList(await self.store.preferences(who.user)))

    async def post(self, request: Request) -> Response:
        """Sets some; after the 2xx the change is in force for whatever is published from then on."""
        who = await self.identifier.identify(request, PREFERENCES)
        wanted = await read_json(request, ChangeRequest)
        fields = await self.limit.spend(who.user)
        changed = PreferenceList(await self.preferences.change(who.user, wanted.types))
        return json_response(changed, headers=fields)
