"""The page of the faults has a table for each way of writing streams."""

from pathlib import Path

from faults.report import Row, write


def row(what: str, *, ok: bool) -> Row:
    made = Row(1, what)
    made.check("received", 7, ok=True)
    made.count("lost", 0 if ok else 3)
    return made


def test_a_run_replaces_its_own_table_and_leaves_the_other(tmp_path: Path) -> None:
    file = tmp_path / "faults.md"
    write([row("first", ok=True)], took_s=60, portable=True, file=file)
    write([row("second", ok=False)], took_s=60, portable=False, file=file)
    write([row("third", ok=True)], took_s=60, portable=False, file=file)
    text = file.read_text(encoding="utf-8")
    assert text.count("# Faults\n") == 1
    assert text.index("1. third | received 7 | pass") < text.index("1. first | received 7 | pass")
    assert "1. second" not in text
    write([row("fourth", ok=False)], took_s=60, portable=True, file=file)
    text = file.read_text(encoding="utf-8")
    assert "1. fourth | received 7; **lost 3** | **FAIL**" in text
    assert "1. third | received 7 | pass" in text
    assert "1. first" not in text
