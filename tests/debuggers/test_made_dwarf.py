"""Debug information made from BTF, in each debugger, against what it says of the distribution's own kernel file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel_file.dwarf import MadeDwarf, make_dwarf
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.debuggers.child import Result
from tests.debuggers.driver import Gdb, Lldb
from tests.lab import find
from tests.unit.made_dwarf import plain_btf, symbol, types_of
from tests.unit.test_made_dwarf_bad import BAD
from tests.writers.btf import FUNC, FUNC_PROTO
from tests.writers.elf import Part, write_elf

QUIET = ("-iex", "set debuginfod enabled off", "-iex", "set complaints 100")
# anonymous members, bit-fields, flexible arrays, pointers to functions, enums, 64-bit enumerators
GDB_COMMANDS = (
    "ptype struct task_struct", "ptype/o struct sk_buff", "ptype/o struct iphdr", "ptype struct mm_struct",
    "ptype struct file_operations", "ptype struct perf_event_attr", "ptype enum zone_type", "ptype struct bpf_prog",
    "p sizeof(struct rq)", "p &((struct task_struct *) 0)->comm", "p (enum pid_type) 1", "p/d MM_SHMEMPAGES",
    "ptype do_exit", "ptype schedule_timeout", "ptype vfs_read", "ptype _printk", "whatis init_task", "whatis &modules",
    "whatis &runqueues", "whatis init_net.list", "whatis __per_cpu_offset", "p sizeof(init_task)", "ptype u64",
)  # fmt: skip
LLDB_COMMANDS = (
    "p sizeof(struct task_struct)", "p &((struct task_struct *) 0)->comm", "p (enum zone_type) 2",
    "p &((struct iphdr *) 0)->saddr", "p &((struct sk_buff *) 0)->cb", "p (enum pid_type) 1", "p sizeof(init_task)",
    "p &((struct file_operations *) 0)->read", "p &((struct mm_struct *) 0)->pgd", "p sizeof(struct rq)",
)  # fmt: skip


def write(made: MadeDwarf, path: Path) -> Path:
    path.write_bytes(write_elf([Part(name, 1, 0, data) for name, data in made.sections.items()]))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a kernel file, and one made from its BTF and its symbols."""
    dump = find("deb12-4level")
    if dump is None:
        pytest.skip("the lab has no dump deb12-4level: python -m tests.lab build deb12-4level")
    elf = open_elf(dump.vmlinux)
    section = elf.find_section(".BTF")
    assert section is not None
    types = BtfTypes(elf.section_data(section))
    made = make_dwarf(types, ElfSymbolTable(dump.vmlinux).for_each())
    return dump.vmlinux, write(made, tmp_path_factory.mktemp("made") / "made")


def answer(result: Result) -> str:
    """Return what was printed, with arrays that have no length as they all look in BTF."""
    assert result.returncode == 0, result.stderr
    return re.sub(r"\[0\]", "[]", result.stdout)


def test_gdb_says_the_same(gdb: Gdb, files: tuple[Path, Path]) -> None:
    theirs, ours = (
        gdb.run([word for command in GDB_COMMANDS for word in ("echo @\\n", command)], [*QUIET, str(file)])
        for file in files
    )
    assert "During symbol reading" not in ours.stderr
    pairs = zip(GDB_COMMANDS, answer(ours).split("@\n")[1:], answer(theirs).split("@\n")[1:], strict=True)
    assert {command: (mine, other) for command, mine, other in pairs if mine != other or not mine} == {}


def test_lldb_says_the_same(lldb: Lldb, files: tuple[Path, Path]) -> None:
    theirs, ours = (lldb.run(LLDB_COMMANDS, [str(file)]) for file in files)
    assert answer(ours).splitlines()[1:] == answer(theirs).splitlines()[1:]  # the first line names the file
    assert len(ours.stdout.splitlines()) == 1 + len(LLDB_COMMANDS)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a file made from BTF with everything that makes no sense."""
    btf = plain_btf()
    for build, _ in BAD.values():
        build(btf)
    last = btf.next
    btf.struct("everything", 8 * last, [(f"m{number}", number, 64 * number) for number in range(1, last)])
    btf.add("work", FUNC, btf.add("", FUNC_PROTO, 0, [0, last], 1), [])
    made = make_dwarf(types_of(btf), [symbol("work", 0xFFFFFFFF81000000)])
    assert made.left_out > len(BAD)
    return write(made, tmp_path / "broken")


def test_gdb_survives_broken_types(gdb: Gdb, broken: Path) -> None:
    done = gdb.run(
        ["ptype struct everything", "ptype struct selfish", "ptype struct s", "p *(struct everything *) 0", "p 6 * 7"],
        [*QUIET, str(broken)],
    )
    assert "During symbol reading" not in done.stderr
    assert "struct broken_btf_type" in done.stdout
    assert "$1 = 42" in done.stdout


def test_lldb_survives_broken_types(lldb: Lldb, broken: Path) -> None:
    done = lldb.run(["type lookup everything", "type lookup selfish", "type lookup s", "p 6 * 7"], [str(broken)])
    assert "broken_btf_type" in done.stdout
    assert "42" in done.stdout.splitlines()[-1]
