"""Notes of an image: VMCOREINFO, registers of each CPU, what QEMU adds; and what they tell of the image.

Facts: `Documentation/admin-guide/kdump/vmcoreinfo.rst` in the kernel's source for VMCOREINFO (text, NAME=VALUE lines,
note name "VMCOREINFO", type 0); include/uapi/linux/elf.h for NT_PRSTATUS and its like; QEMU's target/i386/arch_dump.c
for the note "QEMU".
"""

from __future__ import annotations

from kvm_dbg.elf import Buffer, for_each_note
from kvm_dbg.errors import FormatError
from kvm_dbg.image.base import Note

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
VMCOREINFO = "VMCOREINFO"
MAX_AREA = 1 << 26  # bytes: 3 KiB for each of 8192 CPUs are 24 MiB


def read_notes(data: Buffer, order: str, path: str, offset: int = 0) -> tuple[tuple[Note, ...], tuple[str, ...]]:
    """Return the notes in `data`, and a sentence for each reason why some are missing.

    A damaged note costs itself and what follows it, not the image. `order` is struct's byte-order character,
    `offset` where `data` starts in the file.
    """
    notes: list[Note] = []
    try:
        for name, kind, desc, _ in for_each_note(data, order, 0, len(data), path):
            notes.append(Note(name, kind, desc))
    except FormatError as error:
        place = offset + error.offset
        return tuple(notes), (f"the notes are damaged from file offset {place:#x} on: {error.field}",)
    return tuple(notes), ()


def find_vmcoreinfo_value(notes: tuple[Note, ...], key: str) -> str | None:
    """Return the value of `key` in the VMCOREINFO note, None if there is no such note or line."""
    for note in notes:
        if note.name == VMCOREINFO:
            for line in note.desc.decode("utf-8", "replace").splitlines():
                name, _, value = line.partition("=")
                if name == key:
                    return value.strip("\0")
    return None
