"""Memory devices of a running machine, by stand-ins: what is refused, and what is said then."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import FileAccessError, NotInImageError, UnknownFormatError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import Presence, Range
from kvm_dbg.image.live import NO_ADDRESS, find_lockdown, open_kcore, open_physical
from kvm_dbg.image.source import Source

PAGE = 4096
LOW, HIGH = 1 << 20, 3 << 20
IOMEM = "00000000-0009ffff : System RAM\n000a0000-000fffff : Reserved\n00100000-001fffff : System RAM\n"
IOMEM += "  00140000-00150000 : Kernel code\n00200000-002fffff : System RAM\n"


class Device(Source):
    """Physical memory that holds its own page numbers; some pages are refused, as a kernel does it."""

    path = "/dev/mem"
    size = (1 << 63) - 1

    def __init__(self, refused: range = range(0)) -> None:
        self.refused = refused

    def read(self, offset: int, size: int) -> bytes:
        if any(page in self.refused for page in range(offset // PAGE, (offset + size - 1) // PAGE + 1)):
            raise FileAccessError(self.path, f"offset {offset:#x}: Operation not permitted")
        return bytes([(offset + index) // PAGE & 0xFF for index in range(size)])

    def close(self) -> None:
        pass


class Kcore(Source):
    """A file in place of /proc/kcore."""

    path = "/proc/kcore"
    size = (1 << 63) - 1

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size].ljust(size, b"\0")

    def close(self) -> None:
        pass


def make_kcore(segments: list[tuple[int, int, bytes]], notes: bytes = b"") -> bytes:
    """Return an ELF core as fs/proc/kcore.c writes it: (p_vaddr, p_paddr, bytes) of each segment."""
    count = len(segments) + 1
    start = 64 + 56 * count
    body, heads = notes, [struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(notes), 0, 0)]
    for vaddr, paddr, data in segments:
        heads.append(struct.pack("<IIQQQQQQ", 1, 7, start + len(body), vaddr, paddr, len(data), len(data), PAGE))
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + b"".join(heads) + body


def make_note(name: bytes, kind: int, desc: bytes) -> bytes:
    padded = (name + b"\0").ljust((len(name) + 4) // 4 * 4, b"\0")
    return struct.pack("<III", len(name) + 1, len(desc), kind) + padded + desc.ljust((len(desc) + 3) // 4 * 4, b"\0")


def test_kcore_is_read_by_physical_address() -> None:
    note = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
    notes = make_note(b"CORE", 1, bytes(336)) + make_note(b"VMCOREINFO", 0, note)
    segments = [
        (0xFFFFC90000000000, NO_ADDRESS, b"v" * PAGE),  # vmalloc: no physical address
        (0xFFFFFFFF81000000, 0x5000, b"t" * PAGE),  # the text, which is RAM too
        (0xFFFF888000001000, 0x1000, b"a" * PAGE + b"b" * PAGE),
    ]
    image = open_kcore(Kcore(make_kcore(segments, notes)))
    assert list(image.coverage()) == [Range(0x1000, 0x2000, Presence.PRESENT), Range(0x5000, 0x1000, Presence.PRESENT)]
    assert image.read(0x1FFF, 2) == b"ab"
    assert image.read(0x5000, 2) == b"tt"
    assert [(one.name, one.desc) for one in image.notes] == [("VMCOREINFO", note)]
    assert image.live
    assert image.info.release == "6.1.0"
    with pytest.raises(NotInImageError, match="not memory"):
        image.read(0x3000, 8)


def test_kcore_without_physical_addresses() -> None:
    data = make_kcore([(0xFFFF888000001000, 0, b"a" * PAGE), (0xFFFF888000100000, 0, b"b" * PAGE)])
    with pytest.raises(UnknownFormatError, match="has no physical addresses"):
        open_kcore(Kcore(data))


def test_ram_is_where_iomem_says(tmp_path: Path) -> None:
    note = make_note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")
    device = Device()
    plain = device.read
    device.read = lambda offset, size: (note if offset == 0x180000 else plain(offset, size))[:size]  # type: ignore[method-assign]
    place = tmp_path / "vmcoreinfo"
    place.write_text(f"0x0000000000180000 {len(note):x}\n")
    image = open_physical(device, lambda: IOMEM, str(place))
    whole = [Range(0, 0xA0000, Presence.PRESENT), Range(LOW, HIGH - LOW, Presence.PRESENT)]
    assert list(image.coverage()) == whole
    assert image.read(0x105FFF, 2) == b"\x05\x06"
    assert image.info.release == "6.1.0"


def test_a_refused_range_is_reported() -> None:
    image = open_physical(Device(range(LOW // PAGE, (2 << 20) // PAGE)), lambda: IOMEM, "/missing")
    assert list(image.coverage()) == [
        Range(0, 0xA0000, Presence.REFUSED),  # such a kernel shows zeros there
        Range(LOW, 1 << 20, Presence.REFUSED),
        Range(2 << 20, 1 << 20, Presence.PRESENT),
    ]
    quirks = " ".join(image.info.quirks)
    assert "0x100000-0x1fffff is refused (Operation not permitted)" in quirks
    assert "CONFIG_STRICT_DEVMEM" in quirks
    with pytest.raises(NotInImageError, match="is not shown by the running kernel") as caught:
        image.read(LOW, 8)
    assert caught.value.reason == "refused"


def test_a_page_that_is_refused_later() -> None:
    device = Device()
    image = open_physical(device, lambda: IOMEM, "/missing")
    device.refused = range(0x102, 0x103)
    part = image.read_partial(0x101FFF, PAGE + 2)
    assert part.data == b"\x01" + bytes(PAGE) + b"\x03"
    assert part.missing == (Range(0x102000, PAGE, Presence.REFUSED),)


def test_all_refused_is_an_error_with_every_range() -> None:
    with pytest.raises(FileAccessError, match=r"0x100000-0x1fffff is refused .*\n.*0x200000-0x2fffff is refused"):
        open_physical(Device(range(LOW // PAGE, HIGH // PAGE)), lambda: IOMEM, "/missing")


@pytest.mark.parametrize("text", ["", "00000000-00000000 : System RAM\n00000000-00000000 : System RAM\n"])
def test_iomem_without_addresses_takes_privilege(text: str) -> None:
    with pytest.raises(FileAccessError, match=r"does not say where RAM is: .*CAP_SYS_ADMIN"):
        open_physical(Device(), lambda: text, "/missing")


def test_lockdown(tmp_path: Path) -> None:
    path = tmp_path / "lockdown"
    path.write_text("none integrity [confidentiality]\n")
    assert find_lockdown(str(path)) == "confidentiality"
    path.write_text("[none] integrity confidentiality\n")
    assert find_lockdown(str(path)) is None
    assert find_lockdown(str(tmp_path / "missing")) is None


def test_only_ram_can_be_live(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(make_kcore([(0, 0x1000, b"a" * PAGE)]))
    with pytest.raises(Exception, match="is a dump, which does not change"):
        open_image(path, live=True)
    ram = tmp_path / "ram"
    ram.write_bytes(b"\x01" * (1 << 20))
    with open_image(ram, live=True) as image:
        assert image.live
    with open_image(ram) as image:
        assert not image.live
