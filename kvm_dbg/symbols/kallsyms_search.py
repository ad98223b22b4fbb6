"""Find the tables of kallsyms in a kernel's memory, where VMCOREINFO does not say where they are (before 6.0).

Those kernels have them in this order, each at a multiple of 8 (scripts/kallsyms.c write_src() before 6.4): offsets,
relative_base, num_syms, names, markers, token_table, token_index. The digits are characters of many names, and so
among the tokens at their own numbers: ten strings of one digit each are what is looked for. `kallsyms_markers` has the
offset into names of every 256th name, as u32 (unsigned long before 4.20). Each step is checked against the next, and
the result once more by `read_kallsyms`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import pairwise

from kvm_dbg.errors import ReadError
from kvm_dbg.symbols.kallsyms_table import MAX_NAMES_SIZE, MAX_TOKENS_SIZE, Memory, Places

DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
FIRST_DIGIT = ord("0")
TOKENS = 256
STEP = 256  # names from one marker to the next
MAX_MARKERS = 1 << 14
MAX_LAST_NAMES = STEP * 128  # bytes of the names behind the last marker


def search_places(memory: Memory, blocks: Iterable[tuple[int, bytes]]) -> Places | None:
    """Return where the tables are, None if they are not found.

    blocks: (address, bytes) of the kernel's image, in ascending order.
    """
    tail, tail_end = b"", -1
    for vaddr, block in blocks:
        overlap = tail if tail_end == vaddr else b""
        data = overlap + block
        at = data.find(DIGITS)
        while at >= 0:
            try:
                places = _places_at(memory, vaddr - len(overlap) + at)
            except (ReadError, struct.error):
                places = None
            if places is not None:
                return places
            at = data.find(DIGITS, at + 1)
        tail, tail_end = data[-len(DIGITS) :], vaddr + len(block)
    return None


def _places_at(memory: Memory, digits: int) -> Places | None:
    """Return the places if the digits' tokens are at this address."""
    rest = memory.read(digits, MAX_TOKENS_SIZE)
    end = 0
    for _ in range(TOKENS - FIRST_DIGIT):
        end = rest.find(b"\0", end) + 1
        if not end:
            return None
    token_index = digits + end + 7 & ~7
    starts = struct.unpack(f"<{TOKENS}H", memory.read(token_index, 2 * TOKENS))
    if starts[0] or any(low >= high for low, high in pairwise(starts)):
        return None
    token_table = digits - starts[FIRST_DIGIT]
    if token_table & 7 or starts[-1] > end + starts[FIRST_DIGIT]:
        return None
    for size in (4, 8):
        markers = _markers_before(memory, token_table, size)
        if markers is not None:
            places = _places_before(memory, markers, token_table, token_index)
            if places is not None:
                return places
    return None


def _markers_before(memory: Memory, end: int, size: int) -> tuple[int, list[int]] | None:
    """Return (address, values) of the markers that end at `end`, None if there are none of this size in bytes."""
    found: list[int] = []
    chunk = 4096
    start = end
    while len(found) < MAX_MARKERS:
        start = start - 1 & -chunk
        values = struct.unpack(f"<{(end - start) // size}{'I' if size == 4 else 'Q'}", memory.read(start, end - start))
        found = []
        for number in range(len(values) - 1, -1, -1):
            value = values[number]
            if not found and value == 0 and number == len(values) - 1:
                continue  # padding
            if value > MAX_NAMES_SIZE or (found and value >= found[-1]):
                return None
            found.append(value)
            if value == 0:
                return start + size * number, found[::-1]
    return None


def _places_before(memory: Memory, markers: tuple[int, list[int]], token_table: int, token_index: int) -> Places | None:
    """Return the places that fit the markers: the names end before them, and begin behind their own number."""
    end, values = markers
    last = values[-1]
    low = end - last - MAX_LAST_NAMES & ~7
    data = memory.read(low, end - low)
    most = STEP * len(values)
    for start in range(end - last & ~7, low + 8, -8):
        count, above = struct.unpack_from("<II", data, start - 8 - low)
        if above or not most - STEP < count <= most:
            continue
        stop = _skip(data, start + last - low, count - (most - STEP))
        if stop is None or (stop + low + 7 & ~7) != end:
            continue
        if len(values) > 1 and _skip(data, start - low, STEP) != start - low + values[1]:
            continue
        offsets = start - 16 - (4 * count + 7 & ~7)
        return Places(start, start - 8, token_table, token_index, offsets, start - 16)
    return None


def _skip(data: bytes, at: int, count: int) -> int | None:
    """Return where the name `count` names further begins, None past the end."""
    for _ in range(count):
        if at >= len(data):
            return None
        at += data[at] + 1
    return at
