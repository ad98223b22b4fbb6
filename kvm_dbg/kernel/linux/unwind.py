"""Unwinding kernel stacks: by ORC, where code has none by frame pointers, and by a search for return addresses.

Sources: arch/x86/kernel/unwind_orc.c (unwind_next_frame: which registers a row may use, that an interrupted address is
exact while a return address belongs to the call before it, what a call of a null pointer looks like),
unwind_frame.c and asm/frame.h (with CONFIG_UNWINDER_FRAME_POINTER rbp of entry code is the address of struct pt_regs
with the lowest bit set), asm/ptrace.h (struct pt_regs), asm/pgtable_64_types.h (modules and compiled BPF programs lie
above the kernel's text).

Every step says how its frame was found. After a search nothing is certain any more: all that follows is "scan", too.
Stacks may have been overwritten: a return address must lie behind a call, saved registers must be such as a processor
saves, and those of user space the first on their stack; else the search begins.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Frame
from kvm_dbg.kernel.layout import observed
from kvm_dbg.kernel.linux.orc import INIT_TEXT, RowFinder, find_range
from kvm_dbg.kernel.linux.stack import USER, WORD, Stack, StackReader
from kvm_dbg.kernel.linux.symbolize import find_symbol, shown_symbol
from kvm_dbg.kernel.unwind_rule import UnwindRow

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Thread

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
FRAME_LIMIT = 1024  # a stack of 16 KiB has no room for more
REGISTERS, ORC, FRAME_POINTER, EXCEPTION, SCAN = "registers", "orc", "frame-pointer", "exception", "scan"
PT_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss",
)  # fmt: skip
PT_REGS_STRUCT = struct.Struct("<21Q")
IRET_FRAME = PT_REGS[16:]  # what the processor itself pushes
IRET_STRUCT = struct.Struct("<5Q")
USER_PRIVILEGE = 3  # in the low bits of cs
# Selectors, asm/segment.h; 0x23 is 32-bit code. In the kernel ss may be 0: SDM volume 3, 7.14.2.
KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA = 0x10, (0x18, 0), (0x33, 0x23), 0x2B
FLAGS, ALWAYS_FLAG = 0x3F_7FD7, 1 << 1  # bits of eflags that may be set, and the one that is: SDM volume 1, 3.4.3
LOCAL_SELECTOR = 7  # a user's own descriptor, modify_ldt(2): the table's bit and privilege 3
MAX_PADDING = 64  # bytes, TOP_OF_KERNEL_STACK_PADDING: 0, 16 with FRED
VSYSCALL = 0xFFFF_FFFF_FF60_0000  # a page of user space in the upper half, asm/vsyscall.h
KERNEL_HALF = 1 << 63
MODULES_START = 0xFFFF_FFFF_A000_0000  # MODULES_VADDR without KASLR; higher with it
STARTS = ("ret_from_fork_asm", "ret_from_fork")  # where a new task starts; the older name is a C function by now
CALL_SIZE = 7  # bytes of the longest call instruction
CALL_RELATIVE = 0xE8  # Intel SDM volume 2, CALL: E8 and four bytes; FF /2 with two to seven bytes in all
CALL_INDIRECT, CALL_INDIRECT_FIELD = 0xFF, 2
CALL_INDIRECT_SIZES = (2, 3, 4, 6, 7)
FAR_RETURN = bytes.fromhex("48cb")  # lretq: head_64.S has pushed the next instruction's address, and goes there by it
NULL_CALL = UnwindRow(0, 1, "call", "rsp", WORD)


class State(NamedTuple):
    """What is known of the registers in one frame.

    bp is None if unknown. registers: all that are known where they were saved together, else None. exact: pc is the
    next instruction; else a return address, and the call lies before it.
    """

    pc: int
    sp: int
    bp: int | None
    registers: Mapping[str, int] | None
    exact: bool
    how: str


class Step(NamedTuple):
    """A frame: its state, the name of its stack, and why its caller could not be told for sure ("" if it could)."""

    state: State
    stack: str
    why: str


def unwind(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Yield the frames of a task, the innermost first; none if its registers are not known (`thread.why`)."""
    unwinder = observed(kernel, Unwinder)
    for step in unwinder.walk_thread(thread):
        yield unwinder.frame(step)


class Unwinder:
    """Unwinds the stacks of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.rows = RowFinder(kernel)
        self.stacks = StackReader(kernel)
        self._starts = {symbol.address for name in STARTS if (symbol := kernel.symbols.find(name)) is not None}
        self._own = find_range(kernel, ("_text", "_end"))
        self._discarded = find_range(kernel, INIT_TEXT)
        self._names: dict[int, tuple[str | None, int, str | None]] = {}
        self._calls: dict[int, int | None] = {}

    def is_code(self, address: int) -> bool:
        """Return whether `address` may be code: the kernel's, a module's, or made at run time (BPF, ftrace)."""
        low, high = self._own
        return self.rows.is_text(address) or (address >= MODULES_START and not low <= address < high)

    def called(self, address: int) -> int | None:
        """Return what the call instruction before `address` calls: 0 if the code does not tell, None if it is none.

        Known code that is not in the image does not tell, nor does that of the start, whose memory others have by now.
        """
        if address not in self._calls:
            self._calls[address] = self._read_call(address)
        return self._calls[address]

    def _read_call(self, address: int) -> int | None:
        try:
            code = self.kernel.read(address - CALL_SIZE, CALL_SIZE)
        except ReadError:
            return 0 if self.rows.is_text(address) else None
        low, high = self._discarded
        if low <= address < high or code[-2:] == FAR_RETURN:
            return 0
        if code[2] == CALL_RELATIVE:
            return address + int.from_bytes(code[3:], "little", signed=True)
        for size in CALL_INDIRECT_SIZES:
            if code[-size] == CALL_INDIRECT and code[1 - size] >> 3 & 7 == CALL_INDIRECT_FIELD:
                return 0
        return None

    def function_at(self, pc: int, *, exact: bool) -> int:
        """Return the address of the function that `pc` is in, 0 if unknown."""
        symbol = find_symbol(self.kernel, pc if exact else pc - 1)
        return 0 if symbol is None else symbol.address

    def walk_thread(self, thread: Thread) -> Iterator[Step]:
        """Yield the steps of a task's stack."""
        registers = thread.registers
        if "rip" not in registers or "rsp" not in registers:
            return
        stacks: list[Stack] = []
        try:
            own = self.stacks.task_stack(thread.address)
            stacks = [own] if own is not None else []
        except MISSING:
            pass  # the first step will say that the stack pointer is on no known stack
        if thread.on_cpu and thread.cpu is not None:
            stacks += self.stacks.cpu_stacks(thread.cpu)
        exact = thread.on_cpu or registers["rip"] in self._starts
        yield from self.walk(registers, stacks, exact=exact)

    def walk(self, registers: Mapping[str, int], stacks: list[Stack], *, exact: bool) -> Iterator[Step]:
        """Yield the steps from `registers` on; they need rip and rsp. `exact` as in `State`."""
        state = State(registers["rip"], registers["rsp"], registers.get("rbp"), registers, exact, REGISTERS)
        return Walk(self, stacks).steps(state)

    def frame(self, step: Step) -> Frame:
        """Return a step as others see it, with the name of its function."""
        state = step.state
        name, offset, module = (None, 0, None) if step.stack == USER else self.name(state.pc, exact=state.exact)
        registers = None if state.how == REGISTERS else state.registers
        return Frame(state.pc, state.sp, step.stack, state.how, name, offset, module, state.exact, registers, step.why)

    def name(self, pc: int, *, exact: bool) -> tuple[str | None, int, str | None]:
        """Return the function's name, the distance from its start in bytes, and its module."""
        key = pc * 2 + exact
        known = self._names.get(key)
        if known is None:
            symbol = find_symbol(self.kernel, pc if exact else pc - 1)
            if symbol is None or symbol.kind not in "tTwW?":
                known = None, 0, None
            else:
                known = shown_symbol(self.kernel, symbol).name, pc - symbol.address, symbol.module
            self._names[key] = known
        return known


class Walk:
    """One walk over the stacks of one task."""

    def __init__(self, unwinder: Unwinder, stacks: list[Stack]) -> None:
        self._unwinder = unwinder
        self._stacks = stacks
        self._left: list[Stack] = []

    def steps(self, state: State) -> Iterator[Step]:
        """Yield the step of `state` and of all its callers."""
        guessed = False
        for _ in range(FRAME_LIMIT):
            if _is_user(state):
                yield Step(state, USER, "")
                return
            stack = self._stack_of(state.sp)
            if stack is None:
                why = f"the stack pointer {state.sp:#x} is on no known stack of this task or its CPU"
                yield Step(state, "?", why)
                return
            why = ""
            try:
                caller = self._caller(state)
                if caller is not None:
                    self._check_progress(stack, state, caller)
            except (ReadError, CorruptError) as error:
                why = str(error)
                caller = self._scan(stack, state)
                guessed = True
                if caller is None:
                    why += "; no return address was found above"
            yield Step(state, stack.name, why)
            if caller is None:
                return
            if guessed:
                caller = caller._replace(how=SCAN)
            state = caller
        yield Step(state, "?", f"more than {FRAME_LIMIT} frames")

    def _stack_of(self, sp: int) -> Stack | None:
        """Return the stack that a stack pointer is on; at its very end it is empty."""
        for stack in self._stacks:
            if stack.start <= sp < stack.end:
                return stack
        return next((stack for stack in self._stacks if sp == stack.end), None)

    def _memory(self, address: int) -> Stack:
        for stack in self._stacks:
            if stack.start <= address < stack.end:
                return stack
        raise CorruptError(address, "that is on no known stack of this task or its CPU")

    def _word(self, address: int) -> int:
        return self._memory(address).word(address)

    def _check_progress(self, stack: Stack, state: State, caller: State) -> None:
        """Refuse what would go round in circles. Raises CorruptError."""
        if _is_user(caller):
            return
        after = self._stack_of(caller.sp)
        if after is stack:
            if caller.sp <= state.sp:
                raise CorruptError(state.sp, f"the caller's stack pointer {caller.sp:#x} is not above it")
            return
        self._left.append(stack)
        if after is not None and any(after is left for left in self._left):
            raise CorruptError(state.sp, f"the caller's stack pointer {caller.sp:#x} is on a stack that was left")

    def _caller(self, state: State) -> State | None:
        """Return the caller, None where nobody called. Raises ReadError, CorruptError if it cannot be told."""
        rows = self._unwinder.rows
        row = rows.find(state.pc if state.exact else state.pc - 1)
        if row is None and state.pc == 0:
            row = NULL_CALL
        if row is None:
            return self._by_frame_pointer(state)
        if row.kind == "end":
            return None
        if row.kind == "undefined":
            raise CorruptError(state.pc, "the ORC table says that the stack cannot be unwound there")
        place = self._place(state, row)
        if row.kind == "regs":
            caller = self._interrupted(place)
        elif row.kind == "partial":
            data = self._memory(place).read(place, IRET_STRUCT.size)
            pushed = dict(zip(IRET_FRAME, IRET_STRUCT.unpack(data), strict=True))
            _check_saved(pushed, place, 0)
            caller = State(pushed["rip"], pushed["rsp"], state.bp, pushed, True, EXCEPTION)
        else:
            caller = State(self._return_address(place - WORD), place, state.bp, None, False, ORC)
        if row.frame_base == "previous":
            caller = caller._replace(bp=self._word(place + row.frame_offset))
        elif row.frame_base == "rbp" and state.bp is not None:
            caller = caller._replace(bp=self._word(state.bp + row.frame_offset))
        return caller

    def _place(self, state: State, row: UnwindRow) -> int:
        """Return the stack pointer that the row computes."""
        name = row.base.strip("[]")
        base = {"rsp": state.sp, "rbp": state.bp}.get(name)
        if base is None and state.registers is not None:
            base = state.registers.get(name)
        if base is None:
            raise CorruptError(state.pc, f"the ORC row there needs {name}, which is not known")
        if name == row.base:
            return base + row.offset
        return self._word(base) + row.offset if name == "rsp" else self._word(base + row.offset)

    def _return_address(self, place: int) -> int:
        address = self._word(place)
        if not self._unwinder.is_code(address):
            raise CorruptError(place, f"the return address there, {address:#x}, is not in code")
        if self._unwinder.called(address) is None:
            raise CorruptError(place, f"the return address there, {address:#x}, is not behind a call")
        return address

    def _interrupted(self, place: int) -> State:
        """Return the state that the struct pt_regs at `place` holds."""
        stack = self._memory(place)
        data = stack.read(place, PT_REGS_STRUCT.size)
        saved = dict(zip(PT_REGS, PT_REGS_STRUCT.unpack(data), strict=True))
        _check_saved(saved, place, stack.end - place - PT_REGS_STRUCT.size)
        return State(saved["rip"], saved["rsp"], saved["rbp"], saved, True, EXCEPTION)

    def _by_frame_pointer(self, state: State) -> State | None:
        """Return the caller by rbp, as code compiled with frame pointers keeps it."""
        bp = state.bp
        missing = self._unwinder.rows.why or "code there has no ORC row"
        if bp is None:
            raise CorruptError(state.pc, f"{missing}, and the frame pointer is not known")
        if bp == 0 and self._unwinder.rows.why:
            return None
        if bp & 1:
            return self._interrupted(bp - 1)
        if bp & 7 or self._stack_of(bp) is None or not self._unwinder.rows.is_text(self._word(bp + WORD)):
            raise CorruptError(state.pc, f"{missing}, and rbp ({bp:#x}) is no frame pointer")
        return State(self._word(bp + WORD), bp + 2 * WORD, self._word(bp), None, False, FRAME_POINTER)

    def _scan(self, stack: Stack, state: State) -> State | None:
        """Return a guess: the next word on the stack that lies behind a call of this function, else behind any call."""
        unwinder = self._unwinder
        place = -(-state.sp // WORD) * WORD
        try:
            words = stack.words(place)
        except (ReadError, CorruptError):
            return None
        function = unwinder.function_at(state.pc, exact=state.exact)
        best: State | None = None
        for index, word in enumerate(words):
            if word < KERNEL_HALF or not unwinder.rows.is_text(word):
                continue
            target = unwinder.called(word)
            if target is None or (best is not None and target != function):
                continue
            sp = place + (index + 1) * WORD
            bp = state.bp if state.bp is not None and sp <= state.bp < stack.end else None
            best = State(word, sp, bp, None, False, SCAN)
            if function and target == function:
                break
        return best


def _check_saved(registers: dict[str, int], place: int, above: int) -> None:
    """Refuse what cannot be saved registers, and cut cs and ss to their 16 bits: with FRED (v6.9) the words tell more.

    `above` is the number of bytes above them on their stack: those of user space are the first on it.
    Raises CorruptError.
    """
    cs = registers["cs"] = registers["cs"] & 0xFFFF
    ss = registers["ss"] = registers["ss"] & 0xFFFF
    flags = registers["eflags"]
    user = cs in USER_CODE or cs & LOCAL_SELECTOR == LOCAL_SELECTOR
    if cs != KERNEL_CODE and not user:
        raise CorruptError(place, f"no registers were saved there: cs would be {cs:#x}")
    if ss not in KERNEL_DATA if not user else ss != USER_DATA and ss & LOCAL_SELECTOR != LOCAL_SELECTOR:
        raise CorruptError(place, f"no registers were saved there: cs is {cs:#x}, and ss would be {ss:#x}")
    if flags & ~FLAGS or not flags & ALWAYS_FLAG:
        raise CorruptError(place, f"no registers were saved there: eflags would be {flags:#x}")
    if user and KERNEL_HALF <= registers["rip"] != VSYSCALL | registers["rip"] & 0xFFF:
        raise CorruptError(place, f"no registers were saved there: user space at {registers['rip']:#x}")
    if user and above > MAX_PADDING:
        raise CorruptError(place, f"no registers of user space were saved there: {above} bytes are above them")


def _is_user(state: State) -> bool:
    """Return whether the state is that of user space."""
    registers = state.registers
    if registers is not None and "cs" in registers:
        return registers["cs"] & USER_PRIVILEGE == USER_PRIVILEGE
    return 0 < state.pc < KERNEL_HALF
