"""The text of a message buffer, made into records.

Sources: sys/kern/subr_log.c and subr_prf.c of both systems: characters in a ring, oldest first once it is unrolled,
with NUL where nothing was written yet; dmesg(8) leaves NULs out, and takes "<pri>" at the start of a line, a facility
and level as in syslog(3), for what it is. There are no times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvm_dbg.kernel.base import LogRecord
from kvm_dbg.kernel.layout import decode_text

PRIORITY = re.compile(rb"<(\d{1,3})>")
LEVEL_BITS = 3


def unroll(ring: bytes, write: int) -> bytes:
    """Return a ring's characters, oldest first; `write` is where the next one would go."""
    return (ring[write:] + ring[:write]).replace(b"\0", b"")


def for_each_record(text: bytes) -> Iterator[LogRecord]:
    """Yield a record for each line of `text`; a last line without its end counts."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for sequence, line in enumerate(lines):
        found = PRIORITY.match(line)
        priority = int(found[1]) if found is not None else None
        yield LogRecord(
            sequence=sequence,
            seconds=None,
            facility=None if priority is None else priority >> LEVEL_BITS,
            level=None if priority is None else priority & (1 << LEVEL_BITS) - 1,
            text=decode_text(line[found.end() :] if found is not None else line),
        )
