"""Inside a live guest: its own memory, against its own /proc at the same time."""

from __future__ import annotations

import json
import re

import pytest

from tests.live.machine import Answer, LiveGuest

KVM = "cd /kvm && python3 -m kvm_dbg.cli"
ALLOWED = bytes.fromhex("b801000000c3")  # mov $1, %eax; ret: devmem_is_allowed() of a kernel without the option
WORDS = ("iomem=relaxed",)  # which is about devices, and does not open /dev/mem
NEEDS = "takes root, or the capabilities CAP_SYS_RAWIO and CAP_DAC_READ_SEARCH"


def compare(guest: LiveGuest, device: str) -> None:
    """Hold what kvm_dbg says by a device against /proc: guest/compare.py."""
    found = json.loads(guest.check(f"cd /tmp && python3 /live/compare.py {device}"))
    assert found["wrong"] == []
    checked = found["checked"]
    assert checked["processes"] > 50
    assert checked["identity"] > 30
    assert min(checked["args"], checked["env"]) >= 7
    assert checked["threads"] > 30
    assert checked["mods"] >= 6
    assert checked["log"] > 100
    assert checked["loadavg"] == 1
    assert checked["no strings"] > 20


def test_kcore_says_what_proc_says(guest: LiveGuest) -> None:
    compare(guest, "/proc/kcore")


def test_open_without_an_image_is_kcore(guest: LiveGuest) -> None:
    status = json.loads(guest.check(f"{KVM} open --json"))
    assert (status["image"], status["format"]) == (["/proc/kcore"], "live")
    assert status["release"] == guest.check("uname -r").strip()
    symbol = json.loads(guest.check(f"{KVM} nlist --live jiffies --json"))
    listed = guest.check("grep ' jiffies$' /proc/kallsyms").split()[0]
    assert symbol[0]["address"] == f"0x{listed}"


def test_a_user_is_told_what_it_takes(guest: LiveGuest) -> None:
    write = "write --live --write panic_timeout 1 --size 4"
    for command in ("procs --live", "procs /proc/kcore", "procs /dev/mem", "open", write):
        answer = guest.run(f"{KVM} {command}", uid=1000)
        assert answer.status == 1
        lines = [line for line in answer.text.splitlines() if "no index is kept" not in line]
        assert len(lines) == 1
        assert NEEDS in lines[0]
        assert "sudo" in lines[0]


def test_a_user_has_proc_without_files(guest: LiveGuest) -> None:
    lines = (
        "import kvm_dbg.kvm as k, os",
        "kd = k.kvm_open(None, None, None, k.KVM_NO_FILES)",
        "read = lambda: [float(word) for word in open('/proc/loadavg').read().split()[:3]]",
        "load, before = [], None",
        "while before != read() or not load:",
        "    before, load = read(), []",
        "    assert k.kvm_getloadavg(kd, load, 3) == 3",
        "procs = {p.p_pid: (p.p_comm, p.p_uid) for p in k.kvm_getproc2(kd)}",
        "argv = k.kvm_getargv(kd, k.kvm_getprocs(kd, k.KERN_PROC_PID, os.getpid())[0])",
        "assert k.kvm_read(kd, 4096, bytearray(8)) == -1",
        "print(procs[1], procs[os.getpid()], argv[:2], load == before, k.kvm_geterr(kd))",
    )
    guest.check("cat >/tmp/nofiles.py <<'END'\n" + "\n".join(lines) + "\nEND")
    text = guest.check("cd /kvm && PYTHONPATH=/kvm python3 /tmp/nofiles.py", uid=1000)
    assert "agent.sh" in text
    assert "1000)" in text
    assert "[b'python3', b'/tmp/nofiles.py'] True" in text
    assert "opened without files" in text


FALLBACK = """
import sys
from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.linux import kernel
from kvm_dbg.symbols import kallsyms_table

def refuse(*_, **__):
    raise ReadError(0, "it is not there")

kallsyms_table.read_kallsyms = refuse
kernel._btf_range = lambda _: None
from kvm_dbg.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_symbols_and_types_that_the_kernel_tells(guest: LiveGuest) -> None:
    """Its tables in memory are made unreadable: /proc/kallsyms and /sys/kernel/btf have the same."""
    guest.check(f"cat >/tmp/fallback.py <<'END'\n{FALLBACK}\nEND")
    program = "cd /kvm && PYTHONPATH=/kvm python3 /tmp/fallback.py"
    status = json.loads(guest.check(f"{program} status --live --json"))
    assert (status["symbols"], status["types"]) == ("/proc/kallsyms", "/sys/kernel/btf/vmlinux")
    assert "symbols are those of /proc/kallsyms, for it is not there" in str(status["quirks"])
    guest.check("echo 2 >/proc/sys/kernel/kptr_restrict")
    answer = guest.run(f"{program} status --live")
    guest.check("echo 0 >/proc/sys/kernel/kptr_restrict")
    assert answer.status == 1
    assert "it is not there; /proc/kallsyms: hides the addresses" in answer.text


def test_running_threads_say_that_they_run(guest: LiveGuest) -> None:
    answer = guest.check("cd /kvm && exec python3 -m kvm_dbg.cli bt --live $$")
    assert "does not tell its registers while it runs" in answer
    assert "do_wait" in guest.check(f"{KVM} bt --live 1")


def test_gdb_reads_what_changes(guest: LiveGuest) -> None:
    """With symbols and types made from memory, which takes an emulated machine most of a minute."""
    words = [
        "source /kvm/gdb/kvm_dbg_gdb.py",
        "kvm open --live",
        "kvm procs --pid 1",
        "print jiffies",
        "shell sleep 0.1",
        "print jiffies",
        "info threads",
    ]
    commands = " ".join(f"-ex '{word}'" for word in words)
    answer = guest.check(f"KVM_DBG_PYTHON=/usr/bin/python3 gdb -nx -batch {commands} 2>&1", timeout=300)
    values = [int(value) for value in re.findall(r"^\$\d+ = (\d+)$", answer, re.MULTILINE)]
    assert len(values) == 2
    assert 0 < values[1] - values[0] < 250 * 60  # HZ is 250
    assert "agent.sh" in answer
    assert '"kthreadd/2"' in answer


def test_strict_dev_mem_is_refused_by_range(guest: LiveGuest) -> None:
    answer = guest.run(f"{KVM} procs /dev/mem")
    ram = guest.check("grep 'System RAM' /proc/iomem").splitlines()
    high = [line.split()[0].split("-") for line in ram if int(line.split("-")[1].split()[0], 16) > 1 << 20]
    assert answer.status == 1
    for low, end in high:
        assert f"{int(low, 16):#x}-{int(end, 16):#x} is refused (Operation not permitted)" in answer.text
    assert high
    assert "CONFIG_STRICT_DEVMEM" in answer.text


@pytest.fixture(scope="module")
def open_guest(guest: LiveGuest) -> LiveGuest:
    """The guest, for the rest of the module with all RAM in /dev/mem.

    Debian's kernels have CONFIG_STRICT_DEVMEM; the function that it adds is made to say yes.
    """
    address = int(guest.check("grep ' devmem_is_allowed$' /proc/kallsyms").split()[0], 16)
    guest.patch(address, ALLOWED)
    return guest


def test_dev_mem_says_what_proc_says(open_guest: LiveGuest) -> None:
    compare(open_guest, "/dev/mem")


def test_kcore_is_not_written_to(guest: LiveGuest) -> None:
    answer = guest.run(f"{KVM} write --write /proc/kcore panic_timeout 1 --size 4")
    assert answer.status == 1
    assert "/proc/kcore: cannot be written to: the kernel has no such operation; /dev/mem can" in answer.text
    answer = guest.run(f"{KVM} write --live panic_timeout 1 --size 4")
    assert (answer.status, answer.text.splitlines()[-1].split(": ", 1)[1]) == (
        1,
        "a running kernel is opened for reading only: `open --write` lets it be written to",
    )


def test_dev_mem_writes_a_sysctl(open_guest: LiveGuest) -> None:
    guest = open_guest
    row = json.loads(guest.check(f"{KVM} write --live --write panic_timeout 77 --size 4 --json"))
    assert (row["symbol"], row["old"], row["new"]) == ("panic_timeout+0x0", "00000000", "4d000000")
    assert guest.check("cat /proc/sys/kernel/panic") == "77\n"
    words = [
        "source /kvm/gdb/kvm_dbg_gdb.py",
        "kvm open --live --write --no-symbols",
        'set $place = (int *)$kvm_nlist("panic_timeout")',
        "print *$place",
        "set var *$place = 78",
        "shell cat /proc/sys/kernel/panic",
        "kvm write --undo",
        "shell cat /proc/sys/kernel/panic",
    ]
    commands = " ".join(f"-ex '{word}'" for word in words)
    answer = guest.run(f"KVM_DBG_PYTHON=/usr/bin/python3 gdb -nx -batch {commands} 2>&1")
    lines = answer.text.splitlines()  # gdb's own come when it has enough of them
    assert "$1 = 77" in lines, answer.text
    assert [line for line in lines if line.isdecimal()] == ["78", "77"], answer.text
    guest.check("echo 0 >/proc/sys/kernel/panic")


def test_lockdown_is_named(guest: LiveGuest) -> None:
    """Last of all: nothing undoes a lockdown."""
    guest.check("echo confidentiality >/sys/kernel/security/lockdown")
    answer: Answer = guest.run(f"{KVM} procs --live")
    assert answer.status == 1
    assert "/proc/kcore: Operation not permitted: the kernel is locked down (confidentiality)" in answer.text
