"""Tables as text, JSON and CSV: pieces of output, in order, as soon as they are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvm_dbg.commands.base import Cell, Column, Table
from kvm_dbg.errors import KvmDbgError

SAMPLE_ROWS = 100  # rows that are looked at before the widths of a text table are settled
NUMERIC = ("number", "float", "address", "duration")
# C0 and C1 controls, DEL, and the Unicode marks that turn text around: a dump's strings must not drive the terminal.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    code: f"\\u{code:04x}"
    for code in (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
}
SAFE_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./-_")
LINE_CONTROLS = {code: text for code, text in CONTROLS.items() if code != ord("\t")}


def printable(text: str | bytes) -> str:
    r"""Return text that is safe to print on one line: bytes that are not UTF-8 and control characters as \xNN."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return text if text.isascii() and text.isprintable() else text.translate(CONTROLS)


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


def format_cell(column: Column, cell: Cell) -> str:
    """Return a cell as text for people; None is "-"."""
    if cell is None:
        return "-"
    kind = column.kind
    if kind == "address" and isinstance(cell, int):
        return f"{cell:#x}"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if kind == "duration" and isinstance(cell, (int, float)):
        return format_duration(cell)
    if kind == "float" and isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, list):
        return " ".join(map(quoted, cell)) if kind == "argv" else ", ".join(map(printable, cell)) or "-"
    return printable(cell) if isinstance(cell, str) else str(cell)


def json_cell(column: Column, cell: Cell) -> Cell:
    """Return a cell as JSON shall have it: addresses as strings, since 64 bits do not survive every JSON reader."""
    if column.kind == "address" and isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:#x}"
    return cell


def render_text(table: Table) -> Iterator[str]:
    """Yield the table for people: a heading line and aligned columns, or "name: value" lines if single."""
    if table.text is not None:
        for line in table.text:
            yield f"{line}\n"
        return
    shown = [index for index, column in enumerate(table.columns) if not column.extra]
    columns = [table.columns[index] for index in shown]
    if table.single:
        width = max(len(column.name) for column in columns)
        for row in table.rows:
            for index, column in zip(shown, columns, strict=True):
                if row[index] is not None and row[index] != []:
                    yield f"{column.name.lower():>{width}}: {format_cell(column, row[index])}\n"
        return
    yield from _render_columns(columns, ([row[index] for index in shown] for row in table.rows))


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
    right = [column.kind in NUMERIC for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        ]
        return " ".join(padded).rstrip() + "\n"

    yield line([column.name for column in columns])
    for cells in sample:
        yield line(cells)
    if failure is not None:
        raise failure
    for row in iterator:
        yield line([format_cell(column, cell) for column, cell in zip(columns, row, strict=True)])


def render_json(table: Table) -> Iterator[str]:
    """Yield one object if single, else an array with one object per line; valid JSON even if the rows fail midway."""
    import json

    keys = [column.key for column in table.columns]

    def text(row: Sequence[Cell]) -> str:
        cells = [json_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)]
        return json.dumps(dict(zip(keys, cells, strict=True)))

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

    def take() -> str:
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    writer.writerow([column.key for column in table.columns])
    yield take()
    for row in table.rows:
        cells = [json_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)]
        writer.writerow([" ".join(cell) if isinstance(cell, list) else cell for cell in cells])
        yield take()


RENDERERS = {"text": render_text, "json": render_json, "csv": render_csv}
