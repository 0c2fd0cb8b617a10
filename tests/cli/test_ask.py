"""How a growing answer is printed."""

import pytest

from pushsse.cli.questions import Printed, show


def test_growing_answer_is_printed_piece_by_piece(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed()
    printed.grow(0, "Hello")
    printed.grow(5, ", Ann")
    assert capsys.readouterr().out == "Hello, Ann"


def test_characters_beyond_the_basic_plane_count_as_two(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed()
    printed.grow(0, "😀")
    printed.grow(2, "!")
    assert capsys.readouterr().out == "😀!"


def test_answer_that_is_taken_back_begins_on_a_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed()
    printed.grow(0, "No, yes")
    printed.grow(0, "Yes")
    assert capsys.readouterr().out == "No, yes\nYes"


def test_answer_ends_with_links_and_suggestions(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed()
    printed.grow(0, "Ye")
    link = {"title": "More", "url": "/more"}
    source = {"type": "source", "title": "Terms", "url": "https://example.com/terms"}
    data = {"type": "data", "name": "order", "data": 7}
    printed.end({"text": "Yes", "links": [link], "suggestions": ["And no?"], "parts": [source, data]})
    assert capsys.readouterr().out == "Yes\n  More: /more\n  Terms: https://example.com/terms\n  - And no?\n"


def test_a_conversation_shows_an_answer_that_is_still_growing(capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"text": "It is", "by": None}
    asked = {"id": "Q", "status": "answering", "text": "Where?", "asked_at": "now"}
    show({**asked, "error": None, "answer": answer})
    assert capsys.readouterr().out == "now  > Where?\n  (answering): It is\n"
