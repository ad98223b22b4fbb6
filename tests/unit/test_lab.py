"""The lab's own pure functions: the cache, the archives, the parsing of what a guest says."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import tarfile
import threading
from pathlib import Path

import pytest

from tests.lab import cache, guest
from tests.lab.build import extract_tar
from tests.lab.cpio import Archive
from tests.lab.derive import FileList, collect_from_guest, move_program_headers
from tests.lab.dump import Dump, Truth
from tests.lab.gdbstub import REGISTERS, Gdbstub
from tests.lab.qemu import copy_sparse, split_memory
from tests.lab.scenario import CATCHES, KERNELS, SCENARIOS, Catch, LabError, find_catch, find_kernel, find_scenario

GIB = 1 << 30


def write_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def make_nothing(_work: Path) -> None:
    """Make an empty entry."""


# ---- cache ----


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(work: Path) -> None:
        made.append(work)
        (work / "file").write_text("content")

    first = cache.obtain(tmp_path, "dumps", "a", "k1", make)
    second = cache.obtain(tmp_path, "dumps", "a", "k1", make)
    assert first == second == tmp_path / "dumps" / "a-k1"
    assert (first / "file").read_text() == "content"
    assert len(made) == 1
    assert not made[0].exists()


def test_a_failed_entry_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    def fail(work: Path) -> None:
        (work / "half").write_text("half")
        raise LabError("broken")

    with pytest.raises(LabError, match="broken"):
        cache.obtain(tmp_path, "dumps", "a", "k1", fail)
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "dumps").exists()
    assert list(cache.obtain(tmp_path, "dumps", "a", "k1", make_nothing).iterdir()) == []


def test_rubbish_of_a_killed_builder_is_not_taken_over(tmp_path: Path) -> None:
    rubbish = tmp_path / "work" / "dumps-a" / "half"
    rubbish.mkdir(parents=True)
    entry = cache.obtain(tmp_path, "dumps", "a", "k1", make_nothing)
    assert list(entry.iterdir()) == []


def test_new_inputs_replace_the_old_entry_of_that_name_only(tmp_path: Path) -> None:
    for name, key in (("a", "k1"), ("a-b", "k1"), ("a", "k2")):
        cache.obtain(tmp_path, "dumps", name, key, make_nothing)
    assert sorted(path.name for path in (tmp_path / "dumps").iterdir()) == ["a-b-k1", "a-k2"]


def test_two_builders_make_an_entry_once(tmp_path: Path) -> None:
    entered = threading.Event()
    go_on = threading.Event()
    made: list[str] = []

    def slow(work: Path) -> None:
        entered.set()
        assert go_on.wait(10)
        made.append("slow")

    first = threading.Thread(target=cache.obtain, args=(tmp_path, "dumps", "a", "k", slow))
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=cache.obtain, args=(tmp_path, "dumps", "a", "k", lambda _: made.append("second")))
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    assert made == ["slow"]


def test_digest_tells_inputs_apart(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"one")
    first = cache.digest("a", file)
    file.write_bytes(b"two")
    assert cache.digest("a", file) != first
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert len(first) == 12


def test_source_digest_ignores_formatting(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f(a):\n    return a + 1\n")
    first = cache.digest_source(file)
    file.write_text("# a comment\ndef f( a ):\n\n    return (a + 1)\n")
    assert cache.digest_source(file) == first
    file.write_text("def f(a):\n    return a + 2\n")
    assert cache.digest_source(file) != first


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("KVM_DBG_LAB_CACHE", raising=False)
    assert cache.find_root() == tmp_path / "xdg" / "kvm-dbg" / "lab"
    monkeypatch.setenv("KVM_DBG_LAB_CACHE", str(tmp_path / "own"))
    assert cache.find_root() == tmp_path / "own"


# ---- archives ----


def read_cpio(data: bytes) -> list[tuple[str, int, bytes, int]]:
    """Read a newc archive by the kernel's documentation: name, mode, data and minor number of each entry."""
    entries: list[tuple[str, int, bytes, int]] = []
    offset = 0
    while True:
        assert offset % 4 == 0
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        start = offset + 110
        name = data[start : start + fields[11] - 1].decode()
        assert data[start + fields[11] - 1] == 0
        body = (start + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries.append((name, fields[1], data[body : body + fields[6]], fields[10]))
        offset = (body + fields[6] + 3) // 4 * 4


def test_cpio_archive_holds_parents_before_children() -> None:
    out = io.BytesIO()
    archive = Archive(out)
    archive.add_file("/a/b/file", b"12345", 0o755)
    archive.add_link("/a/link", "b/file")
    archive.add_device("/dev/console", 5, 1)
    archive.close()
    assert read_cpio(out.getvalue()) == [
        ("a", 0o040755, b"", 0),
        ("a/b", 0o040755, b"", 0),
        ("a/b/file", 0o100755, b"12345", 0),
        ("a/link", 0o120777, b"b/file", 0),
        ("dev", 0o040755, b"", 0),
        ("dev/console", 0o020600, b"", 1),
    ]


@pytest.mark.parametrize("offset", [0, 4096])
def test_an_archive_is_taken_off_a_disk(tmp_path: Path, offset: int) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out.tar"
    disk.write_bytes(b"\1" * offset + write_tar({"one": b"1" * 700, "empty": b""}) + bytes(8192) + b"old rubbish")
    extract_tar(disk, offset, out)
    with tarfile.open(out) as archive:
        assert [(member.name, member.size) for member in archive] == [("one", 700), ("empty", 0)]


@pytest.mark.parametrize(
    "content", [b"", bytes(4096), b"no tar header here" * 100, write_tar({"cut": b"x" * 5000})[:1024]]
)
def test_a_disk_without_a_whole_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(content)
    with pytest.raises(LabError):
        extract_tar(disk, 0, tmp_path / "out.tar")


def test_program_headers_move_behind_the_elf_header(tmp_path: Path) -> None:
    core = tmp_path / "core"
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 192, 64, 0, 8, 56, 2, 64, 2, 1)
    headers = b"".join(struct.pack("<IIQQQQQQ", kind, 0, 400, 0, 0, 8, 8, 0) for kind in (4, 1))
    core.write_bytes(head + b"S" * 128 + headers + bytes(96) + b"contents")
    move_program_headers(core)
    data = core.read_bytes()
    assert struct.unpack_from("<QQ", data, 32) == (64, 0)
    assert struct.unpack_from("<HHHHHH", data, 52) == (64, 56, 2, 0, 0, 0)
    assert data[64:176] == headers
    assert data[400:] == b"contents"


@pytest.mark.parametrize("too_new", [False, True])
def test_what_the_crash_kernel_wrote_is_listed_with_its_damage(tmp_path: Path, too_new: bool) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (out / "steps").write_text(
        "vmcore 0 1 2 dd\nlzo-d31 0 2 3 makedumpfile\nraw-d31 1 3 4 makedumpfile\nsplit-lzo-d1 0 4 5 makedumpfile\n"
        "incomplete-lzo-d31 1 5 6 incomplete\n"
    )
    for name in ("vmcore", "lzo-d31", "raw-d31", "split-lzo-d1.1", "split-lzo-d1.2", "incomplete-lzo-d31"):
        (out / name).write_text(name)
        (out / f"{name}.log").write_text(f"all about {name}\n")
    said: list[str] = []
    files = FileList(work, said.append)
    collect_from_guest(files, out, too_new)
    found = {entry["kind"]: (entry["names"], entry["level"], bool(entry["damage"])) for entry in files.entries}
    assert found == {
        "vmcore": (["vmcore"], None, False),
        "lzo-d31": (["lzo-d31"], 31, too_new),
        "split-lzo-d1": (["split-lzo-d1.1", "split-lzo-d1.2"], 1, False),
        "incomplete-lzo-d31": (["incomplete-lzo-d31"], 31, True),
    }
    assert (work / "split-lzo-d1.2").read_text() == "split-lzo-d1.2"
    assert files.refused == {"raw-d31": "all about raw-d31"}
    assert said == ["no raw-d31: all about raw-d31"]


# ---- memory ----


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        (512 << 20, 512 << 20, 0),
        (2815 << 20, 2815 << 20, 0),
        (2816 << 20, 2 * GIB, 768 << 20),
        (5 * GIB, 2 * GIB, 3 * GIB),
    ],
)
def test_memory_continues_at_four_gib(size: int, low: int, high: int) -> None:
    assert split_memory(size) == (low, high)


@pytest.mark.parametrize("data", [b"", b"x", bytes(200000), b"x" * 70000 + bytes(200000) + b"y" + bytes(65536)])
def test_a_sparse_copy_is_a_copy(tmp_path: Path, data: bytes) -> None:
    with (tmp_path / "copy").open("wb") as out:
        assert copy_sparse(io.BytesIO(data), out) == len(data)
    assert (tmp_path / "copy").read_bytes() == data


# ---- guest ----


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    for name, depends in (("a-one", "b_two,c"), ("b-two", "c"), ("c", ""), ("unwanted", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    order = [path.name for path in guest.find_modules(tmp_path, ("a_one", "builtin", "c"))]
    assert order == ["c.ko", "b-two.ko", "a-one.ko"]


def test_every_animal_has_its_name_in_the_zoo() -> None:
    animals = guest.find_animals()
    assert {
        "keeper",
        "threads",
        "user1000",
        "serial",
        "longarg",
        "noenv",
        "manyargs",
        "this-name-is-longer-than-fifteen",
    } <= animals


# ---- scenarios ----


def test_scenarios_are_distinct_and_their_kernels_exist() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert {find_kernel(scenario.kernel).name for scenario in SCENARIOS} == {kernel.name for kernel in KERNELS}
    assert {scenario.levels for scenario in SCENARIOS} == {4, 5}


def test_an_unknown_scenario_names_those_that_exist() -> None:
    with pytest.raises(LabError, match="deb12-4level"):
        find_scenario("nonsense")


# ---- truth ----

STAT = (
    b"42 (a) R 1 () S 1 40 39 34817 41 4194560 10 0 0 0 123 456 0 0 39 19 2 0 789 8192000 77 18446744073709551615 "
    b"1 1 0 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)
STATUS = b"Name:\ta) R 1 (\nUid:\t1001\t0\t1002\t0\nGid:\t5\t6\t7\t6\nGroups:\t7 8 100000 \n"


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    path = tmp_path / "truth.tar"
    path.write_bytes(
        write_tar(
            {
                "proc/42/stat": STAT,
                "proc/42/status": STATUS,
                "proc/42/cmdline": b"a\0\0b\0",
                "proc/42/fd/0": b"/dev/null",
                "proc/42/fd/300": b"pipe:[5]",
                "proc/42/task/42/stat": STAT,
                "proc/42/task/43/stat": STAT.replace(b"42 (a) R 1 ()", b"43 (x y)"),
                "proc/42/task/43/wchan": b"pipe_read",
                "proc/loadavg": b"0.46 0.10 0.03 2/164 201\n",
                "proc/uptime": b"11.24 5.00\n",
                "proc/kallsyms": b"ffffffff81000000 T _text\nffffffff81000010 t twice\nffffffff81000020 t twice\n"
                b"ffffffffc0000000 t inside\t[loop]\n",
                "kmsg": b"6,1,100,-;one\n\0004,2,200,c;two\n SUBSYSTEM=x\n\0",
            }
        )
    )
    return Truth(path)


def test_a_process_is_parsed_whatever_its_name(truth: Truth) -> None:
    process = truth.processes[42]
    assert (process.comm, process.state, process.ppid, process.pgrp, process.session) == (b"a) R 1 (", "S", 1, 40, 39)
    assert (process.tty, process.foreground, process.nice, process.priority) == (0x8801, 41, 19, 39)
    assert (process.utime, process.stime, process.threads, process.start) == (123, 456, 2, 789)
    assert (process.size, process.rss, process.cpu) == (8192000, 77, 3)
    assert (process.uids, process.gids, process.groups) == ((1001, 0, 1002, 0), (5, 6, 7, 6), (7, 8, 100000))
    assert process.arguments == b"a\0\0b\0"
    assert process.environment == b""
    assert process.files == {0: b"/dev/null", 300: b"pipe:[5]"}
    assert [(thread.tid, thread.comm, thread.wchan) for thread in process.lwps] == [
        (42, b"a) R 1 (", b""),
        (43, b"x y", b"pipe_read"),
    ]


def test_the_guest_at_large_is_parsed(truth: Truth) -> None:
    assert truth.loadavg == ("0.46", "0.10", "0.03")
    assert truth.uptime == 11.24
    assert truth.symbols == {"_text": 0xFFFFFFFF81000000, "twice": 0xFFFFFFFF81000010}
    assert truth.records == (b"6,1,100,-;one\n", b"4,2,200,c;two\n SUBSYSTEM=x\n")
    with pytest.raises(KeyError):
        truth.read("proc/nothing")


def test_what_moved_is_what_differs_after_the_dump(tmp_path: Path) -> None:
    manifest = {
        "name": "x", "release": "6.1", "levels": 4, "memory": 4096, "slide": 0, "phys_base": 0, "kernel_root": "..",
        "vmlinux": "v", "modules": "m", "debug": "d", "caught": [], "programs": "p",
        "files": [{"kind": "elf", "names": ["elf"], "form": "elf", "level": None, "damage": ""}],
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = {
        "proc/1/stat": b"R",
        "proc/2/stat": b"S",
        "proc/3/stat": b"S",
        "proc/loadavg": b"1",
        "proc/kallsyms": b"long",
    }
    after = {"proc/1/stat": b"S", "proc/2/stat": b"S", "proc/4/stat": b"S", "proc/loadavg": b"1"}
    (tmp_path / "truth.tar").write_bytes(write_tar(before))
    (tmp_path / "truth-after.tar").write_bytes(write_tar(after))
    dump = Dump(tmp_path)
    assert dump.moved == {"proc/1/stat", "proc/3/stat", "proc/4/stat"}
    assert dump.files["elf"].paths == (tmp_path / "elf",)
    (tmp_path / "truth-after.tar").unlink()
    assert Dump(tmp_path).moved == frozenset()


# ---- catches ----


def test_what_scenarios_catch_exists() -> None:
    used = {name for scenario in SCENARIOS for name in (*scenario.catches, scenario.at) if name}
    used |= {catch.nmi_at for catch in CATCHES if catch.nmi_at}
    assert used == {find_catch(name).name for name in used}
    with pytest.raises(LabError, match="softirq"):
        find_catch("nonsense")


def test_a_cpu_is_caught_where_its_register_fits() -> None:
    """CPU 1 comes first, then CPU 0 with another argument; both times the guest must go a step before it goes on."""
    catch = Catch("tick", "update_process_times", ("rdi", 1, 0))
    ours, theirs = socket.socketpair()
    heard: list[str] = []

    def stub(stops: list[tuple[int, int]]) -> None:
        cpu, argument, received = 0, 0, b""
        while data := theirs.recv(4096):
            received += data
            packet = re.fullmatch(rb"\+*\$([^#]*)#(..)", received)
            if packet is None:
                continue  # an acknowledgement alone
            received = b""
            heard.append(packet[1].decode())
            assert int(packet[2], 16) == sum(packet[1]) % 256
            answer = "OK"
            if packet[1] == b"c":
                cpu, argument = stops.pop(0)
            if packet[1] in (b"c", b"s"):
                answer = f"T05thread:{cpu + 1:02x};"
            if packet[1] == b"g":
                words = [argument if name == "rdi" else 0x1000 if name == "rip" else 7 for name in REGISTERS]
                answer = struct.pack(f"<{len(words)}Q", *words).hex() + "00" * 64
            theirs.sendall(b"+$%s#%02x" % (answer.encode(), sum(answer.encode()) % 256))

    thread = threading.Thread(target=stub, args=([(1, 0), (0, 1), (0, 2)],))
    thread.start()
    registers = Gdbstub(ours, "guest").run_to(catch, 0x1000)
    ours.close()
    thread.join()
    theirs.close()
    assert (registers["rip"], registers["rdi"], registers["rax"]) == (0x1000, 2, 7)
    around = ["Z1,1000,1", "c", "z1,1000,1", "g"]
    assert heard == [*around, "s", *around, "s", *around]


def test_a_stub_that_refuses_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"+$E22#a9")
        with pytest.raises(LabError, match=r"guest.*E22"):
            Gdbstub(ours, "guest").run_to(Catch("tick", "update_process_times"), 0x1000)
