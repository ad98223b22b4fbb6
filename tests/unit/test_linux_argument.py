"""Arguments and environments by the rules of /proc/PID/cmdline, through a process's own page tables."""

from __future__ import annotations

import pytest

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import CommandError, CorruptError, NotMappedError
from kvm_dbg.image.base import BytesImage
from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.linux.argument import read_arguments, read_environment, split_strings
from kvm_dbg.kernel.linux.mm import address_space
from kvm_dbg.kernel.space import ImageSpace
from tests.writers.linux import START
from tests.writers.linux_task import Tasks
from tests.writers.page_table import PAGE, PageTables

STACK = 0x7FFF_FFFF_0000
PF_KTHREAD = 0x00200000


class Strings:
    """A process whose argument and environment strings lie from STACK + `place` on."""

    def __init__(self, arguments: bytes, environment: bytes = b"", *, place: int = 0x100, pages: int = 2) -> None:
        kernel = self.kernel = Tasks()
        user = PageTables(root=0x40_0000, first_table=0x41_0000)
        data = bytearray(pages * PAGE)
        data[place : place + len(arguments) + len(environment)] = arguments + environment
        for index in range(pages):
            user.page(0x50_0000 + index * PAGE, bytes(data[index * PAGE : (index + 1) * PAGE]))
            user.map(STACK + index * PAGE, 0x50_0000 + index * PAGE)
        kernel.image = BytesImage(user.segments())
        kernel.space = ImageSpace(X86_64, kernel.image, Paging(0x1000, 4))  # type: ignore[attr-defined]
        start = STACK + place
        end = start + len(arguments)
        self.mm = kernel.place(
            "struct mm_struct",
            pgd=START + 0x40_0000,
            arg_start=start,
            arg_end=end,
            env_start=end,
            env_end=end + len(environment),
        )
        self.task = kernel.process(5, mm=self.mm)
        self.process = Process(5, self.task)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.kernel.put(self.mm, "struct mm_struct", name, value)

    def arguments(self) -> list[bytes] | None:
        return read_arguments(self.kernel, self.process)

    def environment(self) -> list[bytes] | None:
        return read_environment(self.kernel, self.process)


def test_both() -> None:
    strings = Strings(b"sh\0-c\0\0echo hi\0", b"A=1\0B=\0")
    assert strings.arguments() == [b"sh", b"-c", b"", b"echo hi"]
    assert strings.environment() == [b"A=1", b"B="]


def test_across_a_page() -> None:
    strings = Strings(b"x" * 100 + b"\0" + b"y" * 100 + b"\0", place=PAGE - 60)
    assert strings.arguments() == [b"x" * 100, b"y" * 100]


def test_none_at_all() -> None:
    strings = Strings(b"")
    assert (strings.arguments(), strings.environment()) == ([], [])


def test_a_title_that_fits() -> None:
    assert Strings(b"new title\0rest of old arguments").arguments() == [b"new title"]


def test_a_title_that_runs_into_the_environment() -> None:
    strings = Strings(b"a very long tit", b"le of a process\0OLD=1\0")
    assert strings.arguments() == [b"a very long title of a process"]


def test_a_title_stays_in_the_arguments_if_the_environment_is_elsewhere() -> None:
    strings = Strings(b"a very long tit", b"le of a process\0")
    strings.set(env_start=STACK + PAGE, env_end=STACK + PAGE + 100)
    assert strings.arguments() == [b"a very long tit"]


def test_a_title_has_a_page_at_most() -> None:
    strings = Strings(b"t" * 5000, pages=3)
    assert strings.arguments() == [b"t" * PAGE]


def test_a_title_before_a_page_that_is_missing() -> None:
    strings = Strings(b"t" * 50, b"u" * 100, place=PAGE - 60, pages=1)
    assert strings.arguments() == [b"t" * 50 + b"u" * 10]


def test_a_missing_page() -> None:
    strings = Strings(b"a" * 50 + b"\0", b"B=" + b"2" * 100 + b"\0", place=PAGE - 60, pages=1)
    assert strings.arguments() == [b"a" * 50]
    with pytest.raises(NotMappedError):
        strings.environment()


def test_impossible_addresses() -> None:
    strings = Strings(b"a\0")
    strings.set(arg_end=STACK + (1 << 30))
    with pytest.raises(CorruptError):
        strings.arguments()


def test_kernel_threads_and_zombies_have_none() -> None:
    strings = Strings(b"a\0")
    for flags, mm in ((PF_KTHREAD, strings.mm), (0, 0)):
        strings.kernel.put(strings.task, "struct task_struct", "flags", flags)
        strings.kernel.put(strings.task, "struct task_struct", "mm", mm)
        assert (strings.arguments(), strings.environment()) == (None, None)
        with pytest.raises(CommandError, match="no user address space"):
            address_space(strings.kernel, strings.task)


def test_the_address_space_of_a_process() -> None:
    strings = Strings(b"hello\0")
    assert address_space(strings.kernel, strings.task).read(STACK + 0x100, 5) == b"hello"


@pytest.mark.parametrize(
    ("data", "strings"),
    [(b"", []), (b"\0", [b""]), (b"a\0", [b"a"]), (b"a\0\0", [b"a", b""]), (b"a\0b", [b"a", b"b"])],
)
def test_split(data: bytes, strings: list[bytes]) -> None:
    assert split_strings(data) == strings
