"""Texts by language, and which of them somebody reads: `Accept-Language` (RFC 9110, 12.5.4).

The API reads the header with `accepted`, the stores choose a text with `in_language`. A text is looked up as
RFC 4647 (3.4) has it: `zh-Hans-CN`, then `zh-Hans`, then `zh`; and where none of these is there, another kind
of the same language (`zh-TW`). Who reads none of them gets the first one.
"""

import re
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

# Of one header; browsers send up to six.
_MOST_RANGES = 20
_RANGE = re.compile(r"([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*|\*)(?:\s*;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?))?")
# In lower case. What is refused (q=0) begins with an exclamation mark.
Languages = tuple[str, ...]
LanguageTag = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,4}\Z",
        description="a language such as en or zh-CN",
        examples=["zh"],
    ),
]
_texts = msgspec.json.Decoder(dict[str, str])


@lru_cache(maxsize=256)
def accepted(header: str) -> Languages:
    """The languages of a header, the preferred one first; what can't be read in it is passed over."""
    found: list[tuple[float, str]] = []
    for part in header[:1000].split(",")[:_MOST_RANGES]:
        match = _RANGE.fullmatch(part.strip())
        if match is not None:
            found.append((float(match[2] or 1), match[1].lower()))
    # Among those of one weight the order of the header stays.
    wanted = [name for weight, name in sorted(found, key=lambda one: -one[0]) if weight > 0]
    refused = [f"!{name}" for weight, name in found if weight == 0]
    return tuple(dict.fromkeys([*wanted, *refused]))


@lru_cache(maxsize=4096)
def in_language(texts: str, otherwise: str, languages: Languages) -> str:
    """The text of the preferred language, of JSON by language; `otherwise` without one."""
    if not texts or not languages:
        return otherwise
    found = {name.lower(): text for name, text in _texts.decode(texts).items()}
    refused = {language[1:] for language in languages if language.startswith("!")}
    usable = {name: text for name, text in found.items() if not _is_refused(name, refused)}
    for language in languages:
        if language == "*" and usable:
            # Whatever is there: of all languages, the first one.
            return otherwise if otherwise in usable.values() else next(iter(usable.values()))
        if (name := _looked_up(language, usable)) is not None:
            return usable[name]
    return otherwise


def _is_refused(name: str, refused: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}-") for each in refused)


def _looked_up(language: str, there: dict[str, str]) -> str | None:
    """A language's name among those that are there: itself, its shorter forms, another kind of it."""
    name = language
    while name:
        if name in there:
            return name
        name = name.rpartition("-")[0]
    main = language.partition("-")[0] + "-"
    return next((each for each in there if each.startswith(main)), None)
