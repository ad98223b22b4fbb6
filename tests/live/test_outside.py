"""From outside: the RAM of a guest that runs is a file, which is read while the guest changes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import CommandError, KernelMismatchError, KvmDbgError
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
    session.open(OpenRequest((str(copy),), str(guest.kernel.vmlinux), live=True))
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
    session.close()
