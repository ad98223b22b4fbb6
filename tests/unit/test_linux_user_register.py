"""Registers of user code at the top of kernel stacks."""

from __future__ import annotations

from typing import Any

import pytest

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.base import CpuState
from kvm_dbg.kernel.layout import Layout
from kvm_dbg.kernel.linux.user_register import UserRegisterReader
from tests.writers.linux import World

ORDER = "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss"  # arch/x86/include/asm/ptrace.h
VALUES = dict(zip(ORDER.split(), range(0x1000, 0x2000, 8), strict=False)) | {"cs": 0x33, "ss": 0x2B, "flags": 0x246}


class Stacked(World):
    """A thread with `pages` of kernel stack; `area` says whether it lies in vmalloc memory, `fred` what entered it."""

    def __init__(self, *, pages: int = 4, area: bool = True, fred: bool = False) -> None:
        super().__init__()
        words: dict[str, Any] = dict.fromkeys(ORDER.split(), "u64")
        self.struct("struct pt_regs", **words)
        self.struct("struct vm_struct", addr="ptr", nr_pages="u32")
        self.struct(
            "struct thread_struct", fsbase="u64", gsbase="u64", ds="u16", es="u16", fsindex="u16", gsindex="u16"
        )
        vmalloc: dict[str, Any] = {"stack_vm_area": "ptr"} if area else {}
        self.struct("struct task_struct", pid="s32", stack="ptr", **vmalloc, thread="struct thread_struct")
        if fred:
            self.allocate(16, symbol="fred_entry_from_user")
        stack = self.allocate(pages * 4096, page=True)
        self.task = self.place("struct task_struct", pid=7, stack=stack, thread__fsbase=0xF5, thread__gsbase=0x65)
        if area:
            vm = self.place("struct vm_struct", nr_pages=pages)
            self.put(self.task, "struct task_struct", "stack_vm_area", vm)
        self.regs = stack + pages * 4096 - 8 * len(VALUES) - (16 if fred else 0)
        self.set(**VALUES)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.put(self.regs, "struct pt_regs", name, value)

    def registers(self, state: CpuState | None = None) -> dict[str, int]:
        task = Layout(self.types, "struct task_struct", {"pid": "pid"}).read(self, self.task)
        return UserRegisterReader(self).read(task, state)


@pytest.mark.parametrize(
    "options", [{}, {"fred": True}, {"pages": 8}, {"area": False}, {"pages": 8, "fred": True}], ids=str
)
def test_registers(options: dict[str, Any]) -> None:
    found = Stacked(**options).registers()
    expected = {name if name[0] == "r" else f"r{name}": value for name, value in VALUES.items()}
    expected |= {"cs": 0x33, "ss": 0x2B, "eflags": 0x246, "orig_rax": VALUES["orig_ax"]}
    for name in ("rcs", "rss", "rflags", "rorig_ax"):
        del expected[name]
    assert found == expected | {"fs_base": 0xF5, "gs_base": 0x65, "ds": 0, "es": 0, "fs": 0, "gs": 0}


def test_other_bits_beside_the_selectors() -> None:
    """FRED keeps the event's kind and more in the upper words."""
    kernel = Stacked(fred=True)
    kernel.set(cs=0x0003_0000_0033, ss=0x2_0100_0000_002B)
    found = kernel.registers()
    assert (found["cs"], found["ss"]) == (0x33, 0x2B)


@pytest.mark.parametrize("selectors", [{"cs": 0x10, "ss": 0x18}, {"cs": 0, "ss": 0}, {"cs": 0x33, "ss": 0}])
def test_no_user_code_there(selectors: dict[str, int]) -> None:
    kernel = Stacked()
    kernel.set(**selectors)
    with pytest.raises(CorruptError, match="thread 7 has no registers of user code"):
        kernel.registers()


def test_a_stack_that_is_gone() -> None:
    kernel = Stacked()
    kernel.put(kernel.task, "struct task_struct", "stack", 0)
    with pytest.raises(CorruptError, match="has exited"):
        kernel.registers()


@pytest.mark.parametrize("pages", [0, 3, 1 << 20])
def test_a_stack_of_an_impossible_size(pages: int) -> None:
    kernel = Stacked()
    area = kernel.place("struct vm_struct", nr_pages=pages)
    kernel.put(kernel.task, "struct task_struct", "stack_vm_area", area)
    with pytest.raises(CorruptError, match="kernel stack"):
        kernel.registers()


def test_a_cpu_that_runs_user_code() -> None:
    live = {"rip": 0x401000, "rsp": 0x7FFF0000, "cs": 0x33, "ss": 0x2B, "fs_base": 0x99}
    found = Stacked().registers(CpuState(0, live))
    assert {name: found[name] for name in live} == live
    assert found["orig_rax"] == (1 << 64) - 1
    assert found["gs_base"] == 0x65


def test_a_cpu_in_the_kernel_lends_the_base_that_user_code_has() -> None:
    found = Stacked().registers(CpuState(0, {"rip": 1 << 63, "cs": 0x10, "fs_base": 0x99, "gs_base": 1 << 63}))
    assert (found["rip"], found["fs_base"], found["gs_base"]) == (VALUES["ip"], 0x99, 0x65)
