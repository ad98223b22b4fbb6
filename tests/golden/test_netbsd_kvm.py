"""kvm(3) on a real crash dump of NetBSD, line by line against what the genuine libkvm said of the same dump.

Lines on opening, names, reading and writing are compared here. What differs on purpose is in REFUSED and FILLED, and
explained in docs/libkvm-differences.md. The kernel's text was overwritten with zeros when the dump was published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.kvm import (
    KERN_PROC_ALL,
    Kvm,
    Nlist,
    descriptor,
    kvm_close,
    kvm_geterr,
    kvm_getkernelname,
    kvm_getloadavg,
    kvm_getproc2,
    kvm_getprocs,
    kvm_nlist,
    kvm_openfiles,
    kvm_read,
    kvm_write,
)
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.shared import shared_data, unpack
from tests.writers.stand_in import NoTypes

NONCANONICAL = 'READ noncanon addr=0x8000000000000000 n=8 ret=-1 err="invalid translation (invalid '
REFUSED = {f'{NONCANONICAL}PTE)"': f'{NONCANONICAL}address)"'}
FILLED = {
    "NLIST ret=2": "NLIST ret=1",
    "SYM nprocs value=0x0 type=0x0 other=0 desc=0": "SYM nprocs value=0xffffffff803fe7c0 type=0x7 other=0 desc=0",
}
"""The genuine library's line -> ours: addresses that no processor accepts, a name that is listed twice."""
KERNEL_TEXT = ("READ _main ", "READ ktextstart ")
LOOKED_AT = ("OPEN", "NLIST", "SYM", "READ", "WRITE")
NO_SYMBOLS = ("LOADAVG", "OP1", "OP2")  # of these only the failures, in err3.txt


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (the dump, its name list, the folder of the truth)."""
    data = shared_data("netbsd")
    folder = tmp_path_factory.mktemp("netbsd")
    return unpack(data / "netbsd.0.core.zst", folder), unpack(data / "netbsd.0.zst", folder), data / "truth"


def truth(path: Path, kinds: tuple[str, ...], different: dict[str, str]) -> list[str]:
    """Return the lines of some kinds, as this project should say them."""
    lines = [line for line in path.read_text().splitlines() if line.split(" ")[0] in kinds]
    assert different.keys() <= set(lines)
    lines = [different.get(line, line) for line in lines]
    return [blank(line) if line.startswith(KERNEL_TEXT) else line for line in lines]


def blank(line: str) -> str:
    """Return a line with zeros for its bytes."""
    said, mark, digits = line.partition("hex=")
    return said + mark + "0" * len(digits)


def ask(kd: Kvm, lines: list[str]) -> Iterator[str]:
    """Yield what kvm(3) says to the questions that the lines are answers to, in their words."""
    names = [Nlist(line.split()[1]) for line in lines if line.startswith("SYM ")]
    count = kvm_nlist(kd, names)
    symbols = iter(names)
    for line in lines:
        kind = line.split(" ")[0]
        if kind == "OPEN":
            yield f'OPEN ok kernelname="{kvm_getkernelname(kd)}"'
        elif kind == "NLIST":
            yield f"NLIST ret={count}"
        elif kind == "SYM":
            entry = next(symbols)
            yield (
                f"SYM {entry.n_name} value={entry.n_value:#x} type={entry.n_type:#x}"
                f" other={entry.n_other} desc={entry.n_desc}"
            )
        elif kind == "READ":
            yield read(kd, line)
        elif kind == "WRITE":
            yield f'WRITE ret={kvm_write(kd, 0xFFFFFFFF803FE7C0, b"x")} err="{kvm_geterr(kd)}"'
        elif kind == "LOADAVG":
            wanted = int(re.findall(r"nelem=(\d+)", line)[0])
            yield f"LOADAVG nelem={wanted} ret={kvm_getloadavg(kd, [], wanted)} -1 -1 -1"
        else:
            name = line.split(" ")[1]
            answer = (kvm_getprocs if kind.startswith("OP1") else kvm_getproc2)(kd, KERN_PROC_ALL, 0)
            assert answer is None
            yield f"{kind} {name} {kvm_geterr(kd)}" if kind.endswith("ERR") else line


def read(kd: Kvm, line: str) -> str:
    """Return the line of one READ."""
    label, address, size = line.split(" ")[1:4]
    buffer = bytearray(int(size.removeprefix("n=")))
    count = kvm_read(kd, int(address.removeprefix("addr="), 16), buffer)
    said = f"READ {label} {address} {size} ret={count}"
    if count < 0:
        return f'{said} err="{kvm_geterr(kd)}"'
    shown = line.partition("hex=")[2]  # of long reads, the truth has only the beginning
    return f"{said} hex={buffer[: len(shown) // 2].hex()}" if count else said


def test_a_missing_core(files: tuple[Path, Path, Path]) -> None:
    errors: list[str] = []
    assert kvm_openfiles(str(files[1]), "/nonexistent", errbuf=errors) is None
    assert f'OPEN NULL err="{errors[0]}"' == (files[2] / "err1.txt").read_text().strip()


def test_a_kernel_file_without_symbols(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "fstab"
    text.write_text("/dev/wd0a / ffs rw 1 1\n")
    expected = truth(files[2] / "err3.txt", (*LOOKED_AT, *NO_SYMBOLS, "OP1ERR", "OP2ERR"), REFUSED)
    expected = [line.replace('"/etc/fstab"', f'"{text}"') for line in expected]
    assert len(expected) > 100
    errors: list[str] = []
    kd = kvm_openfiles(str(text), str(files[0]), errbuf=errors)
    assert kd is not None, errors
    assert list(ask(kd, expected)) == expected
    assert kvm_nlist(kd, [Nlist("nprocs")]) == -1
    assert kvm_geterr(kd) == "bad namelist"
    assert kvm_close(kd) == 0


def test_names_and_reads(files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Joined(Kernel):
        """The dump and its name list, joined without a look at what else they are."""

        def __init__(self) -> None:
            without = kvm_openfiles(str(files[0]), str(files[0]))  # no kernel file
            assert without is not None
            space = without.space()
            assert isinstance(space, ImageSpace)
            self.image, self.arch, self.space = without.image, space.arch, space
            self.symbols, self.types = ElfSymbolTable(str(files[1])), NoTypes()

        def read(self, vaddr: int, size: int) -> bytes:
            return self.space.read(vaddr, size)

        def translate(self, vaddr: int) -> int:
            return self.space.translate(vaddr)

    kernel = Joined()
    room = SimpleNamespace(name="NetBSD", all_symbols=lambda _: kernel.symbols, kernel_space=lambda _: kernel.space)
    monkeypatch.setattr(descriptor, "system_of", lambda _: room)
    expected = truth(files[2] / "libkvm-dead.txt", LOOKED_AT, REFUSED | FILLED)
    assert len(expected) > 60
    with Kvm(kernel, name="/netbsd") as kd:
        assert list(ask(kd, expected)) == expected
        assert kvm_nlist(kd, [Nlist("nosuchsym"), Nlist("_main"), Nlist("main"), Nlist("main")]) == 1


def test_the_image(files: tuple[Path, Path, Path]) -> None:
    # facts that the dump's headers and PDPpaddr in the truth agree on
    for path in (files[0], shared_data("netbsd") / "netbsd.0.core.zst"):
        with open_image(path) as image:
            assert (image.info.root, image.info.complete, image.info.system) == (0x4C6000, True, "NetBSD")
            assert dict(image.info.details)["segments"] == "331"
            assert sum(len(data) for _, data in image.for_each_chunk()) == 12_715_544 - 5656


def test_letters_of_a_list_that_has_no_sections(files: tuple[Path, Path, Path]) -> None:
    # savecore puts every symbol into one section that claims to be code: the types are STT_OBJECT and STT_FUNC
    table = ElfSymbolTable(str(files[1]))
    assert [symbol.kind for name in ("nprocs", "main") if (symbol := table.find(name))] == ["D", "T"]
    table.close()
