import json

import pytest

from pushsse.preferences.catalogue import accepted_languages, in_language


@pytest.mark.parametrize(
    ("header", "languages"),
    [
        ("", ()),
        ("zh", ("zh",)),
        ("zh-CN, zh;q=0.9, en;q=0.8", ("zh-cn", "zh", "en")),
        ("en;q=0.2 , zh ; q=0.9", ("zh", "en")),
        ("en;Q=0.5,de", ("de", "en")),
        ("de,fr", ("de", "fr")),
        ("en;q=0.5, *;q=0.1", ("en", "*")),
        ("en;q=0, de", ("de", "!en")),
        # What can't be read is passed over, and the rest counts.
        ("en;q=high, ;;, zh, \x00, x" + "y" * 40, ("zh",)),
        (",".join(["de"] * 5000), ("de",)),
    ],
)
def test_the_header_orders_languages_by_weight(header: str, languages: tuple[str, ...]) -> None:
    assert accepted_languages(header) == languages


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("", "Alarms"),
        ("en", "Alarms"),
        ("fr", "Alarms"),
        ("zh", "警报"),
        ("zh-CN", "警报"),
        ("ZH-hans-cn", "警报"),
        # Another kind of the language, rather than another language.
        ("pt", "Alarmes"),
        ("pt-PT, en;q=0.9", "Alarmes"),
        ("fr, zh;q=0.5, en;q=0.1", "警报"),
        ("*", "Alarms"),
        ("zh;q=0, *;q=0.5", "Alarms"),
        ("en;q=0, *", "警报"),
        ("zh-CN;q=0, zh", "警报"),
    ],
)
def test_a_text_is_found_by_prefix_and_the_first_is_for_all_others(header: str, text: str) -> None:
    texts = json.dumps({"en": "Alarms", "zh": "警报", "pt-BR": "Alarmes"})
    assert in_language(texts, "Alarms", accepted_languages(header)) == text


def test_one_text_is_for_all() -> None:
    assert in_language("", "Alarms", accepted_languages("zh")) == "Alarms"
