"""What fstat(1) and vmstat(8) say of the real dump of NetBSD, every line and every column of it.

Both with the layout file that came with the dump, as far as its structs go, and with the further ones that these
programs were compiled with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from stat import filemode

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.layout import read_number, read_pointer
from kvm_dbg.kernel.netbsd.cpu import read_cpus, read_current_lwps
from kvm_dbg.kernel.usage import Counter, OpenFile
from tests.golden.netbsd import Dump

USERS = {0: "root", 1001: "alice"}  # of the guest's password file
LAST_CPU_ONLY = {"faults", "traps", "swtch", "softs"}
"""vmstat, of a dump, puts each CPU's counter in place of the sum of those before (usr.bin/vmstat, cpucounters())."""


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    found = Dump(tmp_path_factory.mktemp("netbsd"))
    yield found
    found.kernel.image.close()


@pytest.fixture(scope="module")
def kernel(dump: Dump) -> Kernel:
    """The kernel with the further structs."""
    return dump.open(layout=dump.further)


def fstat_line(file: OpenFile, user: str, command: str) -> str:
    """Return a file in fstat's columns, its blanks squeezed: device names are the last words of paths in /dev."""
    fd = file.role or str(file.fd)
    head = f"{user} {command} {file.pid} {fd}"
    if file.kind == "fifo":
        assert file.path is not None
        this, arrow, peer = file.path.removeprefix("pipe:").split()
        return f"{head}* pipe {this.strip('[]')} {arrow} {peer.strip('[]')} {file.access}"
    assert file.mode is not None
    last = str(file.size)
    if file.device is not None:
        assert file.path is not None
        assert file.path.startswith("/dev/")
        last = file.path.removeprefix("/dev/")
    return f"{head} {file.mount} {file.inode} {filemode(file.mode)} {last} {file.access}"


def test_files_are_those_of_fstat(dump: Dump, kernel: Kernel) -> None:
    """Every line and every column. Of who has no descriptors, fstat shows no directories; the kernel and init do."""
    system = system_of(kernel)
    processes = {process.pid: process for process in system.for_each_process(kernel)}
    found: dict[int, list[str]] = {}
    files = list(system.for_each_file(kernel))
    assert not any(file.unread for file in files)
    busy = {file.pid for file in files if file.fd is not None}
    assert {file.pid for file in files} - busy == {0, 1}
    for file in files:
        if file.pid in busy:
            process = processes[file.pid]
            assert process.uid is not None
            found.setdefault(file.pid, []).append(fstat_line(file, USERS[process.uid], process.command))
    expected: dict[int, list[str]] = {}
    for line in (dump.truth / "fstat-dead.txt").read_text().splitlines()[1:]:
        expected.setdefault(int(line.split()[2]), []).append(" ".join(line.split()))
    assert found == expected
    assert sum(map(len, found.values())) == 77


def test_without_further_structs_of_files_the_rest_is_the_same(dump: Dump, kernel: Kernel) -> None:
    """Missing are what struct inode (INODE, MODE), struct specnode (DEVICE) and struct namecache (PATH) tell."""
    few = list(system_of(dump.kernel).for_each_file(dump.kernel))
    for less, more in zip(few, system_of(kernel).for_each_file(kernel), strict=True):
        assert (less.inode, less.mode, less.device, less.unread) == (None, None, None, ())
        assert (less.pid, less.fd, less.role, less.address) == (more.pid, more.fd, more.role, more.address)
        assert (less.kind, less.access, less.flags, less.offset) == (more.kind, more.access, more.flags, more.offset)
        assert (less.size, less.mount) == (more.size, more.mount)
    assert sum(file.size is not None for file in few) == 21  # 20 directories and a regular file


def counters(kernel: Kernel) -> dict[str, Counter]:
    return {counter.name: counter for counter in system_of(kernel).for_each_counter(kernel)}


def test_counters_are_those_of_vmstat(dump: Dump, kernel: Kernel) -> None:
    """Every line in its order, "faults relock (N ok)" being two counters and the last two lines six shares."""
    found = [counter for counter in counters(kernel).values() if not counter.name.endswith("_percent")]
    lines = (dump.truth / "vmstat-dead.txt").read_text().rstrip().splitlines()
    words = [tuple(line.split(maxsplit=1)) for line in lines[:-2]]
    pairs = [(meaning, int(number)) for number, meaning in words]
    at, (relock, count) = next((at, pair) for at, pair in enumerate(pairs) if pair[0].startswith("faults relock"))
    pairs[at : at + 1] = [("faults relock", count), ("faults relock ok", int(re.findall(r"\d+", relock)[0]))]
    assert [counter.meaning for counter in found] == [meaning for meaning, _ in pairs]
    for counter, (meaning, number) in zip(found, pairs, strict=True):
        assert counter.why == ""
        if counter.name in LAST_CPU_ONLY:
            assert counter.value is not None
            assert counter.value > number, meaning
        else:
            assert counter.value == number, meaning
    assert len(pairs) == 76


def test_shares_are_those_of_vmstat(dump: Dump, kernel: Kernel) -> None:
    text = (dump.truth / "vmstat-dead.txt").read_text()
    expected = [int(number) for number in re.findall(r"(\d+)%", text)]
    found = [counter.value for name, counter in counters(kernel).items() if name.endswith("_percent")]
    assert found == expected == [95, 3, 0, 0, 0, 0]


def test_what_vmstat_has_of_one_cpu_is_that_cpus(dump: Dump, kernel: Kernel) -> None:
    """And a counter of all CPUs is the sum; on the last one it is what vmstat says."""
    members = {"faults": "nfault", "traps": "ntrap", "swtch": "nswtch", "softs": "nsoft"}
    text = (dump.truth / "vmstat-dead.txt").read_text()
    for name, member in members.items():
        offset = kernel.types.offset_of("struct cpu_info", f"ci_data.cpu_{member}")
        each = [read_number(kernel, place + offset, 8) for place in read_cpus(kernel)]
        counter = counters(kernel)[name]
        assert counter.value == sum(each)
        assert f"{each[-1]} {counter.meaning}\n" in text


def test_further_structs_are_where_the_dump_says(dump: Dump, kernel: Kernel) -> None:
    """Pointers that lead back, numbers and names that are known otherwise."""
    types, system = kernel.types, system_of(kernel)
    for place, cpu in read_cpus(kernel).items():
        data = place + types.offset_of("struct cpu_info", "ci_data")
        assert read_number(kernel, data + types.offset_of("struct cpu_data", "cpu_index"), 4) == cpu
        assert kernel.read(data + types.offset_of("struct cpu_data", "cpu_name"), 5) == b"cpu%d\0" % cpu
        idle = read_pointer(kernel, data + types.offset_of("struct cpu_data", "cpu_idlelwp"))
        assert {lwp.name for lwp in system.for_each_lwp(kernel, 0) if lwp.address == idle} == {f"idle/{cpu}"}
    assert len(read_current_lwps(kernel)) == 2
    vnode = types.offset_of("struct file", "f_data")
    node, back = types.offset_of("struct vnode", "v_data"), types.offset_of("struct inode", "i_vnode")
    checked = 0
    for file in system.for_each_file(kernel):
        data = read_pointer(kernel, file.address + vnode) if file.fd is not None else 0
        if data and file.kind == "fifo":
            peer = types.offset_of("struct pipe", "pipe_peer")
            assert read_pointer(kernel, read_pointer(kernel, data + peer) + peer) == data
        elif data:
            assert read_pointer(kernel, read_pointer(kernel, data + node) + back) == data
            checked += 1
    assert checked == 57


def test_paths_are_those_of_the_name_cache(kernel: Kernel) -> None:
    """The shell read its script, and the devices are those that fstat found by their numbers in /dev."""
    files = list(system_of(kernel).for_each_file(kernel))
    assert {file.path for file in files if file.pid == 2} == {"/", "/dev/console", "/etc/rc"}
    assert {(file.path, file.device) for file in files if file.device is not None} == {
        ("/dev/console", (0, 0)),
        ("/dev/null", (2, 2)),
        ("/dev/tty01", (8, 1)),
    }


def test_counters_of_cpus_need_their_struct(dump: Dump) -> None:
    found = counters(dump.kernel)
    missing = {name for name, counter in found.items() if counter.value is None}
    assert missing == {*LAST_CPU_ONLY, "intrs", "syscalls"}
    assert {found[name].why for name in missing} == {"no type tells where CPUs keep their counters (struct cpu_data)"}
