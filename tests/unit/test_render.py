"""Tables as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from kvm_dbg.commands.base import Cell, Column, Table
from kvm_dbg.commands.render import (
    SAMPLE_ROWS,
    format_duration,
    format_size,
    printable,
    quoted,
    render_csv,
    render_json,
    render_text,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("h\u00e9llo \u4e16", "h\u00e9llo \u4e16"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\rd\x7f", r"a\x0ab\x09c\x0dd\x7f"),
        ("\x9b31m", r"\x9b31m"),  # CSI in one byte
        ("\u202eabc\u2066", r"\u202eabc\u2066"),  # direction overrides
        ("\u2028\u2029\u200b\ufeff", r"\u2028\u2029\u200b\ufeff"),
        ("\U000e0041", r"\U000e0041"),  # tag characters
        ("\udcff", r"\udcff"),  # half a surrogate pair
        (b"caf\xc3\xa9 \xff\x1b", "caf\u00e9 \\xff\\x1b"),
    ],
)
def test_printable(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


def test_printable_keeps_what_it_is_told_to() -> None:
    assert printable("a\tb\n\x1b", "\t") == r"a" + "\tb" + r"\x0a\x1b"


@pytest.mark.parametrize(
    ("word", "shown"),
    [("a", "a"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$x", "'$x'"), ("-a=b", "-a=b")],
)
def test_quoted(word: str, shown: str) -> None:
    assert quoted(word) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7.9, "0:07"), (754, "12:34"), (3723, "1:02:03"), (183845, "2-03:04:05"), (86399, "23:59:59")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1536 << 10, "1.5 MiB"), (3 << 40, "3.0 TiB")],
)
def test_size(size: int, shown: str) -> None:
    assert format_size(size) == shown


COLUMNS = (
    Column("NAME"),
    Column("AT", "address"),
    Column("SIZE", "size"),
    Column("TIME", "duration"),
    Column("LOAD", "float"),
    Column("ON", "bool"),
    Column("WORDS", "list"),
    Column("HIDDEN", "number", extra=True),
)
ROW: list[Cell] = ["x", 0xFFFF_8880_0000_0000, 2048, 61.5, 0.125, True, ["a", "b c"], 5]
NOTHING: list[Cell] = [None] * 8


def test_text_is_aligned_by_kind() -> None:
    lines = "".join(render_text(Table(COLUMNS, [ROW, NOTHING]))).splitlines()
    assert lines == [
        "NAME                 AT    SIZE TIME LOAD ON  WORDS",
        "x    0xffff888000000000 2.0 KiB 1:01 0.12 yes a, b c",
        "-                     -       -    -    - -   -",
    ]


def test_a_long_table_keeps_going_after_its_widths_are_settled() -> None:
    rows: list[list[Cell]] = [[str(number)] for number in range(SAMPLE_ROWS + 5)]
    rows.append(["wider than its column"])
    lines = "".join(render_text(Table((Column("N"),), iter(rows)))).splitlines()
    assert lines == ["N", *(row[0] for row in rows)]


def test_one_object_is_lines_without_what_is_absent() -> None:
    columns = (Column("NAME"), Column("NONE"), Column("EMPTY", "list"), Column("SAYS", "lines"))
    table = Table(columns, [["x", None, [], ["one, two", "three"]]], single=True)
    assert "".join(render_text(table)) == " NAME: x\n SAYS: one, two\n       three\n".lower()


def test_json_is_one_array_of_objects() -> None:
    assert json.loads("".join(render_json(Table(COLUMNS, [ROW, NOTHING])))) == [
        {
            "name": "x",
            "at": "0xffff888000000000",
            "size": 2048,
            "time": 61.5,
            "load": 0.125,
            "on": True,
            "words": ["a", "b c"],
            "hidden": 5,
        },
        dict.fromkeys(["name", "at", "size", "time", "load", "on", "words", "hidden"]),
    ]
    assert json.loads("".join(render_json(Table(COLUMNS, [])))) == []
    assert json.loads("".join(render_json(Table(COLUMNS, [ROW], single=True))))["name"] == "x"


def test_json_has_neither_nan_nor_raw_controls() -> None:
    text = "".join(render_json(Table((Column("A"), Column("B", "float")), [["\x1b\udcff\u202e", float("nan")]])))
    assert text.isascii()
    assert text == '[\n{"a": "\\u001b\\udcff\\u202e", "b": null}\n]\n'


def test_csv_is_quoted_as_rfc_4180_says() -> None:
    columns = (Column("A"), Column("B", "argv"), Column("C", "address"))
    text = "".join(
        render_csv(Table(columns, [['say "hi", you', ["a b", "c"], 16], [None, [], None], ["two\nlines", ["x"], 0]]))
    )
    assert text.splitlines()[0] == "a,b,c"
    assert text.count("\r\n") == 4
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["a", "b", "c"],
        ['say "hi", you', "'a b' c", "0x10"],
        ["", "", ""],
        ["two\nlines", "x", "0x0"],
    ]
