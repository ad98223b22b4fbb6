"""Stacks are unwound by rows of every version, across stacks, by frame pointers, by search; what is broken is said."""

from __future__ import annotations

import pytest

from kvm_dbg.kernel.base import Thread
from kvm_dbg.kernel.linux import LINUX
from kvm_dbg.kernel.linux.unwind import FRAME_LIMIT, Unwinder
from tests.writers.linux import PAGE
from tests.writers.linux_stack import CALL, FUNCTION_SIZE, PT_REGS_SIZE, Stacks, brief
from tests.writers.orc import LAYOUTS, Row

USER_IP, USER_SP = 0x40_1000, 0x7FFE_0000_1000
USER = {"rip": USER_IP, "rsp": USER_SP, "cs": 0x33, "rbp": 0x77, "orig_rax": 61}
KERNEL_CS = 0x10
FUNCTIONS = {
    "__schedule": Row("call", "rsp", 0x20, "previous", -16),
    "schedule": Row("call", "rsp", 0x10),
    "do_wait": Row("call", "rbp", 0x10, "previous", -16),
    "sys_wait4": Row("call", "rsp", 8),
    "entry_SYSCALL_64": Row("regs", "rsp", 0),
    "ret_from_fork": Row("end"),
    "switch": Row("call", "[rsp]", 8),
    "by_rbp": Row("call", "[rbp]", -8),
    "asm_nmi": Row("regs", "rsp", 0),
    "early": Row("partial", "rsp", 8),
    "strange": Row("undefined"),
    "plain": Row("call", "rsp", 8),
    "needs_r10": Row("call", "r10", 0),
    "hand_written": None,
}


def sleeping(world: Stacks) -> dict[str, int]:
    """Write the stack of a task in a system call; return its registers."""
    frame = world.top - PT_REGS_SIZE - 0x18  # of do_wait
    sp = frame - 0x30 - 0x10 - 0x20
    world.words(sp + 0x10, frame, world.after("schedule"))
    world.words(sp + 0x28, world.after("do_wait"))
    world.words(frame, 0xBBBB, world.after("sys_wait4"))
    world.words(frame + 0x10, world.after("entry_SYSCALL_64"))
    world.registers(frame + 0x18, **USER)
    return {"rip": world.after("__schedule"), "rsp": sp, "rbp": 0xAAAA}


SLEEPING = [
    "registers TASK __schedule+0x20",
    "orc TASK schedule+0x20",
    "orc TASK do_wait+0x20",
    "orc TASK sys_wait4+0x20",
    "orc TASK entry_SYSCALL_64+0x20",
    "exception USER None+0x0",
]


@pytest.mark.parametrize("version", LAYOUTS)
def test_a_sleeping_task_by_every_version_of_the_table(version: str) -> None:
    world = Stacks(version, FUNCTIONS)
    frames = world.unwind(**sleeping(world))
    assert brief(frames) == SLEEPING
    assert not any(frame.why for frame in frames)
    assert [frame.exact for frame in frames] == [False] * 5 + [True]
    user = frames[-1]
    assert (user.pc, user.sp) == (USER_IP, USER_SP)
    assert user.registers is not None
    assert (user.registers["orig_rax"], user.registers["rbp"]) == (61, 0x77)
    assert all(frame.registers is None for frame in frames[:-1])


@pytest.mark.parametrize("version", LAYOUTS)
def test_a_kernel_thread_ends_where_it_began(version: str) -> None:
    world = Stacks(version, FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp, world.after("ret_from_fork"))
    frames = world.unwind(rip=world.after("plain"), rsp=sp)
    assert brief(frames) == ["registers TASK plain+0x20", "orc TASK ret_from_fork+0x20"]
    assert frames[-1].why == ""


def test_a_task_that_never_ran_is_at_its_first_instruction() -> None:
    world = Stacks("v3", FUNCTIONS)
    (frame,) = world.unwind(rip=world.functions["ret_from_fork"], rsp=world.top - 0x100)
    assert (frame.name, frame.offset, frame.exact, frame.why) == ("ret_from_fork", 0, True, "")


def test_a_return_address_behind_the_last_instruction_belongs_to_the_caller() -> None:
    world = Stacks("v1", FUNCTIONS)
    world.words(world.top - 0x100, world.functions["switch"])  # the call ended ret_from_fork
    world.write(world.functions["switch"] - len(CALL), CALL)
    frames = world.unwind(rip=world.after("plain"), rsp=world.top - 0x100)
    assert brief(frames) == ["registers TASK plain+0x20", f"orc TASK ret_from_fork+{FUNCTION_SIZE:#x}"]


def add_irq_stack(world: Stacks, below_top: int = 8) -> int:
    """Give the CPU an IRQ stack; return its end."""
    start = world.allocate(1 << 14, page=True)
    end = start + (1 << 14)
    pointer = world.allocate(8, symbol="hardirq_stack_ptr")
    world.words(pointer, end - below_top)
    return end


def add_exception_stacks(world: Stacks) -> dict[str, int]:
    """Give the CPU stacks for exceptions and its entry stack; return their ends by member."""
    names = ("DF", "NMI", "DB", "MCE", "VC", "VC2")
    sizes: dict[str, tuple[str, int]] = {}
    for name in names:
        sizes |= {f"{name}_stack_guard": ("u8", PAGE), f"{name}_stack": ("u8", 2 * PAGE if name != "VC" else 0)}
    stacks = world.struct("struct cea_exception_stacks", **sizes)
    world.struct("struct entry_stack_page", stack=("u8", PAGE))
    area = world.struct(
        "struct cpu_entry_area",
        gdt=("u8", PAGE),
        entry_stack_page="struct entry_stack_page",
        estacks="struct cea_exception_stacks",
    )
    place = world.allocate(area.size, page=True)
    estacks = place + area.member("estacks").offset
    pointer = world.allocate(8, symbol="cea_exception_stacks")
    world.words(pointer, estacks)
    ends = {name: estacks + stacks.member(f"{name}_stack").offset + 2 * PAGE for name in names}
    return ends | {"entry": place + 2 * PAGE}


@pytest.mark.parametrize("version", LAYOUTS)
@pytest.mark.parametrize("below_top", [0, 8, 64])
def test_an_interrupt_on_its_own_stack(version: str, below_top: int) -> None:
    world = Stacks(version, FUNCTIONS)
    irq = add_irq_stack(world, below_top)
    task = world.top - 0x300
    world.words(irq - 0x18, world.after("switch"), task)  # called with the task's stack pointer above
    world.words(task, world.after("asm_nmi"))
    behind = world.registers(task + 8, rip=world.after("plain"), rsp=task + 0x100, rbp=5, cs=KERNEL_CS)
    assert behind < task + 0x100
    world.words(task + 0x100, world.after("ret_from_fork"))
    frames = world.unwind(cpu=0, rip=world.after("plain"), rsp=irq - 0x18)
    assert brief(frames) == [
        "registers IRQ plain+0x20",
        "orc IRQ switch+0x20",
        "orc TASK asm_nmi+0x20",
        "exception TASK plain+0x20",
        "orc TASK ret_from_fork+0x20",
    ]
    assert frames[3].exact
    assert frames[3].registers is not None
    assert frames[3].registers["rbp"] == 5
    assert not any(frame.why for frame in frames)


def test_a_switch_that_rbp_tells_of() -> None:
    """The offset counts before the word is read."""
    world = Stacks("v3", FUNCTIONS)
    frame, caller = world.top - 0x400, world.top - 0x100
    world.words(frame - 8, caller)
    world.words(caller - 8, world.after("ret_from_fork"))
    frames = world.unwind(rip=world.after("by_rbp"), rsp=frame - 0x80, rbp=frame)
    assert brief(frames) == ["registers TASK by_rbp+0x20", "orc TASK ret_from_fork+0x20"]
    assert frames[-1].sp == caller


@pytest.mark.parametrize(
    ("member", "name"), [("NMI", "NMI"), ("DF", "#DF"), ("DB", "#DB"), ("MCE", "#MC"), ("entry", "ENTRY_TRAMPOLINE")]
)
def test_exceptions_with_stacks_of_their_own(member: str, name: str) -> None:
    world = Stacks("v4", FUNCTIONS)
    end = add_exception_stacks(world)[member]
    registers = sleeping(world)
    saved = end - PT_REGS_SIZE
    world.words(saved - 8, world.after("asm_nmi"))
    world.registers(saved, cs=KERNEL_CS, **registers)
    frames = world.unwind(cpu=0, rip=world.after("plain"), rsp=saved - 8)
    assert brief(frames) == [
        f"registers {name} plain+0x20",
        f"orc {name} asm_nmi+0x20",
        "exception TASK __schedule+0x20",
        *SLEEPING[1:],
    ]


def test_the_stacks_of_exceptions_before_5_1() -> None:
    world = Stacks("v1", FUNCTIONS)
    ends = [world.allocate(2 * PAGE, page=True) + 2 * PAGE for _ in range(4)]
    world.words(world.allocate(7 * 8, symbol="orig_ist"), *ends, 0, 0, 0)
    names = []
    for end in ends:
        world.words(end - PAGE + 8, world.after("ret_from_fork"))
        names += [frame.stack for frame in world.unwind(cpu=0, rip=world.after("plain"), rsp=end - PAGE + 8)]
    assert names == ["#DF", "#DF", "NMI", "NMI", "#DB", "#DB", "#MC", "#MC"]


def test_the_irq_stack_in_pcpu_hot() -> None:
    world = Stacks("v3", FUNCTIONS)
    world.struct("struct pcpu_hot", current_task="ptr", hardirq_stack_ptr="ptr")
    end = world.allocate(1 << 14, page=True) + (1 << 14)
    world.place("struct pcpu_hot", symbol="pcpu_hot", hardirq_stack_ptr=end - 8)
    world.words(end - 0x20, world.after("ret_from_fork"))
    frames = world.unwind(cpu=0, rip=world.after("plain"), rsp=end - 0x20)
    assert [frame.stack for frame in frames] == ["IRQ", "IRQ"]


def test_what_the_processor_pushed_is_enough() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp, 0xE0, world.after("plain"), KERNEL_CS, 0x246, sp + 0x40, 0)  # an error code below
    world.words(sp + 0x40, world.after("ret_from_fork"))
    frames = world.unwind(cpu=0, rip=world.after("early"), rsp=sp)
    assert brief(frames) == [
        "registers TASK early+0x20",
        "exception TASK plain+0x20",
        "orc TASK ret_from_fork+0x20",
    ]
    assert frames[1].registers == {
        "rip": world.after("plain"), "cs": KERNEL_CS, "eflags": 0x246, "rsp": sp + 0x40, "ss": 0,
    }  # fmt: skip


def test_a_running_task_in_user_space() -> None:
    world = Stacks("v1", FUNCTIONS)
    (frame,) = world.unwind(cpu=0, **{**USER, "rbp": 1})
    assert (frame.stack, frame.how, frame.pc, frame.why) == ("USER", "registers", USER_IP, "")


def test_a_call_of_a_null_pointer() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp, world.after("plain"), world.after("ret_from_fork"))
    frames = world.unwind(cpu=0, rip=0, rsp=sp, cs=KERNEL_CS)
    assert brief(frames) == [
        "registers TASK None+0x0",
        "orc TASK plain+0x20",
        "orc TASK ret_from_fork+0x20",
    ]


def test_code_without_rows_has_a_frame_pointer() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp + 0x40, 0xBEE8, world.after("plain"), world.after("ret_from_fork"))
    world.types.types.pop("struct orc_entry")
    frames = world.unwind(cpu=0, rip=world.after("hand_written"), rsp=sp, rbp=sp + 0x40)
    assert brief(frames)[:2] == ["registers TASK hand_written+0x20", "frame-pointer TASK plain+0x20"]
    assert (frames[1].sp, frames[0].why) == (sp + 0x50, "")
    assert "the ORC tables cannot be used" in frames[1].why


def test_a_frame_pointer_with_its_lowest_bit_set_is_of_saved_registers() -> None:
    world = Stacks("v1")
    world.add_functions({"work": None, "asm_nmi": None, "idle": None})
    sp = world.top - 0x300
    world.words(sp + 0x10, (sp + 0x80) | 1, world.after("asm_nmi"))
    world.registers(sp + 0x80, rip=world.after("idle"), rsp=sp + 0x200, rbp=0, cs=KERNEL_CS)
    frames = world.unwind(cpu=0, rip=world.after("work"), rsp=sp, rbp=sp + 0x10)
    assert brief(frames) == [
        "registers TASK work+0x20",
        "frame-pointer TASK asm_nmi+0x20",
        "exception TASK idle+0x20",
    ]
    assert [frame.why for frame in frames] == ["", "", ""]


def test_a_search_takes_what_lies_behind_a_call_of_this_function() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x200
    stale, right = world.after("do_wait"), world.after("plain", 0x28)
    world.call(stale, world.functions["schedule"])
    world.call(right, world.functions["strange"])
    world.words(sp + 8, world.after("plain", 5), stale, 17, right, world.after("ret_from_fork"))
    frames = world.unwind(rip=world.after("strange"), rsp=sp)
    assert brief(frames) == [
        "registers TASK strange+0x20",
        "scan TASK plain+0x28",
        "scan TASK ret_from_fork+0x20",  # found by a row, but the frame below was a guess
    ]
    assert "cannot be unwound" in frames[0].why


def test_a_search_takes_the_next_word_behind_any_call() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x200
    caller = world.after("plain", 0x28)
    world.write(caller - 2, b"\xff\xd0")  # call *%rax
    world.words(sp + 8, world.after("plain", 5), caller)
    frames = world.unwind(rip=world.after("strange"), rsp=sp)
    assert brief(frames)[:2] == ["registers TASK strange+0x20", "scan TASK plain+0x28"]


def test_nothing_found() -> None:
    world = Stacks("v1", FUNCTIONS)
    (frame,) = world.unwind(rip=world.after("strange"), rsp=world.top - 0x200)
    assert frame.why.endswith("no return address was found above")


def test_a_row_that_needs_an_unknown_register() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x200
    world.words(sp, world.after("needs_r10"))
    frames = world.unwind(rip=world.after("plain"), rsp=sp, r10=sp)
    assert "needs r10" in frames[-1].why
    known = world.unwind(cpu=0, rip=world.after("needs_r10"), rsp=sp - 0x40, r10=sp + 8)
    assert brief(known)[1] == "orc TASK needs_r10+0x20"


@pytest.mark.parametrize("sp", [0, 0x1234, 0xFFFF_FFFF_FFFF_FFF8, 1 << 63])
def test_a_stack_pointer_that_is_nowhere(sp: int) -> None:
    world = Stacks("v1", FUNCTIONS)
    (frame,) = world.unwind(rip=world.after("plain"), rsp=sp)
    assert frame.stack == "?"
    assert "on no known stack" in frame.why


def test_frames_that_lead_down_again() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp - 0x40, 0, world.after("plain"))
    frames = world.unwind(rip=world.after("do_wait"), rsp=sp, rbp=sp - 0x40)
    assert len(frames) == 1
    assert "is not above it" in frames[0].why


def test_stacks_that_lead_to_each_other() -> None:
    world = Stacks("v1", FUNCTIONS)
    irq = add_irq_stack(world)
    task = world.top - 0x200
    world.words(irq - 0x18, world.after("plain"), 0, task)
    world.words(task, world.after("switch"), irq - 0x18)
    frames = world.unwind(cpu=0, rip=world.after("switch"), rsp=irq - 8)
    assert brief(frames)[:2] == ["registers IRQ switch+0x20", "orc TASK switch+0x20"]
    assert "on a stack that was left" in frames[1].why


def test_a_return_address_that_is_no_code() -> None:
    world = Stacks("v1", FUNCTIONS)
    world.words(world.top - 0x100, 0x4141_4141_4141_4141)
    (frame,) = world.unwind(rip=world.after("plain"), rsp=world.top - 0x100)
    assert "0x4141414141414141, is not in code" in frame.why


def test_a_return_address_without_a_call_before_it() -> None:
    """Code, but no place that anything returns to: the search goes on from there, and says so."""
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x100
    world.words(sp, world.after("plain", 0x28), 0, world.after("ret_from_fork"))
    frames = world.unwind(rip=world.after("plain"), rsp=sp)
    assert brief(frames) == ["registers TASK plain+0x20", "scan TASK ret_from_fork+0x20"]
    assert "is not behind a call" in frames[0].why


@pytest.mark.parametrize("byte", [0x00, 0x41, 0xFF])
def test_a_stack_that_was_overwritten_gives_no_frame(byte: int) -> None:
    """From any place on: what is above is either as it was, or there is a reason why there is no more."""
    whole = Stacks("v1", FUNCTIONS)
    registers = sleeping(whole)
    truth = brief(whole.unwind(**registers))
    for start in range(registers["rsp"] + 0x18, whole.top, 8):
        world = Stacks("v1", FUNCTIONS)
        sleeping(world)
        world.write(start, bytes([byte]) * (world.top - start))
        frames = world.unwind(**registers)
        certain = [frame for frame in frames if frame.how != "scan"]
        assert brief(certain) == truth[: len(certain)]
        assert any(frame.why for frame in frames) == (len(certain) < len(truth))
        assert len(certain) < len(truth) or start > whole.top - 5 * 8  # only what user space had is lost


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cs": 0}, "cs would be 0x0"),
        ({"cs": 0x41}, "cs would be 0x41"),
        ({"cs": 0x10, "ss": 0x2B}, "ss would be 0x2b"),
        ({"cs": 0x33, "ss": 0x18}, "ss would be 0x18"),
        ({"cs": 0x10, "eflags": 0x200}, "eflags would be 0x200"),
        ({"cs": 0x33, "eflags": 0x206 | 1 << 40}, "eflags would be 0x10000000206"),
        ({"cs": 0x1FFFF}, "user space at 0xffffffff81000000"),
        ({"cs": 0x33}, "user space at 0xffffffff81000000"),
        ({"cs": 0x33, "rip": USER_IP}, "bytes are above them"),
    ],
)
def test_what_cannot_be_saved_registers(change: dict[str, int], why: str) -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - 0x300
    world.registers(sp, **{"rip": 0xFFFF_FFFF_8100_0000, "rsp": sp + 0x100, **change})
    (frame,) = world.unwind(rip=world.after("asm_nmi"), rsp=sp)
    assert why in frame.why


@pytest.mark.parametrize(
    ("cs", "rip"), [(0x33, USER_IP), (0x23, USER_IP), (0x0F, USER_IP), (0x33, 0xFFFF_FFFF_FF60_0400)]
)
def test_every_kind_of_user_space(cs: int, rip: int) -> None:
    """64 bits, 32 bits, a segment of the process's own, the vsyscall page."""
    world = Stacks("v1", FUNCTIONS)
    saved = world.top - PT_REGS_SIZE
    world.registers(saved, rip=rip, rsp=USER_SP, cs=cs)
    frames = world.unwind(rip=world.after("asm_nmi"), rsp=saved)
    assert brief(frames) == ["registers TASK asm_nmi+0x20", "exception USER None+0x0"]
    assert (frames[-1].pc, frames[-1].sp, frames[0].why) == (rip, USER_SP, "")


def test_an_endless_stack_is_cut() -> None:
    world = Stacks("v1", FUNCTIONS)
    world.words(world.task_stack, *[world.after("plain")] * (1 << 11))
    frames = world.unwind(rip=world.after("plain"), rsp=world.task_stack)
    assert len(frames) == FRAME_LIMIT + 1
    assert frames[-1].why == f"more than {FRAME_LIMIT} frames"


def test_a_table_that_is_not_sorted() -> None:
    world = Stacks("v1", FUNCTIONS)
    ips = world.symbols.address("__start_orc_unwind_ip")
    size = world.symbols.address("__stop_orc_unwind_ip") - ips
    world.write(ips, bytes(size))  # each row begins at its own place in the table, above all code
    registers = sleeping(world)
    frames = world.unwind(**registers)
    assert frames[0].why
    assert all(frame.how == "scan" for frame in frames[1:])


def test_a_page_of_the_stack_is_missing() -> None:
    world = Stacks("v1", FUNCTIONS)
    registers = sleeping(world)
    world.missing = {(registers["rsp"] - world.text) // PAGE}
    (frame,) = world.unwind(**registers)
    assert (frame.name, frame.how) == ("__schedule", "registers")
    assert "nothing was placed there" in frame.why


def test_a_missing_page_above_costs_nothing_below() -> None:
    world = Stacks("v1", FUNCTIONS)
    sp = world.top - PAGE - 0x20
    world.words(sp, world.after("ret_from_fork"))
    world.missing = {(world.top - PAGE - world.text) // PAGE}
    assert brief(world.unwind(rip=world.after("plain"), rsp=sp))[1:] == ["orc TASK ret_from_fork+0x20"]


def test_a_kernel_without_tables_says_so() -> None:
    world = Stacks("v1")
    world.add_functions({"work": None})
    assert Unwinder(world).rows.why == "the kernel has no ORC tables"
    (frame,) = world.unwind(rip=world.after("work"), rsp=world.top - 0x100, rbp=0x1235678)
    assert "the kernel has no ORC tables, and rbp (0x1235678) is no frame pointer" in frame.why


def test_a_thread_without_registers_or_stack() -> None:
    world = Stacks("v1", FUNCTIONS)
    assert world.unwind() == []
    thread = Thread(0, 0, "", 0, 0, True, {"rip": world.after("plain"), "rsp": world.top - 8}, "no task")
    (frame,) = LINUX.unwind(world, thread)
    assert "on no known stack" in frame.why


def add_module(world: Stacks, rows: list[tuple[int, Row]], **wrong: int) -> int:
    """Add a module with a page of code, and a table for it; return the address of the code."""
    world.struct("struct module_layout", base="ptr", size="u32")
    world.struct("struct mod_arch_specific", num_orcs="u32", orc_unwind_ip="ptr", orc_unwind="ptr")
    world.struct(
        "struct module",
        state="u32",
        list="struct list_head",
        name=("u8", 56),
        taints="u64",
        core_layout="struct module_layout",
        init_layout="struct module_layout",
        arch="struct mod_arch_specific",
    )
    code = world.allocate(PAGE, page=True)
    ips, table = world.write_table([(code + offset, row) for offset, row in rows])
    module = world.place("struct module", name=b"odd", core_layout__base=code, core_layout__size=PAGE)
    values = {"num_orcs": len(rows), "orc_unwind_ip": ips, "orc_unwind": table, **wrong}
    for name, value in values.items():
        world.put(module, "struct module", f"arch.{name}", value)
    head = world.place("struct list_head", symbol="modules")
    world.ring(head, [module + world.types.offset_of("struct module", "list")])
    return code


def test_a_module_has_rows_of_its_own() -> None:
    world = Stacks("v3", FUNCTIONS)
    code = add_module(world, [(0, Row("call")), (0x100, Row("call", "rsp", 0x18)), (0x200, Row("call"))])
    sp = world.top - 0x100
    world.words(sp, code + 0x180)
    world.write(code + 0x180 - len(CALL), CALL)
    world.words(sp + 0x18, world.after("ret_from_fork"))
    frames = world.unwind(rip=code + 0x80, rsp=sp)
    assert [(frame.pc, frame.how, frame.why) for frame in frames] == [
        (code + 0x80, "registers", ""),
        (code + 0x180, "orc", ""),
        (world.after("ret_from_fork"), "orc", ""),
    ]


def test_a_module_without_a_table() -> None:
    world = Stacks("v3", FUNCTIONS)
    code = add_module(world, [], num_orcs=0)
    sp = world.top - 0x100
    world.words(sp + 0x20, 0, world.after("plain"), world.after("ret_from_fork"))
    frames = world.unwind(rip=code + 0x80, rsp=sp, rbp=sp + 0x20)
    assert [(frame.pc, frame.how) for frame in frames[1:]] == [
        (world.after("plain"), "frame-pointer"),
        (world.after("ret_from_fork"), "orc"),
    ]


def test_a_module_with_a_broken_table() -> None:
    world = Stacks("v3", FUNCTIONS)
    code = add_module(world, [(0, Row("call"))], num_orcs=0x7FFF_FFFF)
    frames = world.unwind(rip=code + 0x80, rsp=world.top - 0x100)
    assert "ORC rows" in frames[0].why
