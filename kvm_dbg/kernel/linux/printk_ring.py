"""The kernel's log since v5.10: the lock-free ring.

Sources: kernel/printk/printk_ringbuffer.h and .c. A ring of descriptors (`descs`, and at the same index `infos`) refers
to a ring of text. A descriptor's `state_var` holds its state in the two highest bits (enum desc_state) and its id
below; the ids from `tail_id` to `head_id` may be in use. A text block lies between two logical positions, which grow
without end: their low bits are the place, the bits above count the wraps of the ring. A block begins with its
descriptor's id (a long). One that does not fit before the ring's end is stored at its start: then `begin` is in one
wrap and the block's last byte, next - 1, in the following one. (Since commit 67e1b0052f6b a block may end exactly at
the ring's end, so that `next` alone is in the following wrap.) Positions with bit 0 set mean that there is no text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.kernel.base import LogRecord
from kvm_dbg.kernel.layout import Layout, Names, decode_text, read_pointer
from kvm_dbg.kernel.linux.printk_record import NSEC, BitField, describe_loss, format_caller
from kvm_dbg.kernel.linux.window import Window

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_BITS = 31  # LOG_BUF_LEN_MAX is 2 GiB
MAX_LOST = 1 << 16  # descriptors in a row that cannot be read

LOST = ("sequence", "seconds", "facility", "level", "text")

RING: dict[str, Names] = {
    "count_bits": "desc_ring.count_bits",
    "descs": "desc_ring.descs",
    "infos": "desc_ring.infos",
    "head_id": "desc_ring.head_id",
    "tail_id": "desc_ring.tail_id",
    "size_bits": "text_data_ring.size_bits",
    "data": "text_data_ring.data",
}
DESCRIPTOR: dict[str, Names] = {"state": "state_var", "begin": "text_blk_lpos.begin", "next": "text_blk_lpos.next"}
INFO: dict[str, Names] = {
    "seq": "seq",
    "ts_nsec": "ts_nsec",
    "text_len": "text_len",
    "facility": "facility",
    "flags": "flags",
    "caller_id": "caller_id",
    "subsystem": ("dev_info.subsystem", None),
    "device": ("dev_info.device", None),
}


def for_each_ring_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the records of the ring, oldest first; those that are being written are left out.

    Raises:
        ReadError, CorruptError: the ring's own description cannot be read or cannot be right; too much is missing.
    """
    types, order = kernel.types, kernel.arch.byteorder
    ring = Layout(types, "struct printk_ringbuffer", RING, order).read(
        kernel, read_pointer(kernel, kernel.symbols.address("prb"))
    )
    count_bits, size_bits = ring["count_bits"], ring["size_bits"]
    if not 0 < count_bits <= MAX_BITS or not 0 < size_bits <= MAX_BITS:
        raise CorruptError(ring.address, f"the log has 2^{count_bits} descriptors and 2^{size_bits} bytes of text")
    word = kernel.arch.pointer_size
    id_mask = (1 << 8 * word - 2) - 1
    states = {types.find_enumerator(name) for name in ("desc_committed", "desc_finalized")} - {None} or {1, 2}
    descriptor = Layout(types, "struct prb_desc", DESCRIPTOR, order)
    info = Layout(types, "struct printk_info", INFO, order)
    level = BitField(types.struct("struct printk_info"), "level", order)
    descs = Window(kernel, ring["descs"], descriptor.struct_size << count_bits, "the log's descriptors")
    infos = Window(kernel, ring["infos"], info.struct_size << count_bits, "the log's records")
    text = TextRing(Window(kernel, ring["data"], 1 << size_bits, "the log's text"), size_bits, word)
    tail, head = ring["tail_id"] & id_mask, ring["head_id"] & id_mask
    used = ((head - tail) & id_mask) + 1
    if used > 1 << count_bits:
        raise CorruptError(ring.address, f"the log uses {used} of its {1 << count_bits} descriptors")
    lost = 0
    for number in range(tail, tail + used):
        identity = number & id_mask
        index = identity & ((1 << count_bits) - 1)
        try:
            data = descs.read(index * descriptor.struct_size, descriptor.struct_size)
            found = descriptor.decode(0, data[descriptor.start :])
            state = found["state"] & (1 << 8 * word) - 1
            if state & id_mask != identity or state >> 8 * word - 2 not in states:
                continue
            data = infos.read(index * info.struct_size, info.struct_size)
        except ReadError as error:
            lost += 1
            if lost > MAX_LOST:
                raise
            yield LogRecord(0, 0.0, 0, 0, describe_loss(error), unread=LOST)
            continue
        lost = 0
        record = info.decode(infos.address + index * info.struct_size, data[info.start :])
        unread: tuple[str, ...] = ()
        try:
            line = decode_text(text.read(found["begin"], found["next"], record["text_len"]))
        except (ReadError, CorruptError) as error:
            line, unread = describe_loss(error), ("text",)
        pairs = ((key.upper(), record.text(key)) for key in ("subsystem", "device") if key in record)
        yield LogRecord(
            sequence=record["seq"],
            seconds=record["ts_nsec"] / NSEC,
            facility=record["facility"],
            level=level.get(data),
            text=line,
            caller=format_caller(record["caller_id"]),
            dictionary=tuple(pair for pair in pairs if pair[1]),
            unread=unread,
        )


class TextRing:
    """The ring of text: `window` is its memory, `size_bits` its size, `word` the size of a long in bytes."""

    def __init__(self, window: Window, size_bits: int, word: int) -> None:
        self._window = window
        self._size_bits = size_bits
        self._word = word

    def read(self, begin: int, end: int, length: int) -> bytes:
        """Return the text of the block between the logical positions `begin` and `end`, at most `length` bytes.

        Raises:
            CorruptError: the positions cannot be those of a block.
            ReadError: the text cannot be read.
        """
        if begin & 1 or begin == end:
            return b""
        bits = self._size_bits
        mask = (1 << bits) - 1
        limit = (1 << 8 * self._word) - 1
        size = (end - begin) & limit
        start = begin & mask
        if begin >> bits != ((end - 1) & limit) >> bits:
            start, size = 0, end & mask
        if not self._word <= size <= mask + 1 - start:
            raise CorruptError(
                self._window.address, f"a block of the log's text lies between positions {begin:#x} and {end:#x}"
            )
        return self._window.read(start + self._word, min(length, size - self._word))
