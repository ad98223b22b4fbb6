"""What records of the kernel's log have in common, and the log of kernels before v5.10.

Source: kernel/printk/printk.c. The old buffer holds records of `struct printk_log`: a header, the text, and a
dictionary of NUL-separated KEY=value strings, padded to `len` bytes. It is read from `log_first_idx` on; a `len` of 0
leads back to the start. Facility and level are bit-fields whose place differs with the byte order: the type tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import StructType
from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.kernel.base import LogRecord
from kvm_dbg.kernel.layout import Layout, Names, decode_text, read_number, read_pointer
from kvm_dbg.kernel.linux.window import Window

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NSEC = 1e9
CALLER_IS_CPU = 0x80000000  # printk_caller_id()
MAX_BUFFER = 1 << 31  # bytes, LOG_BUF_LEN_MAX

HEADER: dict[str, Names] = {
    "ts_nsec": "ts_nsec",
    "len": "len",
    "text_len": "text_len",
    "dict_len": "dict_len",
    "facility": "facility",
    "caller_id": ("caller_id", None),  # with CONFIG_PRINTK_CALLER, since v5.1
}


def format_caller(caller_id: int) -> str:
    """Return who logged, as dmesg shows it: "T123" a task, "C4" a CPU outside of tasks."""
    if caller_id & CALLER_IS_CPU:
        return f"C{caller_id & ~CALLER_IS_CPU}"
    return f"T{caller_id}"


class BitField:
    """Where a bit-field of an integer lies among a struct's bytes."""

    __slots__ = ("_first", "_last", "_little", "_mask", "_shift")

    def __init__(self, struct: StructType, name: str, byteorder: str) -> None:
        member = struct.member(name)
        bits = member.bit_size or 8
        self._first = member.bit_offset >> 3
        self._last = (member.bit_offset + bits + 7) >> 3
        self._mask = (1 << bits) - 1
        self._little = byteorder == "little"
        inner = member.bit_offset & 7
        self._shift = inner if self._little else 8 * (self._last - self._first) - inner - bits

    def get(self, data: bytes) -> int:
        """Return the field's value in the struct whose bytes are `data`."""
        raw = data[self._first : self._last]
        return int.from_bytes(raw, "little" if self._little else "big") >> self._shift & self._mask


def for_each_old_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the records of the buffer before v5.10, oldest first.

    Raises:
        ReadError, CorruptError: the buffer cannot be followed; what comes before has been yielded.
    """
    symbols, types = kernel.symbols, kernel.types
    size = read_number(kernel, symbols.address("log_buf_len"), 4)
    index, stop = (read_number(kernel, symbols.address(name), 4) for name in ("log_first_idx", "log_next_idx"))
    sequence, end = (read_number(kernel, symbols.address(name), 8) for name in ("log_first_seq", "log_next_seq"))
    name = "struct printk_log" if types.find_type("struct printk_log") is not None else "struct log"
    layout = Layout(types, name, HEADER, kernel.arch.byteorder)
    level = BitField(types.struct(name), "level", kernel.arch.byteorder)
    header = layout.struct_size
    if not header <= size <= MAX_BUFFER or index >= size or stop > size:
        where = symbols.address("log_buf_len")
        raise CorruptError(where, f"the log's buffer of {size} bytes begins at {index} and ends at {stop}")
    if end - sequence > size // header:
        raise CorruptError(symbols.address("log_next_seq"), f"the log counts {end - sequence} records in {size} bytes")
    buffer = Window(kernel, read_pointer(kernel, symbols.address("log_buf")), size, "the log's buffer")
    for number in range(sequence, end):
        data = buffer.read(index, header) if index + header <= size else bytes(header)
        record = layout.decode(buffer.address + index, data[layout.start :])
        if not record["len"]:
            index = 0
            data = buffer.read(index, header)
            record = layout.decode(buffer.address, data[layout.start :])
        length, text_size, dictionary_size = record["len"], record["text_len"], record["dict_len"]
        if length < header + text_size + dictionary_size or index + length > size:
            raise CorruptError(record.address, f"a record of the log claims {length} bytes, {text_size} of them text")
        unread: tuple[str, ...] = ()
        try:
            body = buffer.read(index + header, text_size + dictionary_size)
            text = decode_text(body[:text_size])
        except ReadError as error:
            body, text, unread = b"", describe_loss(error), ("text", "dictionary")
        yield LogRecord(
            sequence=number,
            seconds=record["ts_nsec"] / NSEC,
            facility=record["facility"],
            level=level.get(data),
            text=text,
            caller=format_caller(record["caller_id"]) if "caller_id" in record else None,
            dictionary=split_dictionary(body[text_size:]),
            unread=unread,
        )
        index += length


def split_dictionary(data: bytes) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a dictionary of NUL-separated KEY=value strings."""
    pairs = []
    for entry in data.split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals:
            pairs.append((decode_text(key), decode_text(value)))
    return tuple(pairs)


def describe_loss(error: Exception) -> str:
    """Return what stands in the place of a text that cannot be read."""
    return f"(the text of this record cannot be read: {error})"
