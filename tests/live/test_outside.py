"""From outside: the RAM of a guest that runs is a file, which is read while the guest changes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import CommandError, KernelMismatchError, KvmDbgError, NotInImageError, NotMappedError
from kvm_dbg.kernel.write import write_memory
from tests.debuggers.debugger import DEBUGGERS, Missing, by_name, clean_environment, find
from tests.lab import cache
from tests.lab.package import obtain_kernel
from tests.lab.scenario import find_kernel
from tests.live.hold import check, hold
from tests.live.machine import LiveGuest

WORDS: tuple[str, ...] = ()
SLEEPERS = 1000
CHURN = 30  # seconds during which processes are made and die
SHORT_LIVED = {"mayfly", "maker", "crowd", "sh", "sleep", "base64", "rm", "cat", "busybox", "agent.sh"}


@pytest.fixture(scope="module")
def session(guest: LiveGuest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The guest's RAM, opened with its kernel file."""
    session = Session(None, str(tmp_path_factory.mktemp("index")))
    session.open(OpenRequest((str(guest.ram),), str(guest.kernel.vmlinux), live=True, index_directory=None))
    return session


@pytest.fixture
def copy(guest: LiveGuest, tmp_path: Path) -> Path:
    """A copy of the guest's RAM, taken while it was paused."""
    path = tmp_path / "copy"
    guest.execute("stop")
    try:
        subprocess.run(["cp", "--sparse=always", str(guest.ram), str(path)], check=True)
    finally:
        guest.execute("cont")
    return path


def ask(session: Session, line: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads("".join(run_line(session, f"{line} --json")))
    return found


def ask_one(session: Session, line: str) -> dict[str, object]:
    found: dict[str, object] = json.loads("".join(run_line(session, f"{line} --json")))
    return found


def listed(guest: LiveGuest) -> dict[int, str]:
    """Return PID -> name of the guest's processes, by its /proc; what lists them is left out."""
    text = guest.check('for f in /proc/[0-9]*/stat; do read -r line <$f && echo "$line"; done 2>/dev/null; true')
    found = re.findall(r"^(\d+) \((.*)\) \S ", text, re.MULTILINE)
    return {int(pid): name for pid, name in found if name not in SHORT_LIVED}


def test_processes_are_those_of_proc(guest: LiveGuest, session: Session) -> None:
    before = listed(guest)
    rows = {row["pid"]: row["command"] for row in ask(session, "procs")}
    after = listed(guest)
    ours = {pid: str(name).strip("[]") for pid, name in rows.items() if str(name) not in SHORT_LIVED}
    steady = {pid: name for pid, name in before.items() if after.get(pid) == name}
    assert {pid: name for pid, name in ours.items() if pid in steady} == steady
    assert set(ours) <= set(before) | set(after)
    assert len(steady) > 50


def test_the_monitor_leads_to_the_ram_file(guest: LiveGuest, session: Session) -> None:
    check(hold(guest, str(guest.qmp)))
    monitored = Session()
    monitored.open(OpenRequest((), str(guest.kernel.vmlinux), qmp=str(guest.qmp)))
    assert monitored.image.info.quirks == ()
    assert ("memory", str(guest.ram)) in monitored.image.info.details
    ask_one(monitored, "halt")
    try:
        lines = ("procs", "lwps", "args", "env", "loadavg", "mods", "log")
        assert [ask(session, line) for line in lines] == [ask(monitored, line) for line in lines]
    finally:
        ask_one(monitored, "resume")
    monitored.close()


def test_another_kernel_behind_the_monitor(guest: LiveGuest) -> None:
    """As after a restart, for as long as the guest stands still: where the kernel's name was, there is another one."""
    session = Session()
    session.open(OpenRequest((), str(guest.kernel.vmlinux), qmp=str(guest.qmp)))
    ask_one(session, "halt")
    release = guest.kernel.release.encode()
    names = session.find_symbol("init_uts_ns").address
    paddr = session.kernel.translate(names + session.kernel.read(names, 512).index(release))
    with guest.ram.open("r+b") as file:
        try:
            file.seek(paddr)
            file.write(b"0" * len(release))
            file.flush()
            with pytest.raises(CommandError, match=r"is not the one that was opened any more .*open it again"):
                ask_one(session, "refresh")
        finally:
            file.seek(paddr)
            file.write(release)
            file.flush()
            guest.execute("cont")
    ask_one(session, "refresh")
    session.close()


def test_dev_mem_is_refused_without_iomem_relaxed_too(guest: LiveGuest) -> None:
    answer = guest.run("cd /kvm && python3 -m kvm_dbg.cli procs /dev/mem")
    assert answer.status == 1
    assert "is refused (Operation not permitted)" in answer.text
    assert "CONFIG_STRICT_DEVMEM" in answer.text


def test_a_paused_guest_gives_consistent_answers(guest: LiveGuest, session: Session) -> None:
    guest.execute("stop")
    try:
        first = {line: ask(session, line) for line in ("procs", "lwps", "args", "mods", "log")}
        assert all(ask(session, line) == answer for line, answer in first.items())
        text = "".join(run_line(session, "procs"))
    finally:
        guest.execute("cont")
    assert "changed while reading" not in text


def test_every_command_looks_afresh(guest: LiveGuest, session: Session) -> None:
    jiffies = [ask(session, "read jiffies 8") for _ in (1, 2) if guest.check("sleep 0.1") == ""]
    assert jiffies[0] != jiffies[1]
    guest.check("/live/crowd 1 0 >/tmp/one & sleep 1; echo $! >/tmp/one.pid")
    pid = int(guest.check("cut -d' ' -f2 /tmp/one"))
    assert pid in {row["pid"] for row in ask(session, "procs")}
    guest.check(f"kill {pid} $(cat /tmp/one.pid); sleep 1")
    assert pid not in {row["pid"] for row in ask(session, "procs") if row["state"] != "Z"}
    before = {row["name"] for row in ask(session, "mods")}
    guest.check("rmmod dummy")
    assert before - {row["name"] for row in ask(session, "mods")} == {"dummy"}


def test_a_thousand_processes_while_others_come_and_go(guest: LiveGuest, session: Session) -> None:
    guest.check(f"/live/crowd {SLEEPERS} 2 >/tmp/crowd & until grep -q ' ..*$' /tmp/crowd; do sleep 0.3; done")
    crowd = guest.check("until tail -c1 /tmp/crowd | grep -q '^$'; do sleep 0.2; done; cat /tmp/crowd")
    sleepers = {int(word) for word in crowd.split()[1:]}
    assert len(sleepers) == SLEEPERS
    base = {pid for pid, name in listed(guest).items() if name != "sleeper" and not name.startswith("kworker/")}
    makers: set[object] = set()
    until = time.monotonic() + CHURN
    looks = 0
    while time.monotonic() < until:
        rows = {row["pid"]: row for row in ask(session, "procs")}
        assert {pid for pid in sleepers if pid not in rows} == set()
        assert {pid for pid in base if pid not in rows} == set()
        assert {str(rows[pid]["command"]) for pid in sleepers} == {"sleeper"}
        named = {pid for pid, row in rows.items() if row["command"] == "maker"}
        makers = makers & named if looks else named  # a mayfly is called so too, before it has a name of its own
        others = [row for pid, row in rows.items() if pid not in sleepers and pid not in base]
        for row in others:
            name = str(row["command"]).strip("[]")
            assert name in SHORT_LIVED or name.startswith("kworker/"), row
            assert not row["unread"], row
        looks += 1
    assert looks > 3
    assert len(makers) == 2
    last = int(guest.check("cut -d' ' -f5 /proc/loadavg"))
    assert last > max(sleepers) + 100, "nothing was made and died meanwhile"


def test_the_program_lists_a_thousand(guest: LiveGuest, tmp_path: Path) -> None:
    """Twice, since the first run makes the index that the second one uses."""
    command = [sys.executable, "-m", "kvm_dbg.cli", "procs", "--live", str(guest.kernel.vmlinux), str(guest.ram)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("sleeper") == SLEEPERS


@pytest.fixture
def writer(guest: LiveGuest) -> Iterator[Session]:
    """The guest's RAM, opened for writing."""
    session = Session()
    session.open(OpenRequest((str(guest.ram),), str(guest.kernel.vmlinux), live=True, write=True))
    yield session
    session.close()


def sysctl(guest: LiveGuest, name: str) -> str:
    return guest.check(f"cat /proc/sys/kernel/{name}").strip()


def test_what_is_written_the_guest_sees(guest: LiveGuest, writer: Session) -> None:
    before = {name: sysctl(guest, name) for name in ("panic", "printk", "hostname")}
    ask_one(writer, "write panic_timeout 77")
    ask_one(writer, "write console_printk+4 --u32 6")
    ask_one(writer, f"write {find_text(writer, 'init_uts_ns', b'live'):#x} --text more")
    assert sysctl(guest, "panic") == "77"
    assert sysctl(guest, "printk").split()[1] == "6"
    assert sysctl(guest, "hostname") == "more"
    assert [row["symbol"] for row in ask(writer, "write --log")][:2] == ["panic_timeout+0x0", "console_printk+0x4"]
    for _ in before:
        ask_one(writer, "write --undo")
    assert {name: sysctl(guest, name) for name in before} == before


def test_what_the_guest_has_changed_is_not_taken_back(guest: LiveGuest, writer: Session) -> None:
    ask_one(writer, "write panic_timeout 77")
    guest.check("echo 5 >/proc/sys/kernel/panic")
    with pytest.raises(CommandError, match=r"are 05000000 now, and not 4d000000 any more"):
        ask(writer, "write --undo")
    assert sysctl(guest, "panic") == "5"
    ask_one(writer, "write --undo --force")
    assert sysctl(guest, "panic") == "0"


def test_writes_that_are_refused(guest: LiveGuest, session: Session, writer: Session) -> None:
    hidden = "/proc/sys/kernel/kptr_restrict"  # 0 shows hashes, 1 shows addresses to root
    device = int(
        guest.check(f"echo 1 >{hidden}; grep -m1 ioremap /proc/vmallocinfo; echo 0 >{hidden}").split("-")[0], 16
    )
    with pytest.raises(NotInImageError, match=r"is no RAM, by the kernel|is not memory that the image"):
        ask(writer, f"write {device:#x} --u32 0 --force")
    for name, text in (
        ("linux_banner", "is mapped for reading only"),
        ("do_syscall_64", "is code of the running kernel"),
        ("sys_call_table", "is mapped for reading only"),
    ):
        with pytest.raises(CommandError, match=text):
            ask(writer, f"write {name} --u8 0")
    with pytest.raises(NotMappedError):
        ask(writer, "write 0xffffffffff000000 --u8 0 --force")
    with pytest.raises(CommandError, match="opened for reading only: `open --write`"):
        ask(session, "write panic_timeout 1")
    assert ask(writer, "write --log") == []


@pytest.mark.parametrize("name", [debugger.name for debugger in DEBUGGERS])
def test_a_debuggers_own_writes_reach_the_guest(guest: LiveGuest, name: str) -> None:
    debugger = find(by_name(name))
    if isinstance(debugger, Missing):
        pytest.skip(debugger.reason)
    opening = f"kvm open --live --write {guest.kernel.vmlinux} {guest.ram}"
    if debugger.debugger.kind == "gdb":
        options, word, source = ["-nx", "-batch"], "-ex", "source gdb/kvm_dbg_gdb.py"
        change, constant = "set var panic_timeout = {}", "set var linux_banner[0] = 0"
    else:
        options, word, source = ["--no-lldbinit", "-b"], "-o", "command script import lldb/kvm_dbg_lldb.py"
        # What fails ends a batch of lldb's; so it is run from within.
        change = "script lldb.debugger.HandleCommand('memory write -s 4 &panic_timeout {:#x}')"
        constant = "script lldb.debugger.HandleCommand('memory write -s 1 &linux_banner 0')"
    lines = [source, opening, change.format(78), "print panic_timeout", "kvm write --log", constant,
             opening.replace(" --write", ""), change.format(79)]  # fmt: skip
    result = subprocess.run(
        [debugger.program, *options, *(part for line in lines for part in (word, line))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**clean_environment(), "KVM_DBG_PYTHON": sys.executable},
        timeout=240,
    )
    text = result.stdout + result.stderr
    assert re.search(r"(= |\) )78$", text, re.MULTILINE), text
    assert re.search(r"panic_timeout\+0x0 +4 00000000 4e000000", text), text
    assert re.search(r"kvm: linux_banner\+0x0 \(0x[0-9a-f]+\) is mapped for reading only", text), text
    assert "kvm: a running kernel is opened for reading only: `open --write` lets it be written to" in text, text
    assert sysctl(guest, "panic") == "78"
    guest.check("echo 0 >/proc/sys/kernel/panic")


def find_text(session: Session, name: str, text: bytes) -> int:
    """Return the address of a NUL-terminated text in a variable."""
    address = session.find_symbol(name).address
    return address + session.kernel.read(address, 512).index(b"\0" + text + b"\0") + 1


def test_top_shows_who_is_busy(guest: LiveGuest, session: Session) -> None:
    guest.check("(while :; do :; done) >/dev/null & echo $! >/tmp/busy")
    busy = int(guest.check("cat /tmp/busy"))
    lines = [json.loads(block) for block in run_line(session, "top --watch 0.5 --count 2 --limit 0 --json")]
    free = int(re.search(r"MemFree: +(\d+)", guest.check("cat /proc/meminfo"))[1])  # type: ignore[index]
    text = "".join(run_line(session, "top --count 1"))
    guest.check("kill $(cat /tmp/busy)")
    shares = [{row["pid"]: row["pcpu"] for row in line["rows"]} for line in lines]
    assert all(share[busy] > 5 for share in shares)  # the crowd of the test above may be busy as well
    assert all(share[1] < share[busy] for share in shares)
    assert all(list(share.values()) == sorted(share.values(), reverse=True) for share in shares)
    shown = re.search(r"memory [\d.]+ MiB, ([\d.]+) MiB free", text)
    assert shown is not None
    assert abs(float(shown[1]) * 1024 - free) < 16 << 10  # KiB: what is on its way


def test_gdb_prints_what_changes(guest: LiveGuest) -> None:
    gdb = shutil.which("gdb") or pytest.skip("no gdb")
    guest.check("(while :; do :; done) >/dev/null & echo $! >/tmp/busy")  # an idle machine counts no jiffies
    words = [
        "source gdb/kvm_dbg_gdb.py", f"kvm open --live {guest.kernel.vmlinux} {guest.ram}", "print jiffies",
        "shell sleep 0.1", "print jiffies", "kvm refresh", "print init_task.comm", "info threads",
    ]  # fmt: skip
    arguments = [word for line in words for word in ("-ex", line)]
    environment = {**os.environ, "KVM_DBG_PYTHON": sys.executable}
    result = subprocess.run(
        [gdb, "-nx", "-batch", *arguments], capture_output=True, text=True, env=environment, timeout=240
    )
    guest.check("kill $(cat /tmp/busy)")
    values = [int(value) for value in re.findall(r"^\$\d+ = (\d+)$", result.stdout, re.MULTILINE)]
    assert len(values) == 2, result.stdout + result.stderr
    assert values[1] > values[0]
    assert '"swapper/0' in result.stdout
    assert '"kthreadd/2"' in result.stdout


def test_another_kernels_file_is_refused(guest: LiveGuest) -> None:
    other = obtain_kernel(cache.find_root().absolute(), find_kernel("deb13")).vmlinux
    with pytest.raises(KernelMismatchError, match="is not the kernel of this image"):
        Session().open(OpenRequest((str(guest.ram),), str(other), live=True))


def look(path: Path, vmlinux: Path, paddr: int) -> None:
    """Open a RAM file and read at a physical address."""
    session = Session()
    try:
        session.open(OpenRequest((str(path),), str(vmlinux), live=True))
        ask(session, f"read --phys {paddr:#x} 8")
    finally:
        session.close()


def test_a_file_shorter_than_the_memory(guest: LiveGuest, copy: Path, tmp_path: Path) -> None:
    """What lies above is missing, and is never taken for zeros; the kernel's page tables may be among it."""
    last = guest.memory - (1 << 22)
    look(copy, guest.kernel.vmlinux, last)
    short = tmp_path / "short"
    subprocess.run(["cp", "--sparse=always", str(copy), str(short)], check=True)
    os.truncate(short, last)
    with pytest.raises(KvmDbgError, match=r"is not memory that the image describes|8 of 8 bytes are not in the image"):
        look(short, guest.kernel.vmlinux, last)


def test_a_file_with_another_kernel_in_it(guest: LiveGuest, copy: Path) -> None:
    """As after a restart: where the kernel's own name was, there is another one."""
    session = Session()
    session.open(OpenRequest((str(copy),), str(guest.kernel.vmlinux), live=True, write=True))
    ask(session, "loadavg")
    names = session.find_symbol("init_uts_ns").address
    release = guest.kernel.release.encode()
    place = session.kernel.read(names, 512).index(release)
    paddr = session.kernel.translate(names + place)
    with copy.open("r+b") as file:
        file.seek(paddr)
        assert file.read(len(release)) == release
        file.seek(paddr)
        file.write(b"0" * len(release))
    with pytest.raises(CommandError, match=r"is not the one that was opened any more .*open it again"):
        ask(session, "loadavg")
    with pytest.raises(CommandError, match="is not the one that was opened any more"):  # as a debugger's own writes do
        write_memory(session.kernel, session.system.kernel_space(session.kernel), names, b"x")
    session.close()
