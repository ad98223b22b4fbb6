"""The probe in gdb: `source` this file, then `python probe(orders, answers)`; see `probe.py`."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import gdb

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
try:
    from tests.debuggers.probe import MAX_FRAMES, WORD, Probe, ProbeError, run_steps
finally:
    sys.path.remove(ROOT)

SETTINGS = ("debuginfod enabled", "remotetimeout", "non-stop", "print inferior-events", "suppress-cli-notifications",
            "index-cache enabled", "index-cache directory")  # fmt: skip

VIRTUAL = (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME)


def plain(value: gdb.Value) -> Any:
    """Return a number, or the string in an array of char."""
    if value.type.strip_typedefs().code == gdb.TYPE_CODE_ARRAY:
        return value.string("latin-1")
    number = int(value)
    return number & WORD if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR else number


class GdbProbe(Probe):
    """The operations in gdb's words."""

    def kvm(self, line: str) -> str:
        return gdb.execute(f"kvm {line}", False, True)

    def resume(self) -> str:
        return gdb.execute("continue", False, True)

    def step(self) -> str:
        return gdb.execute("stepi", False, True)

    def server(self) -> int:
        return int(gdb.kvm_dbg_session.server.ready["pid"])  # type: ignore[attr-defined]

    def state(self) -> Any:
        files = sorted(os.path.basename(str(objfile.filename)) for objfile in gdb.objfiles())
        return [[str(gdb.parameter(name)) for name in SETTINGS if has_setting(name)], files, len(self._threads())]

    def threads(self) -> list[list[Any]]:
        return [[thread.num, thread.name, thread.ptid[1]] for thread in self._threads()]

    def selected(self) -> int:
        return gdb.selected_thread().ptid[1]

    def select(self, thread: int) -> None:
        found = [one for one in self._threads() if one.ptid[1] == thread]
        if not found:
            raise ProbeError(f"no thread {thread}")
        found[0].switch()

    def frames(self, with_lines: bool) -> list[list[Any]]:
        found: list[list[Any]] = []
        if self.registers(["rip"]) == [None]:
            return found
        frame: gdb.Frame | None = gdb.newest_frame()
        while frame is not None and len(found) < MAX_FRAMES:
            row = [frame.name(), frame.pc() & WORD, frame.type() in VIRTUAL, None, None]
            if with_lines:
                place = frame.find_sal()
                row[3:] = [getattr(place.symtab, "filename", None), place.line]
            found.append(row)
            frame = frame.older()
        return found

    def registers(self, names: list[str]) -> list[int | None]:
        values = [gdb.parse_and_eval(f"${name}") for name in names]
        return [None if str(value) == "<unavailable>" else int(value) & WORD for value in values]

    def evaluate(self, text: str) -> Any:
        return plain(gdb.parse_and_eval(text))

    def fields(self, address: int, type_name: str, paths: list[str]) -> list[Any]:
        whole = gdb.Value(address).cast(gdb.lookup_type(type_name).pointer()).dereference()
        return [plain(functools.reduce(lambda value, name: value[name], path.split("."), whole)) for path in paths]

    def size(self, type_name: str) -> int:
        return gdb.lookup_type(type_name).sizeof

    def offset(self, type_name: str, member: str) -> int:
        position = gdb.lookup_type(type_name)[member].bitpos
        if position is None:
            raise ProbeError(f"{member} of {type_name} has no fixed place")
        return position // 8

    def address(self, symbol: str) -> int:
        return int(gdb.parse_and_eval(f"&{symbol}")) & WORD

    def symbol_at(self, address: int) -> str:
        name, _, rest = gdb.execute(f"info symbol {address:#x}", False, True).partition(" ")
        return "" if rest.startswith("symbol") else name

    def read(self, address: int, size: int) -> str:
        return bytes(gdb.selected_inferior().read_memory(address, size)).hex()

    def write(self, address: int, data: str) -> None:
        gdb.selected_inferior().write_memory(address, bytes.fromhex(data))

    def disassemble(self, address: int, count: int) -> list[list[Any]]:
        architecture = gdb.selected_frame().architecture()
        return [[one["addr"], one["asm"].split()[0]] for one in architecture.disassemble(address, count=count)]

    def _threads(self) -> list[gdb.InferiorThread]:
        return sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)


def has_setting(name: str) -> bool:
    """Return whether this version of gdb knows the setting."""
    try:
        gdb.parameter(name)
    except (gdb.error, RuntimeError):
        return False
    return True


def probe(orders: str, answers: str) -> None:
    """Take the steps of a list."""
    run_steps(GdbProbe(), orders, answers)
