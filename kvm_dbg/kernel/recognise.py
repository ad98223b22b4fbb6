"""Which operating system an image or a kernel file is of, told before a kernel is looked for.

Facts: the System V ABI's EI_OSABI byte, in which FreeBSD's kernels have 9 (its sys/sys/elf_common.h, ELFOSABI_FREEBSD);
the notes of ABI identification whose names are "NetBSD" and "FreeBSD" (NetBSD's sys/sys/exec_elf.h, FreeBSD's
sys/sys/elf_common.h); and one variable that each system's kernels have and the others' do not.
"""

from __future__ import annotations

from kvm_dbg.elf import PT_NOTE, SHT_NOTE, ElfFile, for_each_note
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.symbols.elf import ElfSymbolTable, open_kernel_file

EI_OSABI = 7  # offset in e_ident
ELFOSABI_FREEBSD = 9
NOTES = ("NetBSD", "FreeBSD")
SYMBOLS = {
    "linux_banner": "Linux",  # init/version.c
    "lwp0": "NetBSD",  # sys/kern/init_main.c
    "proc_off_p_pid": "FreeBSD",  # sys/kern/kern_proc.c, since 12
    "thread0_st": "FreeBSD",  # sys/kern/init_main.c
}


def name_system(image: MemoryImage, path: str | None) -> str | None:
    """Return the name of the operating system, None if neither the image nor the kernel file `path` says it."""
    if image.info.system is not None:
        return image.info.system
    if image.find_note("VMCOREINFO") is not None:
        return "Linux"
    if path is None:
        return None
    try:
        with open_kernel_file(path) as elf:
            return name_system_of_file(elf)
    except KvmDbgError:
        return None  # who opens it will say why


def name_system_of_file(elf: ElfFile) -> str | None:
    """Return the name of the kernel file's operating system, None if it does not say. Raises KvmDbgError."""
    if bytes(elf.data[EI_OSABI : EI_OSABI + 1]) == bytes([ELFOSABI_FREEBSD]):
        return "FreeBSD"
    areas = [(segment.offset, segment.filesz) for segment in elf.segments if segment.type == PT_NOTE]
    areas += [(section.offset, section.size) for section in elf.sections if section.type == SHT_NOTE]
    for offset, size in areas:
        for note in for_each_note(elf.data, elf.header.order, offset, size, elf.path):
            if note.name in NOTES:
                return note.name
    found = ElfSymbolTable(elf).find_many(SYMBOLS)
    return next((system for name, system in SYMBOLS.items() if name in found), None)
