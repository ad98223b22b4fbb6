"""The page map of FreeBSD's minidumps: from kernel addresses to physical ones.

A minidump does not hold the top of the kernel's page tables among its pages; it has a part of its own, the pmap. What
is in it differs between machines and versions, and is written down here as data, in `FORMATS`: entries of one level,
from the kernel's first address on, with further levels in the dumped pages. The direct map needs no entry.
powerpc64's hashed page table is another thing, in `freebsd_minidump_hash`.

Facts: FreeBSD `lib/libkvm/kvm_{amd64,aarch64,i386,riscv,powerpc64}.h` (bits of entries) and
`kvm_minidump_{amd64,aarch64,i386,riscv,powerpc64_radix}.c`, `sys/*/*/minidump_machdep.c` (what is written: large
pages appear as entries of the pmap's level, all entries of a hole as zero).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from kvm_dbg.errors import NotInImageError, NotMappedError, ReadError, UnsupportedError
from kvm_dbg.image.base import ReadPhys
from kvm_dbg.image.freebsd_minidump_hash import HashedTable
from kvm_dbg.image.freebsd_minidump_header import MinidumpHeader
from kvm_dbg.image.source import Source

CHUNK = 4096
MAX_CHUNKS = 1 << 12


class EntryFormat(NamedTuple):
    """One kind of page table.

    levels: name and log2 of the bytes an entry maps, from the pmap's own level down to pages. size: bytes of an entry.
    valid: bits of which all must be set; some: bits of which one must be, 0 if there are none. large: the bit of a
    large page above the lowest level, 0 if there are none. address: the bits of the address, to be shifted left by
    `shift`; table: the same of an entry that leads to a table. whole_space: the pmap is a root table, indexed with
    the bits of the address, not with its distance from the kernel's first one. byteorder: of entries.
    """

    levels: tuple[tuple[str, int], ...]
    size: int
    valid: int
    address: int
    table: int = 0
    some: int = 0
    large: int = 0
    shift: int = 0
    whole_space: bool = False
    byteorder: Literal["little", "big"] = "little"


_PAGE_FRAME = 0x000F_FFFF_FFFF_F000
_AMD64_PTE = EntryFormat((("PTE", 12),), 8, 1, _PAGE_FRAME)
_AMD64_PDE = EntryFormat((("PDE", 21), ("PTE", 12)), 8, 1, _PAGE_FRAME, table=_PAGE_FRAME, large=0x80)
_ARM64 = EntryFormat((("L3", 12),), 8, 3, 0x0000_FFFF_FFFF_F000)
_ARM64_16K = EntryFormat((("L3", 14),), 8, 3, 0x0000_FFFF_FFFF_C000)
_RISCV = EntryFormat((("PTE", 12),), 8, 1, 0x003F_FFFF_FFFF_FC00, some=0xE, shift=2)
_I386 = EntryFormat((("PTE", 12),), 4, 1, 0xFFFF_F000)
_I386_PAE = EntryFormat((("PTE", 12),), 8, 1, _PAGE_FRAME)
_RADIX = EntryFormat(
    (("RPDE 1", 39), ("RPDE 2", 30), ("RPDE 3", 21), ("RPTE", 12)),
    8,
    1 << 63,
    0x00FF_FFFF_FFFF_F000,
    table=0x00FF_FFFF_FFFF_FF00,
    large=1 << 62,
    whole_space=True,
    byteorder="big",
)

FORMATS: dict[tuple[str, int], EntryFormat] = {  # by platform and version
    ("amd64", 1): _AMD64_PTE,
    ("amd64", 2): _AMD64_PDE,
    ("amd64", 3): _AMD64_PDE,
    ("arm64", 1): _ARM64,
    ("arm64", 2): _ARM64,
    ("arm64", 3): _ARM64,
    ("riscv", 1): _RISCV,
    ("riscv", 2): _RISCV,
    ("i386", 1): _I386,
    ("i386", 2): _I386,
}
_HASHED = ("mmu_g5", "mmu_phyp")  # powerpc64's mmu_name
_RADIX_NAME = "mmu_radix"


class MinidumpMap:
    """The page map of one minidump.

    Attributes:
        kernbase: the first virtual address that the pmap is about.
        direct_map: (first, last + 1) virtual address of the direct map; equal if there is none.
        direct_map_phys: the physical address that its first byte maps.
    """

    def __init__(self, source: Source, header: MinidumpHeader) -> None:
        fields = header.fields
        self._source = source
        self._header = header
        self._offset = header.pmap_offset
        self._size = fields["pmapsize"]
        self._chunks: dict[int, bytes] = {}
        self._end = 1 << header.word_bits
        self.kernbase = fields["kernbase"]
        last = fields.get("dmapend", 0)
        self.direct_map = (fields.get("dmapbase", 0), last + 1 if header.platform == "powerpc64" else last)
        self.direct_map_phys = fields.get("dmapphys", 0)
        self._hashed = HashedTable(fields) if header.mmu_name in _HASHED else None
        self._format = _find_format(header)

    def translate_page(self, read_phys: ReadPhys, vaddr: int) -> tuple[int, int]:
        """Return (paddr of the page that holds `vaddr`, its size in bytes); `read_phys` reads lower tables.

        Raises:
            NotMappedError: neither the direct map nor the page map has it.
            ReadError: an entry is not in the file.
            UnsupportedError: powerpc64's page tables are of a kind that is not known.
        """
        low, high = self.direct_map
        page_shift = self._header.page_shift
        if low <= vaddr < high:
            return vaddr - low + self.direct_map_phys >> page_shift << page_shift, 1 << page_shift
        if not self.kernbase <= vaddr < self._end:
            raise NotMappedError(vaddr, f"a minidump knows kernel addresses only, from {self.kernbase:#x} on")
        if self._hashed is not None:
            return self._hashed.find(self._read_pmap, vaddr)
        if self._format is None:
            raise UnsupportedError(f"the page table {self._header.mmu_name!r}", self._source.path)
        return self._walk(self._format, read_phys, vaddr)

    def _walk(self, form: EntryFormat, read_phys: ReadPhys, vaddr: int) -> tuple[int, int]:
        """Walk from the entry in the pmap down; the arguments and errors are those of `translate_page`."""
        name, shift = form.levels[0]
        count = self._size // form.size
        index = vaddr >> shift & count - 1 if form.whole_space else vaddr - self.kernbase >> shift
        if index >= count:
            raise NotMappedError(vaddr, f"it is past the end of the page map, which has {count} entries")
        entry = int.from_bytes(self._read_pmap(index * form.size, form.size, vaddr), form.byteorder)
        entry_paddr: int | None = None
        for depth, (name, shift) in enumerate(form.levels):
            if entry & form.valid != form.valid or (form.some and not entry & form.some):
                raise self._invalid(vaddr, name, entry, entry_paddr, index * form.size)
            if depth == len(form.levels) - 1 or entry & form.large:
                return (entry & form.address) << form.shift & -(1 << shift), 1 << shift
            following, below = form.levels[depth + 1]
            mask = (1 << shift - below) - 1
            entry_paddr = (entry & form.table) + (vaddr >> below & mask) * form.size
            try:
                entry = int.from_bytes(read_phys(entry_paddr, form.size), form.byteorder)
            except NotInImageError as error:
                role = f"the {following} of virtual address {vaddr:#x}"
                raise NotInImageError(error.address, error.size, error.reason, error.path, role) from None
        raise NotMappedError(vaddr, "the page map has no levels")

    def _invalid(self, vaddr: int, name: str, entry: int, entry_paddr: int | None, place: int) -> NotMappedError:
        """Return the error for an entry that maps nothing, in the pmap at `place`, or in memory."""
        reason = "not valid" if entry else "the entry is empty"
        if entry_paddr is not None:
            return NotMappedError(vaddr, reason, level=name, entry=entry, entry_paddr=entry_paddr)
        where = f"{name} {entry:#018x} of the page map, at file offset {self._offset + place:#x}"
        return NotMappedError(vaddr, f"{reason} ({where})")

    def _read_pmap(self, at: int, size: int, vaddr: int) -> bytes:
        """Return `size` bytes at `at` of the pmap, for the translation of `vaddr`; they do not cross a chunk."""
        number, within = divmod(at, CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            if len(self._chunks) >= MAX_CHUNKS:
                self._chunks.clear()
            start = number * CHUNK
            chunk = self._source.read(self._offset + start, min(CHUNK, self._size - start))
            self._chunks[number] = chunk
        data = chunk[within : within + size]
        if len(data) < size:
            text = f"{self._source.path}: the file ends before offset {self._offset + at:#x}, where the page map"
            raise ReadError(vaddr, f"{text} has virtual address {vaddr:#x}")
        return data


def _find_format(header: MinidumpHeader) -> EntryFormat | None:
    """Return how the header's machine keeps its page map, None for one that is not known."""
    if header.platform == "powerpc64":
        radix = header.mmu_name == _RADIX_NAME and header.fields["pmapsize"] == 1 << 16
        return _RADIX if radix else None
    if header.platform == "i386" and header.fields["paemode"]:
        return _I386_PAE
    return _ARM64_16K if header.page_shift == 14 else FORMATS[header.platform, header.version]
