"""Writing into memory that is live: what is refused, what is asked, what is logged and taken back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvm_dbg.cli
import kvm_dbg.kvm as k
from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import (
    CommandError,
    ConfirmationError,
    FileAccessError,
    KvmDbgError,
    NotInImageError,
    NotMappedError,
)
from kvm_dbg.image.base import BytesImage, Presence
from kvm_dbg.image.live import LiveSource, open_live, open_physical
from kvm_dbg.image.source import FileSource
from kvm_dbg.image.through import WriteThroughImage
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.target import Target
from tests.unit.conftest import Little
from tests.writers.system import CONSTANT, DATA, DEVICE, DEVICE_PADDR, GONE, PAGE, TEXT, USER, write_ram

COUNTER = 0x201000 + 64  # physical


@pytest.fixture
def ram(little: Little, tmp_path: Path) -> Path:
    little.system.memory = ((0, DEVICE_PADDR), (DEVICE_PADDR + PAGE, 1 << 32))
    return Path(write_ram(tmp_path / "ram"))


@pytest.fixture
def session(ram: Path) -> Iterator[Session]:
    session = Session()
    session.open(OpenRequest((str(ram),), live=True, write=True))
    yield session
    session.close()


def ask(session: Session, line: str) -> Any:
    return json.loads("".join(run_line(session, f"{line} --json")))


def refused(session: Session, line: str, kind: type[KvmDbgError] = CommandError) -> str:
    with pytest.raises(kind) as caught:
        list(run_line(session, line))
    return str(caught.value)


def test_a_write_reaches_the_memory_itself_and_is_taken_back(session: Session, ram: Path) -> None:
    answer = ask(session, "write counter 0x1122334455667788")
    assert (answer["address"], answer["symbol"]) == (f"{DATA + 64:#x}", "counter+0x0")
    assert (answer["old"], answer["new"]) == ("00" * 8, "8877665544332211")
    assert ram.read_bytes()[COUNTER : COUNTER + 8].hex() == "8877665544332211"
    assert ask(session, "read counter 8")[0]["data"] == "8877665544332211"
    second = ask(session, "write counter --text hi")
    assert [row["new"] for row in ask(session, "write --log")] == [answer["new"], second["new"]]
    assert all(row["time"].startswith("20") for row in ask(session, "write --log"))
    assert ask(session, "write --undo")["new"] == "887766"
    assert ask(session, "write --undo")["new"] == "00" * 8
    assert ram.read_bytes()[COUNTER : COUNTER + 8] == bytes(8)
    assert "nothing was written" in refused(session, "write --undo")


def test_what_has_changed_since_is_not_taken_back(session: Session, ram: Path) -> None:
    ask(session, "write counter --u8 1")
    with ram.open("r+b") as file:  # the guest itself
        file.seek(COUNTER)
        file.write(b"\x07")
    text = refused(session, "write --undo")
    assert "are 07 now, and not 01 any more" in text
    assert ram.read_bytes()[COUNTER] == 7
    assert len(ask(session, "write --log")) == 1
    assert ask(session, "write --undo --force")["new"] == "00"
    assert ram.read_bytes()[COUNTER] == 0


@pytest.mark.parametrize(
    ("line", "kind", "complaint"),
    [
        (f"write {TEXT:#x} --u8 0", CommandError, "start+0x0 (0xffffffff81000000) is code of the running kernel"),
        (f"write {CONSTANT:#x} --u8 0", CommandError, "is mapped for reading only by the running kernel"),
        (f"write {DEVICE:#x} --u8 0", NotInImageError, "is no RAM, by the kernel's list of resources"),
        (f"write {DEVICE:#x} --u8 0 --force", NotInImageError, "is no RAM"),
        (f"write {GONE:#x} --u8 0 --force", NotInImageError, "is not memory that the image describes"),
        (f"write {TEXT + 7 * PAGE:#x} --u8 0 --force", NotMappedError, "is not mapped"),
        (f"write {CONSTANT - 2:#x} --u32 1", CommandError, "is mapped for reading only"),
        (f"write {GONE - 2:#x} --u32 1 --force", NotInImageError, "is not memory"),
        (f"write {DEVICE - 2:#x} --u32 1 --force", NotInImageError, "is no RAM"),
        ("write odd 1", CommandError, "say how many bytes with --size 1, 2, 4 or 8"),
        ("write --save kept.json", CommandError, "only what was written into the private copy of a file"),
    ],
)
def test_nothing_is_written_where_it_may_not_be(
    session: Session, ram: Path, line: str, kind: type[KvmDbgError], complaint: str
) -> None:
    before = ram.read_bytes()
    assert complaint in refused(session, line, kind)
    assert ram.read_bytes() == before
    assert ask(session, "write --log") == []


def test_force_writes_code_and_constants_and_across_pages(session: Session, ram: Path) -> None:
    ask(session, f"write {TEXT:#x} --hex cc --force")
    ask(session, f"write {CONSTANT - 2:#x} --u32 0x04030201 --force")
    data = ram.read_bytes()
    assert data[0x200000] == 0xCC
    assert data[0x203FFE:0x204000] == b"\1\2"
    assert data[0x202000:0x202002] == b"\3\4"
    ask(session, "write --undo")
    assert ram.read_bytes()[0x202000:0x202008] == b"constant"


def test_a_process_of_its_own_is_written_to(session: Session, ram: Path) -> None:
    ask(session, f"write --pid 1 {USER:#x} --text hello")
    assert ram.read_bytes()[0x300000:0x300006] == b"hello\0"


def test_size_of_a_plain_number(session: Session) -> None:
    assert ask(session, "write odd 5 --size 2")["new"] == "0500"
    assert "--size is of a plain VALUE" in refused(session, "write odd --u8 5 --size 2")


def test_a_live_image_is_read_only_without_the_option(ram: Path, little: Little) -> None:
    session = Session()
    session.open(OpenRequest((str(ram),), live=True))
    assert ask(session, "status")["writes"] == "refused"
    text = refused(session, "write counter 1")
    assert text == "a running kernel is opened for reading only: `open --write` lets it be written to"
    session.close()
    with pytest.raises(CommandError, match="--write is for memory that is live"):
        session.open(OpenRequest((little.image,), write=True))
    session.open(OpenRequest((little.image,)))
    assert ask(session, "status")["writes"] == "a private copy"
    assert "--allow is for a kernel that runs" in refused(session, "write --allow")
    Path("patch").write_text('{"kvm_dbg_patch": 1, "blocks": []}')
    with pytest.raises(CommandError, match="--patch is for dumps"):
        session.open(OpenRequest((str(ram),), live=True, patch="patch"))


@pytest.mark.parametrize(("answer", "written"), [(True, True), (False, False)])
def test_the_first_write_asks_once(ram: Path, answer: bool, written: bool) -> None:
    questions: list[str] = []

    def reply(question: str) -> bool:
        questions.append(question)
        return answer

    session = Session()
    session.attended, session.ask = True, reply
    session.open(OpenRequest((str(ram),), live=True, write=True))
    assert "code of the running kernel" in refused(session, f"write {TEXT:#x} --u8 0")
    assert questions == []  # what is refused anyway asks nothing
    if written:
        ask(session, "write counter 1")
        ask(session, "write counter 2")
        place = f"counter+0x0 ({DATA + 64:#x})"
        assert questions == [f"Write 8 bytes to the running kernel 1.0-little in {ram} at {place}?"]
    else:
        assert refused(session, "write counter 1") == "not written: the answer was no"
    assert ram.read_bytes()[COUNTER] == (2 if written else 0)
    session.close()


def test_the_program_asks_in_a_terminal(
    ram: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    words = ["write", "--live", "--write", str(ram), "counter", "1"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for typed, status, byte in (("n\n", 1, 0), ("", 1, 0), ("y\n", 0, 1)):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert kvm_dbg.cli.main(words) == status
        assert "Write 8 bytes to the running kernel" in capsys.readouterr().err
        assert ram.read_bytes()[COUNTER] == byte
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # a script is not asked
    assert kvm_dbg.cli.main([*words[:-1], "3"]) == 0
    assert ram.read_bytes()[COUNTER] == 3


def packets(session: Session, said: list[str] | None = None) -> DebuggerSession:
    """Return a debugger's connection, of a version that does not show errors."""
    notify: Callable[[str], None] | None = said.append if said is not None else None
    debugger = DebuggerSession(Target(session.kernel, session.system), lambda _: iter(()), notify=notify)
    debugger.reply(b"qSupported:qRelocInsn+")
    return debugger


def test_a_debuggers_writes_follow_the_same_rules(session: Session, ram: Path) -> None:
    said: list[str] = []
    debugger = packets(session, said)
    assert debugger.reply(b"M%x,2:0102" % (DATA + 64)) == b"OK"
    assert debugger.reply(b"X%x,1:\x09" % (DATA + 66)) == b"OK"
    assert ram.read_bytes()[COUNTER : COUNTER + 3] == b"\1\2\x09"
    assert said == []
    for vaddr, text in ((TEXT, "is code of the running kernel"), (CONSTANT, "reading only"), (DEVICE, "is no RAM")):
        assert debugger.reply(b"M%x,1:00" % vaddr) in (b"E01", b"E14")
        assert text in said.pop()
    assert [row["new"] for row in ask(session, "write --log")] == ["0102", "09"]
    ask(session, "write --undo")
    assert ram.read_bytes()[COUNTER + 2] == 0


def test_a_debuggers_writes_without_the_option_or_somebodys_word(ram: Path) -> None:
    said: list[str] = []
    session = Session()
    session.open(OpenRequest((str(ram),), live=True))
    assert packets(session, said).reply(b"M%x,1:05" % (DATA + 64)) == b"E01"
    assert "`open --write`" in said.pop()
    session.attended = True
    session.open(OpenRequest((str(ram),), live=True, write=True))
    debugger = packets(session, said)
    assert debugger.reply(b"M%x,1:05" % (DATA + 64)) == b"E01"
    assert "`kvm write --allow` asks" in said.pop()
    with pytest.raises(ConfirmationError) as caught:
        list(run_line(session, "write --allow"))
    assert caught.value.question == f"Let the running kernel in {ram} be written to?"
    session.allow_writes()  # as the adapter's channel does once it has a yes
    assert ask(session, "write --allow")["allowed"] is True
    assert debugger.reply(b"M%x,1:05" % (DATA + 64)) == b"OK"
    assert ram.read_bytes()[COUNTER] == 5
    session.close()


def test_kvm_write_on_a_running_kernel(ram: Path) -> None:
    errors: list[str] = []
    kd = k.kvm_open(None, str(ram), None, k.O_RDWR, errbuf=errors, live=True)
    assert kd is not None, errors
    assert k.kvm_write(kd, DATA + 64, b"\x2a") == 1
    assert ram.read_bytes()[COUNTER] == 0x2A
    assert k.kvm_write(kd, TEXT, b"\x2a") == -1
    assert "is code of the running kernel" in k.kvm_geterr(kd)
    k.kvm_close(kd)


def test_a_failed_change_is_put_back() -> None:
    class Failing(BytesImage):
        memory = bytearray(b"abcdefgh")

        def put(self, paddr: int, data: bytes) -> None:
            if data == b"CD":
                raise FileAccessError("memory", "no more")
            self.memory[paddr : paddr + len(data)] = data
            self._runs = [(0, 8, Presence.PRESENT, bytes(self.memory))]

    lower = Failing({0: b"abcdefgh"})
    image = WriteThroughImage(lower)
    with pytest.raises(FileAccessError, match="no more"):
        image.change(0, [(0, b"AB"), (4, b"CD")])
    assert lower.memory == b"abcdefgh"
    assert not image.changes


def test_an_image_that_nothing_can_be_written_to() -> None:
    image = WriteThroughImage(BytesImage({0: bytes(8)}, excluded=((8, 8),)))
    with pytest.raises(NotInImageError, match="excluded by the dump level"):
        image.change(0, [(8, b"x")])
    with pytest.raises(CommandError, match=r"the memory behind this image cannot be written to \(0x0, 1 bytes\)"):
        image.change(0, [(0, b"x")])


def test_a_device_is_written_at_physical_addresses(tmp_path: Path) -> None:
    device = tmp_path / "mem"
    device.write_bytes(bytes(0x102000))
    iomem = "00000000-00000fff : Reserved\n00100000-00101fff : System RAM\n"
    with open_physical(FileSource(device, writable=True), lambda: iomem, str(tmp_path / "none")) as image:
        image.put(0x100FFF, b"xy")
        assert image.read(0x100FFE, 4) == b"\0xy\0"
        for paddr in (0x10, 0x101FFF):
            with pytest.raises(NotInImageError):
                image.put(paddr, b"xy")
    assert device.read_bytes()[0x100FFF:0x101001] == b"xy"
    with (
        open_physical(FileSource(device), lambda: iomem, str(tmp_path / "none")) as image,
        pytest.raises(CommandError, match="cannot be written to"),
    ):
        image.put(0x100000, b"x")


def test_kcore_cannot_be_written_to() -> None:
    with pytest.raises(
        FileAccessError, match=r"/proc/kcore: cannot be written to: .*/dev/mem can"
    ):
        LiveSource("/proc/kcore", writable=True)


def test_a_device_that_refuses_a_write_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mem"
    path.write_bytes(bytes(4096))
    source = LiveSource(path, writable=True)

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(FileAccessError, match="the kernel refuses this write"):
        source.write(0, b"x")
    source.close()


def test_no_device_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.image.live.PATHS", ("/proc/kcore", str(tmp_path / "none")))
    with pytest.raises(FileAccessError) as caught:
        open_live(writable=True)
    assert "/proc/kcore: cannot be written to" in str(caught.value)
    assert "No such file" in str(caught.value)
