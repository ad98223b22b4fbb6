"""Opening a kernel: with a kernel file, with a wrong one, with none; and raw RAM with a hole."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import (
    CommandError,
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    KvmDbgError,
    NotMappedError,
    UnknownFormatError,
    UnsupportedError,
)
from kvm_dbg.image import open_image
from kvm_dbg.image.base import BytesImage, ImageInfo, Note
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel, walk_address
from kvm_dbg.kernel.linux import hole, vmlinux
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from kvm_dbg.kernel.write import write_memory
from tests.writers.linux_memory import BANNER, DIRECT, NOTES, TEXT, UTS, LinuxMemory, banner, gnu_note, write_vmlinux


def save(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_a_matching_file(tmp_path: Path) -> None:
    memory = LinuxMemory()
    path = save(tmp_path / "vmlinux", memory.vmlinux())
    kernel = open_kernel(memory.noted_image(), path)
    assert isinstance(kernel, LinuxKernel)
    assert (kernel.release, kernel.slide, kernel.phys_base) == ("6.1.0-test", 0x3000000, 0x5000000)
    assert (kernel.levels, kernel.vmlinux_path, kernel.quirks) == (4, path, ())
    assert kernel.build_id == memory.build_id.hex()
    assert kernel.symbols.address("linux_banner") == BANNER + 0x3000000
    assert kernel.read(BANNER + 0x3000000, 13) == b"Linux version"
    assert kernel.translate(TEXT + 0x3000000) == memory.paddr_of(TEXT)
    assert kernel.read(DIRECT[4] + memory.paddr_of(BANNER), 5) == b"Linux"
    with pytest.raises(NotMappedError):
        kernel.read(0xFFFFC90000000000, 1)
    with pytest.raises(UnsupportedError, match="without debug information"):
        _ = kernel.types


def test_types_from_the_memory_of_the_kernel(tmp_path: Path) -> None:
    # BTF with one type: int, 32 bits, signed (include/uapi/linux/btf.h).
    types = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    strings = b"\0int\0"
    btf = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    memory = LinuxMemory(btf=btf)
    kernel = open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", memory.vmlinux()))
    assert kernel.types.source == "BTF in the image"
    assert kernel.types.size_of("int") == 4


def test_another_build_id(tmp_path: Path) -> None:
    memory = LinuxMemory()
    other = LinuxMemory(build_id=b"x" * 20)
    path = save(tmp_path / "vmlinux", other.vmlinux())
    with pytest.raises(KernelMismatchError) as caught:
        open_kernel(memory.noted_image(), path)
    error = caught.value
    assert (error.what, error.expected, error.found) == ("the build-id", memory.build_id.hex(), (b"x" * 20).hex())
    assert path in str(error)
    kernel = open_kernel(memory.noted_image(), path, force=True)
    assert isinstance(kernel, LinuxKernel)
    assert len(kernel.quirks) == 1
    assert "by force" in kernel.quirks[0]


def test_garbage_in_vmcoreinfo_is_settled_by_the_notes_in_memory(tmp_path: Path) -> None:
    memory = LinuxMemory(info={"BUILD-ID": "ab" * 20})
    kernel = open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", memory.vmlinux()))
    assert isinstance(kernel, LinuxKernel)
    assert "BUILD-ID " + "ab" * 20 + " is wrong" in kernel.quirks[0]
    assert kernel.build_id == memory.build_id.hex()


@pytest.mark.parametrize("value", [None, "\x01\x02", "0" * 40])
def test_no_build_id_in_vmcoreinfo(tmp_path: Path, value: str | None) -> None:
    memory = LinuxMemory(info={"BUILD-ID": value})
    path = save(tmp_path / "vmlinux", memory.vmlinux())
    kernel = open_kernel(memory.noted_image(), path)
    assert isinstance(kernel, LinuxKernel)
    assert kernel.quirks == ()
    memory.write(NOTES, gnu_note(b"y" * 20))
    with pytest.raises(KernelMismatchError) as caught:
        open_kernel(memory.noted_image(), path)
    assert (caught.value.expected, caught.value.found) == ((b"y" * 20).hex(), memory.build_id.hex())


@pytest.mark.parametrize(
    ("release", "version", "what", "expected", "found"),
    [
        ("6.1.0-else", "#1 SMP Test", "the release", "6.1.0-test", "6.1.0-else"),
        ("6.1.0-test", "#2 SMP Test", "the version", "#1 SMP Test", "#2 SMP Test"),
    ],
)
def test_release_and_version_without_build_ids(
    tmp_path: Path, release: str, version: str, what: str, expected: str, found: str
) -> None:
    memory = LinuxMemory(info={"BUILD-ID": None})
    file = LinuxMemory(release=release, version=version).vmlinux(build_id=False)
    with pytest.raises(KernelMismatchError) as caught:
        open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", file))
    assert (caught.value.what, caught.value.expected, caught.value.found) == (what, expected, found)
    same = save(tmp_path / "same", memory.vmlinux(build_id=False))
    assert open_kernel(memory.noted_image(), same).symbols.address("_stext") == TEXT + memory.slide


def test_another_place_of_stext(tmp_path: Path) -> None:
    memory = LinuxMemory()
    with pytest.raises(KernelMismatchError) as caught:
        open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", memory.vmlinux(moved=0x1000)))
    assert caught.value.what == "the address of _stext"
    assert caught.value.expected == f"{TEXT + memory.slide:#x}"
    assert f"{TEXT + 0x1000:#x} + slide 0x3000000" in caught.value.found


def test_another_architecture(tmp_path: Path) -> None:
    memory = LinuxMemory()
    with pytest.raises(KernelMismatchError, match="aarch64"):
        open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", memory.vmlinux(machine=183)))


def test_slide_from_stext_without_kerneloffset(tmp_path: Path) -> None:
    memory = LinuxMemory(info={"KERNELOFFSET": None})
    kernel = open_kernel(memory.noted_image(), save(tmp_path / "vmlinux", memory.vmlinux()))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.slide == memory.slide
    assert kernel.symbols.address("init_uts_ns") == UTS + memory.slide


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", UnknownFormatError, "empty"),
        (b"hello", UnknownFormatError, "not an ELF"),
        (bytes(0x202) + b"HdrS" + bytes(1000), UnknownFormatError, "bzImage"),
        (write_vmlinux({}, (BANNER, b"")), UnknownFormatError, "_stext"),
        (write_vmlinux({"_stext": TEXT}, (BANNER, b""), kind=4), UnknownFormatError, "core"),
        (write_vmlinux({"_stext": TEXT}, (BANNER, b""), kind=1), UnknownFormatError, "module"),
        (LinuxMemory().vmlinux()[:100], FormatError, "e_shoff"),
    ],
)
def test_files_that_are_no_kernel(tmp_path: Path, data: bytes, kind: type[Exception], text: str) -> None:
    path = save(tmp_path / "vmlinux", data)
    with pytest.raises(kind, match=text) as caught:
        open_kernel(LinuxMemory().noted_image(), path)
    assert path in str(caught.value)


def test_a_stripped_file(tmp_path: Path) -> None:
    data = LinuxMemory().vmlinux().replace(b".symtab", b".nosyms")
    headers = bytearray(data)
    # Turn the symbol table's header into plain bytes: type 1 instead of 2, at the third header.
    place = int.from_bytes(headers[40:48], "little") + 3 * 64 + 4
    assert headers[place] == 2
    headers[place] = 1
    with pytest.raises(FormatError, match="stripped"):
        open_kernel(LinuxMemory().noted_image(), save(tmp_path / "vmlinux", bytes(headers)))


def test_a_named_file_never_falls_back(tmp_path: Path) -> None:
    memory = LinuxMemory()
    save(tmp_path / "dir/vmlinux", memory.vmlinux())
    image = memory.noted_image()
    with pytest.raises(FileAccessError, match="No such file"):
        open_kernel(image, str(tmp_path / "gone"), search=(str(tmp_path / "dir"),))
    with pytest.raises(FileAccessError, match=r"directory|regular"):
        open_kernel(image, str(tmp_path), search=(str(tmp_path / "dir"),))


@pytest.mark.parametrize(
    "place",
    [
        "vmlinux",
        "vmlinux-6.1.0-test",
        "boot/vmlinux-6.1.0-test",
        "usr/lib/debug/boot/vmlinux-6.1.0-test",
        "usr/lib/debug/lib/modules/6.1.0-test/vmlinux",
        "lib/modules/6.1.0-test/build/vmlinux",
        ".build-id/01/02030405060708090a0b0c0d0e0f1011121314.debug",
        "usr/lib/debug/.build-id/01/02030405060708090a0b0c0d0e0f1011121314.debug",
    ],
)
def test_a_file_is_searched_for(tmp_path: Path, place: str) -> None:
    memory = LinuxMemory()
    path = save(tmp_path / place, memory.vmlinux())
    kernel = open_kernel(memory.noted_image(), search=(str(tmp_path / "empty"), str(tmp_path)))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.vmlinux_path == path


def test_wrong_files_are_passed_over_in_a_search(tmp_path: Path) -> None:
    memory = LinuxMemory()
    save(tmp_path / "a/vmlinux-6.1.0-test", LinuxMemory(build_id=b"z" * 20).vmlinux())
    save(tmp_path / "b/vmlinux-6.1.0-test", b"no ELF file")
    right = save(tmp_path / "c/vmlinux", memory.vmlinux())
    kernel = open_kernel(memory.noted_image(), search=tuple(str(tmp_path / name) for name in "abc"))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.vmlinux_path == right


def test_usual_places() -> None:
    places = list(vmlinux.for_each_place("6.1.0-test", "0102" * 10, ("/conf",)))
    assert places[0].startswith("/conf/")
    for place in (
        "/usr/lib/debug/boot/vmlinux-6.1.0-test",
        "/usr/lib/debug/lib/modules/6.1.0-test/vmlinux",
        "/usr/lib/debug/.build-id/01/" + "0201" * 9 + "02.debug",
        "/lib/modules/6.1.0-test/build/vmlinux",
        "/boot/vmlinux-6.1.0-test",
    ):
        assert place in places
    assert list(vmlinux.for_each_place(None, None)) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_banner_and_file_are_enough(tmp_path: Path, levels: int) -> None:
    memory = LinuxMemory(levels=levels, info_paddr=None)
    other = banner("5.5.5", "#1 Other")
    image = memory.image(and_also={0x9000123: banner(memory.release, memory.version), 0xA000000: other})
    kernel = open_kernel(image, save(tmp_path / "vmlinux", memory.vmlinux()))
    assert isinstance(kernel, LinuxKernel)
    assert (kernel.slide, kernel.phys_base, kernel.levels) == (memory.slide, memory.phys_base, levels)
    assert kernel.paging.root == memory.root
    assert kernel.release == memory.release


def test_banner_and_a_file_of_another_kernel(tmp_path: Path) -> None:
    memory = LinuxMemory(info_paddr=None)
    with pytest.raises(KernelMismatchError, match="linux_banner"):
        open_kernel(memory.image(), save(tmp_path / "vmlinux", memory.vmlinux(moved=0x1000)))


def test_cpu_and_file_without_vmcoreinfo(tmp_path: Path) -> None:
    memory = LinuxMemory(info_paddr=None)
    # The CPU ran a process: another top table, which shares the kernel's half.
    process = 0x666000
    top = bytes(memory.tables.memory[memory.root])
    image = memory.image(memory.qemu_note(process), and_also={process: top})
    kernel = open_kernel(image, save(tmp_path / "vmlinux", memory.vmlinux()))
    assert isinstance(kernel, LinuxKernel)
    assert (kernel.slide, kernel.phys_base) == (memory.slide, memory.phys_base)
    assert kernel.paging.root == memory.root


# A machine whose "4 GiB" are 64 MiB, so that its RAM is quickly read: RAM of 32 MiB, a hole, and 32 MiB more.
LOW, TOP = 0x2000000, 0x4000000
RAM = ((0, LOW - 0x20000, 1), (LOW - 0x20000, 0x20000, 2), (TOP, 0x2000000, 1))


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hole, "TOP", TOP)
    monkeypatch.setattr(hole, "LOWEST_START", 1 << 24)
    monkeypatch.setattr(hole, "STEP", 1 << 22)
    monkeypatch.setattr(hole, "USUAL_STARTS", (0x3000000,))


def raw_file(path: Path, memory: LinuxMemory, low: int) -> str:
    """Write memory as RAM; what is at TOP and above follows `low` at once."""
    with path.open("wb") as file:
        for paddr, page in memory.tables.segments().items():
            file.seek(paddr if paddr < low else paddr - TOP + low)
            file.write(page)
        file.truncate(LOW + 0x2000000)
    return str(path)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("phys_base", [0x3400000, 0])  # the kernel lies above the hole, or below it
def test_raw_memory_with_a_hole_that_nobody_named(tmp_path: Path, phys_base: int) -> None:
    memory = LinuxMemory(slide=0, phys_base=phys_base, e820=RAM, info_paddr=0x654000)
    memory.tables.page(TOP + 0x1000000, b"above the hole")
    path = raw_file(tmp_path / "ram", memory, LOW)
    kernel = open_kernel(open_image(path), save(tmp_path / "vmlinux", memory.vmlinux()))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.read(DIRECT[4] + TOP + 0x1000000, 14) == b"above the hole"
    assert any("hole from 0x2000000 to 0x4000000" in quirk for quirk in kernel.quirks)
    assert dict(kernel.image.info.details)["hole"] == "0x2000000-0x4000000"


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("e820", [((0, 0x4000000, 1),), RAM[:1], ((0, 1 << 63, 1),), ()])
def test_raw_memory_without_a_hole(tmp_path: Path, e820: tuple[tuple[int, int, int], ...]) -> None:
    memory = LinuxMemory(slide=0, phys_base=0, e820=e820, info_paddr=0x654000)
    path = raw_file(tmp_path / "ram", memory, 1 << 40)
    kernel = open_kernel(OverlayImage(open_image(path)), save(tmp_path / "vmlinux", memory.vmlinux()))
    assert "hole" not in dict(kernel.image.info.details)


def test_writes_go_into_the_overlay(tmp_path: Path) -> None:
    memory = LinuxMemory()
    path = save(tmp_path / "vmlinux", memory.vmlinux())
    kernel = open_kernel(OverlayImage(memory.noted_image()), path)
    assert isinstance(kernel, LinuxKernel)
    address = kernel.symbols.address("linux_banner")
    write_memory(kernel, kernel.space, address, b"Minix")
    assert kernel.read(address, 13) == b"Minix version"
    assert kernel.read(DIRECT[4] + memory.paddr_of(BANNER), 5) == b"Minix"
    walk = walk_address(kernel, address)
    assert walk.paddr == memory.paddr_of(BANNER)
    assert [step.name for step in walk.steps] == ["PML4E", "PDPTE", "PDE"]
    # a page table is written to: the next read goes the new way
    write_memory(kernel, kernel.space, DIRECT[4] + walk.steps[-1].entry_paddr, bytes(8))
    with pytest.raises(NotMappedError):
        kernel.read(address, 1)
    plain = open_kernel(memory.noted_image(), path)
    assert isinstance(plain, LinuxKernel)
    with pytest.raises(CommandError, match="reading only"):
        write_memory(plain, plain.space, address, b"x")


def test_no_file_anywhere() -> None:
    memory = LinuxMemory(release="0.0.0-none-such")
    with pytest.raises(KernelNotFoundError, match=r"no vmlinux found for 0\.0\.0-none-such") as caught:
        open_kernel(memory.noted_image(), search=("/nowhere",))
    for place in ("/nowhere/vmlinux", "/usr/lib/debug/boot/vmlinux-0.0.0-none-such", "/boot/"):
        assert place in str(caught.value)


def test_mutants_of_memory_give_an_error_of_ours_or_a_kernel(tmp_path: Path) -> None:
    generator = random.Random(20)
    memory = LinuxMemory(levels=5)
    path = save(tmp_path / "vmlinux", memory.vmlinux())
    good = memory.tables.segments()
    opened = 0
    for _ in range(60):
        segments = dict(good)
        for _ in range(generator.randrange(1, 6)):
            paddr = generator.choice(list(segments))
            page = bytearray(segments[paddr])
            for _ in range(generator.randrange(1, 10)):
                at = generator.choice([n for n in range(len(page)) if page[n]] or [0])
                page[at] = generator.randrange(256)
            segments[paddr] = bytes(page)
        text = bytearray(memory.text)
        for _ in range(generator.randrange(4)):
            text[generator.randrange(len(text))] = generator.randrange(256)
        notes = [memory.qemu_note()] if generator.random() < 0.5 else []
        if generator.random() < 0.5:
            notes.append(Note("VMCOREINFO", 0, bytes(text)))
        image = BytesImage(segments, notes=tuple(notes), info=ImageInfo("bytes", machine="x86_64"))
        try:
            kernel = open_kernel(image, path)
            kernel.read(kernel.symbols.address("linux_banner"), 20)
            opened += 1
        except KvmDbgError:
            continue
    assert 0 < opened < 60
