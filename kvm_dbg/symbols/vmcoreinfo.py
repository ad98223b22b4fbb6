"""VMCOREINFO: what a Linux kernel says of itself, as lines of KEY=VALUE.

Written by kernel/vmcore_info.c (kernel/crash_core.c before 6.9, kernel/kexec_core.c before 4.13) into one page
that begins with "OSRELEASE=", and handed on as the ELF note "VMCOREINFO". Keys are plain ("OSRELEASE",
"KERNELOFFSET"), or wrapped: SYMBOL(name) and KERNELOFFSET in hexadecimal without 0x, SIZE(type), OFFSET(type.member)
and LENGTH(name) in decimal, NUMBER(name) in decimal, possibly negative, or as 0x... The block is cut off where its
page is full.
"""

from __future__ import annotations

from collections.abc import Mapping

START = b"OSRELEASE="  # the first bytes of the block, at the start of a page
MAX_SIZE = 1 << 16  # bytes; VMCOREINFO_BYTES is one page, 64 KiB at most on any architecture


class VmcoreInfo:
    """The parsed block; `values` holds every line as text, `text` the whole.

    Lines that are no KEY=VALUE are ignored, and numbers that are none answer None: a damaged block says less, it
    never fails.
    """

    __slots__ = ("text", "values")

    def __init__(self, data: bytes) -> None:
        self.text = data[:MAX_SIZE].partition(b"\0")[0].decode("ascii", "replace")
        values: dict[str, str] = {}
        for line in self.text.split("\n"):
            key, equals, value = line.partition("=")
            if equals:
                values[key.strip()] = value.strip()
        self.values: Mapping[str, str] = values

    @property
    def release(self) -> str | None:
        """Return OSRELEASE."""
        return self.values.get("OSRELEASE") or None

    @property
    def build_id(self) -> str | None:
        """Return BUILD-ID (since 5.9) as 40 lower-case digits; None if absent or not of that shape.

        Some stable kernels write garbage (5.15.168, 6.1.113-6.1.118, 6.6.55-6.6.62, 6.10.14, 6.11.3-6.11.9 ...).
        """
        text = self.values.get("BUILD-ID", "").lower()
        if len(text) != 40 or not text.strip("0") or any(char not in "0123456789abcdef" for char in text):
            return None
        return text

    @property
    def page_size(self) -> int | None:
        """Return PAGESIZE in bytes."""
        return _number(self.values.get("PAGESIZE"))

    @property
    def crash_time(self) -> int | None:
        """Return CRASHTIME, seconds since the epoch; only a crashing kernel writes it."""
        return _number(self.values.get("CRASHTIME"))

    @property
    def kernel_offset(self) -> int | None:
        """Return KERNELOFFSET, the KASLR slide in bytes."""
        return _hexadecimal(self.values.get("KERNELOFFSET"))

    def symbol(self, name: str) -> int | None:
        """Return SYMBOL(name): a run-time address."""
        return _hexadecimal(self.values.get(f"SYMBOL({name})"))

    def number(self, name: str) -> int | None:
        """Return NUMBER(name)."""
        return _number(self.values.get(f"NUMBER({name})"))

    def size(self, name: str) -> int | None:
        """Return SIZE(name) in bytes."""
        return _number(self.values.get(f"SIZE({name})"))

    def offset(self, name: str) -> int | None:
        """Return OFFSET(type.member) in bytes."""
        return _number(self.values.get(f"OFFSET({name})"))

    def length(self, name: str) -> int | None:
        """Return LENGTH(name), a number of elements."""
        return _number(self.values.get(f"LENGTH({name})"))


def _number(text: str | None) -> int | None:
    """Return a number written as %d, %ld or 0x%lx."""
    if not text or len(text) > 24:
        return None
    try:
        return int(text, 16) if text[:2].lower() == "0x" else int(text, 10)
    except ValueError:
        return None


def _hexadecimal(text: str | None) -> int | None:
    """Return a number written as %lx, with or without 0x."""
    if not text or len(text) > 18:
        return None
    try:
        value = int(text, 16)
    except ValueError:
        return None
    return value if 0 <= value < 1 << 64 else None
