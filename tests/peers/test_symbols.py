"""All symbols of real kernels: against nm's list, and against /proc/kallsyms of the guest that ran them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.index import Index
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.lab import Dump, find

KERNELS = ("deb11-4level", "deb12-4level", "deb13-4level", "bpo13-4level")  # one scenario of each kernel


@functools.cache
def _find(name: str) -> Dump | None:
    return find(name)


@pytest.fixture(params=KERNELS)
def dump(request: pytest.FixtureRequest) -> Dump:
    found = _find(request.param)
    if found is None:
        pytest.skip(f"the lab has no dump {request.param}: python -m tests.lab build {request.param}")
    return found


def run_nm(path: Path) -> list[tuple[int, str, str]]:
    """Return (address, letter, name) of every line of nm."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed: apt-get install binutils")
    lines = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = (line.split(" ", 2) for line in lines if not line.startswith(" "))
    return [(int(address, 16), letter, name) for address, letter, name in rows]


def test_every_symbol_is_as_nm_lists_it(dump: Dump) -> None:
    table = ElfSymbolTable(dump.vmlinux)
    ours = sorted((symbol.address, symbol.kind, symbol.name) for symbol in table.for_each())
    assert len(ours) > 100_000
    assert ours == sorted(run_nm(dump.vmlinux))


def test_every_name_is_found_with_and_without_an_index(dump: Dump, tmp_path: Path) -> None:
    table = ElfSymbolTable(dump.vmlinux)
    addresses: dict[str, set[int]] = {}
    for address, _, name in run_nm(dump.vmlinux):
        addresses.setdefault(name, set()).add(address)
    build_id = table.build_id
    assert build_id is not None
    ElfSymbolTable(dump.vmlinux, index=Index(tmp_path, build_id)).find("init_task")
    kept = ElfSymbolTable(dump.vmlinux, index=Index(tmp_path, build_id))
    assert kept.find("no such name") is None
    for symbols, step in ((table, 1), (kept, 7)):
        names = list(addresses)[::step]
        found = symbols.find_many(names)
        assert found.keys() == set(names)
        assert all(symbol.address in addresses[name] for name, symbol in found.items())
    for name in list(addresses)[::500]:
        assert {symbol.address for symbol in kept.find_all(name)} == addresses[name]


def kallsyms(dump: Dump) -> Iterator[tuple[int, str]]:
    """Yield (address, name) of the kernel's own symbols; modules' lines have a fourth word."""
    for line in dump.truth.text("proc/kallsyms").splitlines():
        words = line.split()
        if len(words) == 3:
            yield int(words[0], 16), words[2]


def test_the_running_kernel_had_its_symbols_where_we_say(dump: Dump) -> None:
    """KASLR moved them; per-CPU symbols and absolute ones stayed where they were linked before 6.15."""
    assert dump.slide
    table = ElfSymbolTable(dump.vmlinux, slide=dump.slide)
    ours: dict[str, set[int]] = {}
    for symbol in table.for_each():
        ours.setdefault(symbol.name, set()).add(symbol.address)
    rows = list(kallsyms(dump))
    assert len(rows) > 80_000
    wrong = [(name, hex(address)) for address, name in rows if name in ours and address not in ours[name]]
    absent = [name for _, name in rows if name not in ours]
    assert wrong == []
    assert absent == []


def test_addresses_lead_back_to_their_function(dump: Dump) -> None:
    table = ElfSymbolTable(dump.vmlinux, slide=dump.slide)
    functions = [symbol for symbol in table.for_each() if symbol.kind in "tT" and symbol.size > 8]
    for symbol in functions[::97]:
        found = table.find_at(symbol.address + 1)
        assert found is not None
        assert found.address <= symbol.address + 1
        if found.address <= symbol.address:  # an alias has the same place
            assert (found.address, found.size > 0) == (symbol.address, True)
