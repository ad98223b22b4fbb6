"""ELF's outside: header, segments, sections, notes, in both classes and byte orders, and with fields wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from kvm_dbg import elf
from kvm_dbg.errors import FileAccessError, FormatError, KvmDbgError, UnknownFormatError, UnsupportedError
from tests.writers.elf import Part, write_elf
from tests.writers.elfcore import Load, write_elfcore, write_note

CLASSES = [(64, "<"), (64, ">"), (32, "<"), (32, ">")]


@pytest.mark.parametrize(("bits", "order"), CLASSES)
@pytest.mark.parametrize("xnum", [False, True])
def test_segments(bits: int, order: str, xnum: bool) -> None:
    loads = [Load(0x1000, b"a" * 10, 20, 0x5000), Load(0x8000, b"b" * 7)]
    file = elf.ElfFile(write_elfcore(loads, bits=bits, order=order, xnum=xnum, machine=22), "x")
    assert (file.header.word_bits, file.header.order, file.header.phnum, file.header.type) == (bits, order, 3, 4)
    assert file.machine == "s390x"
    first, second = file.segments[1:]
    assert (first.type, first.vaddr, first.paddr, first.filesz, first.memsz) == (1, 0x5000, 0x1000, 10, 20)
    assert file.data[first.offset : first.offset + 10] == b"a" * 10
    assert file.data[second.offset : second.offset + 7] == b"b" * 7


@pytest.mark.parametrize(("bits", "order"), CLASSES)
def test_sections(bits: int, order: str) -> None:
    parts = [
        Part(".text", elf.SHT_PROGBITS, 6, b"code"),
        Part(".bss", elf.SHT_NOBITS, 3, b""),
        Part(".text", elf.SHT_PROGBITS, 6, b"again"),
    ]
    file = elf.ElfFile(write_elf(parts, bits=bits, order=order), "x")
    assert [section.name for section in file.sections] == ["", ".text", ".bss", ".text", ".shstrtab"]
    text = file.find_section(".text")
    assert text is not None
    assert text.number == 1
    assert bytes(file.section_data(text)) == b"code"
    assert bytes(file.section_data(file.sections[2])) == b""
    assert file.find_section(".data") is None


def test_note_padding_and_end() -> None:
    # 5-byte name, 3-byte descriptor: both padded to 4, whatever p_align says; a zero header ends the notes
    data = b"JUNK" + write_note("LONG", 1, b"abc") + write_note("QEMU", 0, b"") + bytes(24) + write_note("x", 9, b"")
    notes = list(elf.for_each_note(data, "<", 4, len(data) - 4, "x"))
    assert [(note.name, note.type, note.desc) for note in notes] == [("LONG", 1, b"abc"), ("QEMU", 0, b"")]
    assert data[notes[0].offset : notes[0].offset + 3] == b"abc"


def test_note_that_does_not_fit() -> None:
    good = write_note("CORE", 1, b"12345678")
    with pytest.raises(FormatError) as name:
        list(elf.for_each_note(struct.pack("<III", 100, 0, 1) + bytes(8), "<", 0, 20, "x"))
    assert (name.value.field, name.value.offset) == ("n_namesz", 0)
    with pytest.raises(FormatError) as desc:
        list(elf.for_each_note(good + struct.pack("<III", 4, 100, 1) + bytes(8), "<", 0, len(good) + 20, "x"))
    assert (desc.value.field, desc.value.offset) == ("n_descsz", len(good) + 4)
    with pytest.raises(FormatError):
        list(elf.for_each_note(good, "<", 0, len(good) + 1, "x"))


@pytest.mark.parametrize("where", ["section", "segment"])
def test_build_id(where: str) -> None:
    note = write_note("GNU", 1, b"abi!") + write_note("GNU", 3, b"\x01\x02\x03\x04")
    data = write_elf([Part(".notes", elf.SHT_NOTE, 2, note)]) if where == "section" else write_elfcore([], note)
    assert elf.ElfFile(data, "x").find_build_id() == b"\x01\x02\x03\x04"
    assert elf.ElfFile(write_elf([]), "x").find_build_id() is None


@pytest.mark.parametrize("bits", [64, 32])
def test_compressed_section(bits: int) -> None:
    plain = b"debug" * 100
    for kind, packed in ((1, zlib.compress(plain)), (2, _zstd(plain))):
        head = struct.pack("<IIQQ", kind, 0, len(plain), 1) if bits == 64 else struct.pack("<III", kind, len(plain), 1)
        file = elf.ElfFile(write_elf([Part(".debug", 1, elf.SHF_COMPRESSED, head + packed)], bits=bits), "x")
        assert bytes(file.section_data(file.sections[1])) == plain
    for size in (len(plain) - 1, len(plain) + 1):
        head = struct.pack("<IIQQ", 1, 0, size, 1)
        file = elf.ElfFile(write_elf([Part(".debug", 1, elf.SHF_COMPRESSED, head + zlib.compress(plain))]), "x")
        with pytest.raises(FormatError):
            file.section_data(file.sections[1])


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (struct.pack("<IIQQ", 1, 0, 1 << 40, 1), FormatError),  # would be a terabyte
        (struct.pack("<IIQQ", 1, 0, 10, 1) + b"garbage", FormatError),
        (struct.pack("<IIQQ", 2, 0, 10, 1) + b"garbage", FormatError),
        (struct.pack("<IIQQ", 7, 0, 10, 1), UnsupportedError),
        (b"short", FormatError),
    ],
)
def test_compressed_section_damaged(head: bytes, error: type[Exception]) -> None:
    file = elf.ElfFile(write_elf([Part(".debug", 1, elf.SHF_COMPRESSED, head)]), "x")
    with pytest.raises(error):
        file.section_data(file.sections[1])


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (4, b"\x03", "EI_CLASS"),
        (5, b"\x00", "EI_DATA"),
        (32, b"\xff\xff\xff\xff\xff\xff\xff\x7f", "e_phoff"),
        (54, b"\x08\x00", "e_phentsize"),
        (56, b"\xff\x00", "e_phoff"),  # e_phnum: the table no longer fits
    ],
)
def test_header_field_wrong(offset: int, value: bytes, field: str) -> None:
    data = bytearray(write_elfcore([Load(0, b"abc")]))
    data[offset : offset + len(value)] = value
    with pytest.raises(FormatError) as error:
        _ = elf.ElfFile(data, "file.elf").segments
    assert error.value.field == field
    assert "file.elf" in str(error.value)


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [(40, b"\xff" * 7 + b"\x00", "e_shoff"), (58, b"\x00\x00", "e_shentsize"), (62, b"\x77\x00", "e_shstrndx")],
)
def test_section_field_wrong(offset: int, value: bytes, field: str) -> None:
    data = bytearray(write_elf([Part(".text", 1, 0, b"x")]))
    data[offset : offset + len(value)] = value
    with pytest.raises(FormatError) as error:
        _ = elf.ElfFile(data, "x").sections
    assert error.value.field == field


def test_section_past_the_end() -> None:
    data = bytearray(write_elf([Part(".text", 1, 0, b"x" * 100)]))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<Q", data, shoff + 64 + 24, len(data))  # sh_offset of section 1
    file = elf.ElfFile(data, "x")
    with pytest.raises(FormatError, match=r"\.text"):
        file.section_data(file.sections[1])


def test_every_truncation_of_the_headers() -> None:
    data = write_elfcore([Load(0, b"abc")], write_note("CORE", 1, b"123"))
    table_end = 64 + 2 * 56
    for size in range(table_end):
        with pytest.raises((FormatError, UnknownFormatError)):
            _ = elf.ElfFile(data[:size], "x").segments
    assert len(elf.ElfFile(data[:table_end], "x").segments) == 2


def test_open(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(write_elf([Part(".text", 1, 0, b"code")]))
    with elf.open_elf(path) as file:
        section = file.find_section(".text")
        assert section is not None
        view = file.section_data(section)
    assert bytes(view) == b"code"  # a view outlives the file object


@pytest.mark.parametrize("name", ["missing", "directory", "empty", "text", "device"])
def test_open_fails(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "directory":
        path.mkdir()
    elif name in ("empty", "text"):
        path.write_bytes(b"hello" if name == "text" else b"")
    elif name == "device":
        path = Path("/dev/zero")
    with pytest.raises(KvmDbgError) as error:
        elf.open_elf(path)
    assert isinstance(error.value, UnknownFormatError if name in ("empty", "text") else FileAccessError)
    assert str(path) in str(error.value)
