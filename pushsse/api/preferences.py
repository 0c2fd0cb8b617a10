"""`/v1/preferences`: a person's switches and quiet hours; `/v1/users/USER/preferences`: somebody's."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import CallLimit, json_response, read_json
from pushsse.api.admin import acting, named, named_person
from pushsse.api.identity import PREFERENCES, Identifier
from pushsse.errors import InvalidInput, Violation
from pushsse.preferences import Preferences
from pushsse.preferences.catalogue import Languages, accepted_languages
from pushsse.preferences.history import Actor
from pushsse.preferences.quiet import MOST_WINDOWS, QuietWindow, Schedule
from pushsse.preferences.store import Preference, PreferenceStore, Settled

# A cache between must not take one language's texts for another's.
_VARY = {"vary": "Accept-Language"}


class ChangeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; what isn't there stays. Of a type or category null takes the person's choice back.

    `quiet` and `zone` are the quiet hours; until `paused_until` everything is quiet.
    """

    types: dict[str, bool | None] | UnsetType = UNSET
    categories: dict[str, bool | None] | UnsetType = UNSET
    quiet: Annotated[tuple[QuietWindow, ...], Meta(max_length=MOST_WINDOWS)] | UnsetType = UNSET
    zone: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET
    paused_until: Annotated[datetime, Meta(tz=True)] | UnsetType | None = UNSET

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing."""
        return all(getattr(self, name) is UNSET for name in self.__struct_fields__)

    @property
    def is_about_quiet(self) -> bool:
        """Whether it says something of the quiet hours."""
        return not (self.quiet is UNSET and self.zone is UNSET and self.paused_until is UNSET)

    def schedule(self, before: Schedule) -> Schedule:
        """The quiet hours after it."""
        given = {name: getattr(self, name) for name in ("quiet", "zone", "paused_until")}
        return replace(before, **{name: value for name, value in given.items() if value is not UNSET})


class PreferenceList(Struct, frozen=True):
    """All that a person has chosen or could: the types in the catalogue's order, the categories that were
    switched, the quiet hours.
    """

    types: tuple[Preference, ...]
    categories: dict[str, bool]
    quiet: tuple[QuietWindow, ...]
    zone: str
    paused_until: datetime | None


def _view(settled: Settled) -> PreferenceList:
    schedule = settled.schedule
    return PreferenceList(
        settled.types, settled.categories, schedule.quiet, schedule.zone, schedule.paused_until
    )


@dataclass(frozen=True, slots=True)
class PreferencesEndpoint:
    """A person's own switches, and those of somebody for an administrator."""

    identifier: Identifier
    preferences: Preferences
    store: PreferenceStore
    limit: CallLimit

    async def get(self, request: Request) -> Response:
        """All switches."""
        who = await self.identifier.identify(request, PREFERENCES)
        return await self._get(request, who.user)

    async def post(self, request: Request) -> Response:
        """Changes some; after the 2xx the change is in force for whatever is published from then on."""
        who = await self.identifier.identify(request, PREFERENCES)
        wanted = await _read(request)
        fields = await self.limit.count(who.user)
        changed = await self._change(
            request, who.user, wanted, acting(who, "person"), self.preferences.change_own
        )
        return json_response(changed, headers={**fields, **_VARY})

    async def get_of(self, request: Request) -> Response:
        """Somebody's."""
        return await self._get(request, await named_person(request, self.identifier, below="/preferences"))

    async def post_of(self, request: Request) -> Response:
        """Changes somebody's, as they do it themselves."""
        by, user = await named(request, self.identifier, below="/preferences")
        wanted = await _read(request)
        changed = await self._change(request, user, wanted, acting(by, "admin"), self.preferences.change)
        return json_response(changed, headers=_VARY)

    async def _get(self, request: Request, user: str) -> Response:
        found = await self.store.preferences(user, _languages(request))
        return json_response(_view(found), headers=_VARY)

    async def _change(
        self,
        request: Request,
        user: str,
        wanted: ChangeRequest,
        by: Actor,
        change: Callable[..., Awaitable[Settled]],
    ) -> PreferenceList:
        return _view(
            await change(
                user,
                wanted.types or {},
                by=by,
                categories=wanted.categories or {},
                schedule=wanted.schedule if wanted.is_about_quiet else None,
                languages=_languages(request),
            )
        )


async def _read(request: Request) -> ChangeRequest:
    wanted = await read_json(request, ChangeRequest)
    if wanted.is_empty:
        others = ", ".join(ChangeRequest.__struct_fields__[1:])
        raise InvalidInput(
            Violation("$.types", f"is missing, and there is none of {others} to change either")
        )
    return wanted


def _languages(request: Request) -> Languages:
    # A header that comes twice is one list (RFC 9110, 5.3).
    return accepted_languages(",".join(request.headers.getlist("accept-language")))
