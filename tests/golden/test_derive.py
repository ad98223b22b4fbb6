"""A kernel whose kallsyms has functions only, and no kernel file: its data symbols are found by other means.

Debian's kernels have CONFIG_KALLSYMS_ALL: what the table would lack without it (scripts/kallsyms.c symbol_valid(): all
that lies outside of text) is taken away from the real one, whose addresses are then the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.symbols import kallsyms_table
from kvm_dbg.symbols.base import SymbolTable
from kvm_dbg.symbols.kallsyms import ListedSymbols
from tests.golden.subject import Subject, find_subject

RANGES = (("_stext", "_etext"), ("_sinittext", "_einittext"))
ALIASES = {"swapper_pg_dir": "init_top_pgt"}  # one place, arch/x86/include/asm/pgtable_64.h
MACROS = ("vmemmap", "node_online_map")  # in VMCOREINFO: what a variable holds, and an element of node_states
NAMES = ("deb11-4level", "deb12-panic", "bpo13-4level")
Opened = tuple[Subject, Session, Session]


def functions_of(table: SymbolTable) -> SymbolTable:
    runs = [(table.address(start), table.address(end)) for start, end in RANGES]
    return ListedSymbols(
        symbol for symbol in table.for_each() if any(start <= symbol.address <= end for start, end in runs)
    )


@pytest.fixture(params=NAMES)
def opened(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Subject, Session, Session]]:
    """Return a scenario, its session with whole kallsyms, and one with functions only."""
    subject = find_subject(request.param)
    paths = tuple(map(str, subject.dump.files[subject.kind].paths))
    whole = Session()
    whole.open(OpenRequest(paths))
    read = kallsyms_table.read_kallsyms

    def read_functions(*args: Any, **words: Any) -> SymbolTable:
        return functions_of(read(*args, **words))

    monkeypatch.setattr(kallsyms_table, "read_kallsyms", read_functions)
    reduced = Session()
    reduced.open(OpenRequest(paths))
    yield subject, whole, reduced
    whole.close()
    reduced.close()


def test_data_symbols_and_what_they_lead_to(opened: Opened) -> None:
    subject, whole, reduced = opened
    known, found = whole.kernel.symbols, reduced.kernel.symbols
    functions = functions_of(known)
    derived = [symbol for symbol in found.for_each() if symbol.name not in functions]
    assert len(derived) > 600
    wrong = []
    for symbol in derived:
        name = ALIASES.get(symbol.name, symbol.name)
        if name not in MACROS and not name.startswith("kallsyms_"):
            places = {each.address for each in known.find_all(name)}
            if symbol.address not in places:
                wrong.append(symbol)
    assert not wrong
    for name in ("init_task", "init_pid_ns", "modules", "linux_banner", "__start_BTF", "__stop_BTF"):
        assert found.address(name) == known.address(name)
    for name in ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind"):
        assert found.address(name) == known.address(name)

    def frames(session: Session) -> dict[int, list[tuple[int, int]]]:
        system = session.system
        return {
            thread.address: [(frame.pc, frame.sp) for frame in system.unwind(session.kernel, thread)]
            for thread in system.for_each_thread(session.kernel)
        }

    system, kernel = reduced.system, reduced.kernel
    alive = {process.pid for process in subject.settled()}
    assert alive <= {process.pid for process in system.for_each_process(kernel)}
    assert [module.name for module in system.for_each_module(kernel)] == [
        module.name for module in whole.system.for_each_module(whole.kernel)
    ]
    assert [record.text for record in system.for_each_log_record(kernel)] == [
        record.text for record in whole.system.for_each_log_record(whole.kernel)
    ]
    theirs, ours = frames(whole), frames(reduced)
    assert len(ours) > 140
    assert {address: theirs.get(address) for address in ours} == ours  # 5.10 names no idle task without `runqueues`
    assert any("functions only" in quirk for quirk in kernel.quirks)  # type: ignore[attr-defined]
    assert not [check for check in system.for_each_check(kernel) if check.grade == "suspect"]
