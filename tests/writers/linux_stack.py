"""Write kernel stacks: functions with their ORC rows, a task with its stack, and the stacks of a CPU."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping

from kvm_dbg.kernel.base import Frame, Thread
from kvm_dbg.kernel.linux import LINUX
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols
from tests.writers.linux import World
from tests.writers.orc import Row, encode, orc_entry

PLAIN = Row("call")  # a function at its first instruction
THREAD_SIZE = 1 << 14
FUNCTION_SIZE = 0x40
MAX_FUNCTIONS = 60
AFTER = 0x20
CALL = bytes.fromhex("ffd0")  # call *%rax
PT_REGS = (  # arch/x86/include/asm/ptrace.h
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss",
)  # fmt: skip
PT_REGS_SIZE = 8 * len(PT_REGS)


class Stacks(World):
    """A kernel of one CPU with a task. Functions lie FUNCTION_SIZE bytes apart, in the order in which they came."""

    def __init__(self, version: str = "v1", functions: Mapping[str, Row | None] | None = None) -> None:
        super().__init__()
        self.version = version
        self.functions: dict[str, int] = {}
        self.modules: dict[str, str] = {}
        self.struct("struct list_head", next="ptr", prev="ptr")
        self.struct("struct thread_struct", sp="u64")
        self.struct("struct task_struct", stack="ptr", thread="struct thread_struct")
        self.types.types["struct orc_entry"] = orc_entry(version)
        self.text = self.allocate(MAX_FUNCTIONS * FUNCTION_SIZE, page=True)
        self.task_stack = self.allocate(THREAD_SIZE, page=True)
        self.task = self.place("struct task_struct", stack=self.task_stack)
        self.top = self.task_stack + THREAD_SIZE
        self.add_functions(functions or {})

    def add_functions(self, functions: Mapping[str, Row | None]) -> None:
        """Add functions and the tables of their rows; None is a function without rows."""
        starts = []
        for index, (name, row) in enumerate(functions.items()):
            self.functions[name] = self.text + index * FUNCTION_SIZE
            self.write(self.functions[name] + AFTER - len(CALL), CALL)
            if row is not None:
                starts.append((self.functions[name], row))
        end = self.text + len(functions) * FUNCTION_SIZE
        self._symbols |= {"_text": self.text, "_stext": self.text, "_etext": end, "_end": end}
        self.write_table(starts, "__{}_orc_unwind")

    def write_table(self, starts: list[tuple[int, Row]], name: str = "") -> tuple[int, int]:
        """Write a table, with symbols if `name` is given; return the addresses of its two parts."""
        ips, rows = self.allocate(4 * len(starts) or 4), self.allocate(6 * len(starts) or 6)
        for index, (address, row) in enumerate(starts):
            place = ips + 4 * index
            self.write(place, struct.pack("<i", address - place))
            self.write(rows + 6 * index, encode(self.version, row))
        if name and starts:
            self._symbols[name.format("start") + "_ip"] = ips
            self._symbols[name.format("stop") + "_ip"] = ips + 4 * len(starts)
            self._symbols[name.format("start")] = rows
            self._symbols[name.format("stop")] = rows + 6 * len(starts)
        self.__dict__.pop("symbols", None)
        return ips, rows

    @functools.cached_property
    def symbols(self) -> ListedSymbols:  # type: ignore[override]
        """The functions as code, all else as data; marks of sections are absolute so that they name nothing."""
        marks = [Symbol(name, address, 0, "A") for name, address in self._symbols.items()]
        code = [Symbol(name, address, FUNCTION_SIZE, "T") for name, address in self.functions.items()]
        return ListedSymbols([*marks, *code])

    def after(self, name: str, offset: int = AFTER) -> int:
        """Return an address in a function; there is a call before AFTER."""
        return self.functions[name] + offset

    def put_words(self, address: int, *values: int) -> int:
        """Write words, and return the address behind them."""
        self.words(address, *values)
        return address + 8 * len(values)

    def registers(self, address: int, **values: int) -> int:
        """Write a struct pt_regs, and return the address behind it; without eflags and ss, with such as fit to cs."""
        user = values.get("cs", 0) & 3
        values = {"eflags": 0x202, "ss": 0x2B if user else 0x18, **values}
        return self.put_words(address, *(values.get(name, 0) for name in PT_REGS))

    def call(self, address: int, target: int) -> None:
        """Write the call instruction that ends at `address`."""
        self.write(address - 5, b"\xe8" + struct.pack("<i", target - address))

    def unwind(self, *, cpu: int | None = None, **registers: int) -> list[Frame]:
        """Return the frames from these registers on; of a running task if `cpu` is given."""
        thread = Thread(7, 7, "task", self.task, cpu, cpu is not None, registers, "a test")
        return list(LINUX.unwind(self, thread))


def brief(frames: list[Frame]) -> list[str]:
    """Return frames as "how stack function+offset"."""
    return [f"{frame.how} {frame.stack} {frame.name}+{frame.offset:#x}" for frame in frames]
