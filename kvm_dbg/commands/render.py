"""Tables as text, JSON and CSV: pieces of output, in order, as soon as they are known.

Strings out of an image are printed with what is not printable escaped: a dump must not drive the terminal. JSON
escapes on its own; CSV keeps line breaks and tabs, which its quoting is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from kvm_dbg.commands.base import Cell, Column, Table
from kvm_dbg.errors import KvmDbgError

SAMPLE_ROWS = 100  # rows that are looked at before the widths of a text table are settled
NUMERIC = ("number", "size", "float", "address", "duration")
SAFE_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./-_")
UNITS = ("KiB", "MiB", "GiB")


def printable(text: str | bytes, keep: str = "") -> str:
    r"""Return text that is safe to print on one line.

    Bytes that are not UTF-8 and control characters become \xNN; so do, as \uNNNN, the Unicode characters that
    turn text around, separate lines or do not show at all.

    Args:
        text: any text.
        keep: characters that are safe here all the same.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else escape(char) for char in text)


def escape(char: str) -> str:
    r"""Return a character as \xNN, \uNNNN or \UNNNNNNNN."""
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(text: str) -> str:
    """Return a word as one would type it into a shell, printable."""
    word = printable(text)
    if word and SAFE_WORD.issuperset(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def format_duration(seconds: float) -> str:
    """Return a CPU time as ps(1) prints it: "0:07", "12:34", "1:02:03", or with days "2-03:04:05"."""
    whole = int(seconds)
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{whole:02}"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minutes:02}:{whole:02}"
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{whole:02}"


def format_size(size: int) -> str:
    """Return a size in bytes with a binary unit."""
    if size < 1024:
        return f"{size} bytes"
    number = float(size)
    for unit in UNITS:
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def format_cell(column: Column, cell: Cell) -> str:
    """Return a cell as text for people; None is "-"."""
    if isinstance(cell, str):
        return printable(cell)
    if cell is None:
        return "-"
    if type(cell) is int and column.kind == "number":  # most cells are
        return str(cell)
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, list):
        words = [f"{item:.2f}" if isinstance(item, float) else item for item in cell]
        return " ".join(map(quoted, words)) if column.kind == "argv" else ", ".join(map(printable, words)) or "-"
    kind = column.kind
    if kind == "address":
        return f"{cell:#x}" if isinstance(cell, int) else str(cell)
    if kind == "duration":
        return format_duration(cell)
    if kind == "size":
        return format_size(int(cell))
    return f"{cell:.2f}" if kind == "float" else str(cell)


def json_cell(column: Column, cell: Cell) -> Cell:
    """Return a cell as JSON shall have it: addresses as strings, since 64 bits do not survive every JSON reader."""
    if column.kind == "address" and isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:#x}"
    if isinstance(cell, float) and not -1e300 < cell < 1e300:  # JSON knows neither infinity nor NaN
        return None
    return cell


def render_text(table: Table) -> Iterator[str]:
    """Yield the table for people: a heading line and aligned columns, or "name: value" lines if single."""
    if table.text is not None:
        for line in table.text:
            yield f"{line}\n"
        return
    shown = [index for index, column in enumerate(table.columns) if not column.extra]
    columns = [table.columns[index] for index in shown]
    rows = ([row[index] for index in shown] for row in table.rows)
    if not table.single:
        yield from _render_columns(columns, rows)
        return
    width = max(len(column.name) for column in columns)
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if cell is None or cell in ("", []):
                continue
            if column.kind == "lines" and isinstance(cell, list):
                values = [printable(str(item)) for item in cell]
            else:
                values = [format_cell(column, cell)]
            yield f"{column.key:>{width}}: {values[0]}\n"
            yield from (f"{'':{width}}  {value}\n" for value in values[1:])


def _render_columns(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    iterator = iter(rows)
    sample: list[list[str]] = []
    failure: KvmDbgError | None = None
    try:
        for row in iterator:
            sample.append([format_cell(column, cell) for column, cell in zip(columns, row, strict=True)])
            if len(sample) >= SAMPLE_ROWS:
                break
    except KvmDbgError as error:  # what was found before it is shown first
        failure = error
    widths = [max([len(column.name), *(len(row[at]) for row in sample)]) for at, column in enumerate(columns)]
    pad: list[Callable[[str, int], str]] = [str.rjust if column.kind in NUMERIC else str.ljust for column in columns]

    def line(cells: Sequence[str]) -> str:
        return " ".join(put(cell, width) for put, cell, width in zip(pad, cells, widths, strict=True)).rstrip() + "\n"

    yield line([column.name for column in columns])
    for cells in sample:
        yield line(cells)
    if failure is not None:
        raise failure
    for row in iterator:
        yield line([format_cell(column, cell) for column, cell in zip(columns, row, strict=True)])


def row_object(columns: Sequence[Column], row: Sequence[Cell]) -> dict[str, Cell]:
    """Return a row as JSON shall have it."""
    return {
        column.key: json_cell(column, cell) if isinstance(cell, float) or column.kind == "address" else cell
        for column, cell in zip(columns, row, strict=True)
    }


def render_json(table: Table) -> Iterator[str]:
    """Yield one object if single, else an array with one object per line; valid JSON even if the rows fail midway."""
    import json

    graded = {} if table.grade is None else {"grade": table.grade}
    encode = json.JSONEncoder().encode

    def text(row: Sequence[Cell]) -> str:
        return encode(row_object(table.columns, row) | graded)

    if table.single:
        for row in table.rows:
            yield text(row) + "\n"
        return
    lead = "[\n"
    failure: KvmDbgError | None = None
    try:
        for row in table.rows:
            yield lead + text(row)
            lead = ",\n"
    except KvmDbgError as error:
        failure = error
    yield "[]\n" if lead == "[\n" else "\n]\n"
    if failure is not None:
        raise failure


def render_csv(table: Table) -> Iterator[str]:
    """Yield RFC 4180 lines with a heading; lists are joined by spaces, None is empty."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")

    def line(cells: Iterable[Cell]) -> str:
        writer.writerow([csv_cell(cell) for cell in cells])
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    yield line(column.key for column in table.columns)
    for row in table.rows:
        yield line(json_cell(column, cell) for column, cell in zip(table.columns, row, strict=True))


def csv_cell(cell: Cell) -> Cell:
    """Return a cell as one CSV field; the words of a list are quoted as for a shell."""
    if isinstance(cell, list):
        return " ".join(quoted(item) if isinstance(item, str) else str(item) for item in cell)
    return printable(cell, "\n\t") if isinstance(cell, str) else cell


RENDERERS = {"text": render_text, "json": render_json, "csv": render_csv}
