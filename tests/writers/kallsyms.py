"""Write the tables of kallsyms, as scripts/kallsyms.c emits them, at addresses of the test's choice."""

from __future__ import annotations

import struct

from kvm_dbg.symbols.kallsyms_table import Places

TOKENS = {200: b"_", 201: b"init_", 202: b"task", 203: b"sys_"}  # what compression found; other numbers are characters


def compress(text: bytes) -> bytes:
    """Return a name as token numbers, the longest token first."""
    out = bytearray()
    while text:
        number, token = max(
            ((number, token) for number, token in TOKENS.items() if text.startswith(token)),
            key=lambda pair: len(pair[1]),
            default=(text[0], text[:1]),
        )
        out.append(number)
        text = text[len(token) :]
    return bytes(out)


def write_names(symbols: list[tuple[str, str, int]]) -> bytes:
    """Return kallsyms_names of (letter, name, address)."""
    out = b""
    for letter, name, _ in symbols:
        packed = compress((letter + name).encode())
        size = len(packed)
        out += (bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])) + packed
    return out


def write_tokens() -> tuple[bytes, bytes]:
    """Return kallsyms_token_table and kallsyms_token_index."""
    table, index = b"", b""
    for number in range(256):
        index += struct.pack("<H", len(table))
        table += TOKENS.get(number, bytes([number]) if 33 <= number < 127 else b"") + b"\0"
    return table, index


def write_kallsyms(
    symbols: list[tuple[str, str, int]], rule: str, at: int, base: int = 0
) -> tuple[dict[int, bytes], Places]:
    """Return memory (address -> bytes) and the places of the tables, from `at` on.

    rule: "absolute-percpu", "relative" or "place-relative"; base: relative_base.
    """
    table, index = write_tokens()
    names = write_names(symbols)
    num_at, base_at, names_at = at, at + 8, at + 16
    table_at = names_at + (len(names) + 7 & ~7)
    index_at = table_at + (len(table) + 7 & ~7)
    offsets_at = index_at + 512
    offsets = b""
    for number, (_, _, address) in enumerate(symbols):
        if rule == "absolute-percpu":
            offsets += struct.pack("<i", base - 1 - address if address >= base else address)
        elif rule == "relative":
            offsets += struct.pack("<I", address - base)
        else:
            offsets += struct.pack("<i", address - (offsets_at + 4 * number))
    memory = {
        num_at: struct.pack("<I", len(symbols)) + bytes(4) + struct.pack("<Q", base),
        names_at: names.ljust(table_at - names_at, b"\0") + table.ljust(index_at - table_at, b"\0") + index + offsets,
    }
    places = Places(names_at, num_at, table_at, index_at, offsets_at, None if rule == "place-relative" else base_at)
    return memory, places


def write_old_kallsyms(symbols: list[tuple[str, str, int]], at: int, base: int, marker: str) -> tuple[bytes, Places]:
    """Return the tables as kernels before 6.4 order them, from `at` on, and where they are.

    marker: struct's code of a marker, "I" (since 4.20) or "Q".
    """

    def pad(data: bytes) -> bytes:
        return data.ljust(len(data) + 7 & ~7, b"\0")

    signed = [base - 1 - address if address >= base else address for _, _, address in symbols]
    offsets = struct.pack(f"<{len(signed)}i", *signed)
    names, markers = b"", b""
    for number in range(0, len(symbols), 256):
        markers += struct.pack("<" + marker, len(names))
        names += write_names(symbols[number : number + 256])
    table, index = write_tokens()
    start = at + len(pad(offsets))
    body = pad(offsets) + struct.pack("<QQ", base, len(symbols)) + pad(names) + pad(markers)
    token_table = at + len(body)
    body += pad(table)
    return body + index, Places(start + 16, start + 8, token_table, at + len(body), at, start)
