"""Write the memory and the kernel file of a very small x86_64 "Linux": what finding a kernel needs, and nothing else.

The numbers are the kernel's: text at 16 MiB above __START_KERNEL_map, the direct map where 4 or 5 levels put it.
"""

from __future__ import annotations

import struct

from kvm_dbg.image.base import BytesImage, ImageInfo, Note
from tests.writers.page_table import PAGE, PageTables

START_KERNEL_MAP = 0xFFFFFFFF80000000
TEXT = START_KERNEL_MAP + 0x1000000  # link address of _stext
BANNER = TEXT + 0x200100
NOTES = TEXT + 0x200800
BTF = TEXT + 0x201000
TOP_TABLE = TEXT + 0x400000
UTS = TEXT + 0x401010
VMCOREINFO_POINTER = TEXT + 0x402008
E820_POINTER = TEXT + 0x402010
DIRECT = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}


def gnu_note(build_id: bytes) -> bytes:
    """Return an ELF note of a build-id."""
    return struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id


def utsname(release: str, version: str) -> bytes:
    """Return a struct new_utsname."""
    return b"".join(text.encode().ljust(65, b"\0") for text in ("Linux", "node", release, version, "x86_64", "(none)"))


def banner(release: str, version: str) -> bytes:
    """Return the text of linux_banner."""
    return f"Linux version {release} (me@here) (gcc 12) {version}\n\0".encode()


class LinuxMemory:
    """One kernel in memory.

    slide, phys_base: as the kernel reports them, multiples of 2 MiB. info_paddr: where its VMCOREINFO text is, None
    for nowhere. info: lines to change in it (None takes one away). uts_offset: of `name` in struct uts_namespace.
    """

    def __init__(
        self,
        *,
        levels: int = 4,
        slide: int = 0x3000000,
        phys_base: int = 0x5000000,
        release: str = "6.1.0-test",
        version: str = "#1 SMP Test",
        build_id: bytes = bytes(range(1, 21)),
        info_paddr: int | None = 0x7654000,
        info: dict[str, str | None] | None = None,
        uts_offset: int = 0,
        encryption_mask: int = 0,
        table_paddr: int = 0x100000,
        btf: bytes = b"",
        e820: tuple[tuple[int, int, int], ...] = ((0, 0x40000000, 1),),
    ) -> None:
        self.levels = levels
        self.slide = slide
        self.phys_base = phys_base
        self.release = release
        self.version = version
        self.build_id = build_id
        self.root = self.paddr_of(TOP_TABLE)
        tables = self.tables = PageTables(levels, self.root, table_paddr)
        for part in range(4):
            link = TEXT + part * 0x200000
            tables.map(link + slide, self.paddr_of(link), level=2)
        for gigabyte in range(8):
            tables.map(DIRECT[levels] + (gigabyte << 30), gigabyte << 30, level=3)
        tables.page(self.paddr_of(BANNER) & -PAGE)
        self.write(BANNER, banner(release, version))
        self.write(NOTES, gnu_note(build_id))
        self.btf = btf
        tables.page(self.paddr_of(BTF), btf)
        tables.page(self.paddr_of(UTS) & -PAGE)
        self.write(UTS + uts_offset, utsname(release, version))
        tables.page(self.paddr_of(VMCOREINFO_POINTER) & -PAGE)
        self.text = self.vmcoreinfo(uts_offset, encryption_mask, info or {})
        if info_paddr is not None:
            tables.page(info_paddr, self.text)
            self.write(VMCOREINFO_POINTER, struct.pack("<Q", DIRECT[levels] + info_paddr))
        table = self.paddr_of(E820_POINTER) & -PAGE | 0x800
        rows = b"".join(struct.pack("<QQI", *row) for row in e820)
        self.put(table, struct.pack("<I", len(e820)) + rows)
        self.write(E820_POINTER, struct.pack("<Q", E820_POINTER + slide & -PAGE | 0x800))
        if encryption_mask:
            for paddr in list(tables.memory):
                self._encrypt(paddr, encryption_mask)

    def _encrypt(self, paddr: int, mask: int) -> None:
        """Set the mask in every entry of a page that is a page table."""
        if paddr == self.root or 0x100000 <= paddr < self.tables._next:
            for place in range(paddr, paddr + PAGE, 8):
                if self.tables.get(place):
                    self.tables.put(place, self.tables.get(place) | mask)

    def paddr_of(self, link: int) -> int:
        """Return where a linked address is in physical memory."""
        return link + self.slide - START_KERNEL_MAP + self.phys_base

    def put(self, paddr: int, data: bytes) -> None:
        """Write into a page that is there."""
        page = self.tables.memory[paddr & -PAGE]
        page[paddr % PAGE : paddr % PAGE + len(data)] = data

    def write(self, link: int, data: bytes) -> None:
        """Write at a linked address."""
        self.put(self.paddr_of(link), data)

    def vmcoreinfo(self, uts_offset: int, encryption_mask: int, changes: dict[str, str | None]) -> bytes:
        """Return the VMCOREINFO text."""
        lines: dict[str, str | None] = {
            "OSRELEASE": self.release,
            "BUILD-ID": self.build_id.hex(),
            "PAGESIZE": "4096",
            "SYMBOL(init_uts_ns)": f"{UTS + self.slide:x}",
            "OFFSET(uts_namespace.name)": f"{uts_offset}",
            "SYMBOL(swapper_pg_dir)": f"{TOP_TABLE + self.slide:x}",
            "SYMBOL(_stext)": f"{TEXT + self.slide:x}",
            "NUMBER(phys_base)": f"{self.phys_base}",
            "SYMBOL(init_top_pgt)": f"{TOP_TABLE + self.slide:x}",
            "NUMBER(pgtable_l5_enabled)": f"{int(self.levels == 5)}",
            "KERNELOFFSET": f"{self.slide:x}",
            "NUMBER(sme_mask)": f"{encryption_mask}",
            **changes,
        }
        return "".join(f"{key}={value}\n" for key, value in lines.items() if value is not None).encode()

    def qemu_note(self, root: int | None = None) -> Note:
        """Return QEMU's note of a CPU that uses these page tables."""
        control = (
            0x80050033,
            0,
            0,
            (self.root if root is None else root) | 0x005,
            0x1000 if self.levels == 5 else 0x20,
        )
        desc = struct.pack("<II", 1, 440) + bytes(18 * 8 + 10 * 24) + struct.pack("<6Q", *control, 0)
        return Note("QEMU", 0, desc)

    def image(
        self, *notes: Note, info: ImageInfo | None = None, and_also: dict[int, bytes] | None = None
    ) -> BytesImage:
        """Return the image."""
        return BytesImage(self.tables.segments() | (and_also or {}), notes=notes, info=info)

    def noted_image(self) -> BytesImage:
        """Return the image with the VMCOREINFO note."""
        return self.image(Note("VMCOREINFO", 0, self.text), info=ImageInfo("bytes", machine="x86_64"))

    def symbols(self) -> dict[str, int]:
        """Return the names and link addresses that its kernel file has."""
        return {
            "_stext": TEXT,
            "linux_banner": BANNER,
            "__start_notes": NOTES,
            "__stop_notes": NOTES + len(gnu_note(self.build_id)),
            "__start_BTF": BTF,
            "__stop_BTF": BTF + len(self.btf),
            "init_top_pgt": TOP_TABLE,
            "init_uts_ns": UTS,
            "vmcoreinfo_data": VMCOREINFO_POINTER,
            "e820_table": E820_POINTER,
        }

    def vmlinux(self, *, build_id: bool = True, machine: int = 62, moved: int = 0) -> bytes:
        """Return its kernel file; `moved` shifts all symbols."""
        return write_vmlinux(
            {name: address + moved for name, address in self.symbols().items()},
            (BANNER + moved, banner(self.release, self.version)),
            gnu_note(self.build_id) if build_id else b"",
            machine,
        )


def write_vmlinux(
    symbols: dict[str, int],
    rodata: tuple[int, bytes],
    notes: bytes = b"",
    machine: int = 62,
    kind: int = 2,
    more: dict[str, bytes] | None = None,
) -> bytes:
    """Return an ELF file with .text (no bytes), .rodata, .notes (if any), .symtab, their names, and `more` sections."""
    rodata_address, rodata_bytes = rodata
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in symbols)
    table = bytes(24)
    for name, address in symbols.items():
        inside = rodata_address <= address < rodata_address + len(rodata_bytes)
        place = strings.index(b"\0" + name.encode() + b"\0") + 1
        table += struct.pack("<IBBHQQ", place, 0x11, 0, 2 if inside else 1, address, 0)
    text = min(symbols.values(), default=TEXT)
    size = max(symbols.values(), default=TEXT) - text + 0x1000
    # name, type, flags, address, bytes, size, link, entry size
    parts: list[tuple[str, int, int, int, bytes, int, int, int]] = [
        (".text", 8, 6, text, b"", size, 0, 0),
        (".rodata", 1, 2, rodata_address, rodata_bytes, len(rodata_bytes), 0, 0),
        (".symtab", 2, 0, 0, table, len(table), 4, 24),
        (".strtab", 3, 0, 0, strings, len(strings), 0, 0),
    ]
    if notes:
        parts.append((".notes", 7, 2, 0, notes, len(notes), 0, 0))
    parts += [(name, 1, 0, 0, data, len(data), 0, 0) for name, data in (more or {}).items()]
    names = b"\0" + b"".join(part[0].encode() + b"\0" for part in parts) + b".shstrtab\0"
    parts.append((".shstrtab", 3, 0, 0, names, len(names), 0, 0))
    body, headers = b"", bytes(64)
    for name, kind_, flags, address, data, length, link, entry in parts:
        place = names.index(name.encode() + b"\0")
        headers += struct.pack("<IIQQQQIIQQ", place, kind_, flags, address, 64 + len(body), length, link, 0, 1, entry)
        body += data
    header = (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack(
            "<HHIQQQIHHHHHH", kind, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(parts) + 1, len(parts)
        )
    )
    return header + body + headers
