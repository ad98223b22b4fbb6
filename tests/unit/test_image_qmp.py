"""A virtual machine by a monitor that is a stand-in: where its memory is found, its registers, and what goes wrong."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kvm_dbg.errors import CommandError, FileAccessError, NotInImageError, UnknownFormatError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, Presence, Range
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.qmp import MAX_LINE, Machine, Qmp
from kvm_dbg.image.qmp_image import open_guest
from tests.writers.elfcore import write_note
from tests.writers.qmp import Backend, FakeQemu, Place, Refused

PAGE = 4096
SIZE = 64 * PAGE
LOW = 16 * PAGE  # bytes of RAM below the hole for devices
FOUR_GIB = 1 << 32
SHORT = 0.2  # seconds


def make_bytes(seed: int, size: int = SIZE) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


def split(name: str) -> list[Place]:
    """As QEMU's q35 has it: the start of the backend below 4 GiB, with a range of firmware in it, the rest above."""
    return [
        Place(0, 2 * PAGE, name),
        Place(2 * PAGE, 3 * PAGE, name, 2 * PAGE, "rom"),
        Place(3 * PAGE, LOW, name, 3 * PAGE),
        Place(FOUR_GIB, FOUR_GIB + SIZE - LOW, name, LOW),
    ]


@contextmanager
def opened(qemu: FakeQemu) -> Iterator[MemoryImage]:
    with qemu, open_guest(qemu.address, timeout=SHORT * 5) as image:
        yield image


def in_file(tmp_path: Path, data: bytearray, name: str = "ram", *, skip: int = 0) -> str:
    path = tmp_path / name
    path.write_bytes(bytes(skip) + data)
    return str(path)


def test_a_ram_file_with_a_hole_below_four_gib(tmp_path: Path) -> None:
    data = make_bytes(1)
    backend = Backend(data, in_file(tmp_path, data))
    with opened(FakeQemu(str(tmp_path / "qmp"), {"ram": backend}, split("ram"))) as image:
        assert image.live
        assert image.paths == (str(tmp_path / "qmp"),)
        assert image.info.quirks == ()
        assert (image.info.format, image.info.machine) == ("qmp", "x86_64")
        assert list(image.coverage()) == [
            Range(0, LOW, Presence.PRESENT),
            Range(FOUR_GIB, SIZE - LOW, Presence.PRESENT),
        ]
        assert image.read(0, LOW) == data[:LOW]
        assert image.read(FOUR_GIB, SIZE - LOW) == data[LOW:]
        assert image.read_partial(LOW - 8, 16).missing == (Range(LOW, 8, Presence.HOLE),)
        with pytest.raises(NotInImageError, match="is not memory that the image describes"):
            image.read(LOW, 1)


def test_it_is_the_memory_of_now(tmp_path: Path) -> None:
    data = make_bytes(2)
    path = in_file(tmp_path, data)
    with opened(FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, path)}, [Place(0, SIZE, "ram")])) as image:
        with open(path, "r+b") as file:
            file.seek(PAGE)
            file.write(b"new")
        assert image.read(PAGE, 3) == b"new"


def test_several_memory_devices(tmp_path: Path) -> None:
    """A second one, plugged in at 6 GiB, whose file has something else before it (`offset` of QEMU 8.1)."""
    first, second = make_bytes(3), make_bytes(4)
    backends = {
        "ram": Backend(first, in_file(tmp_path, first)),
        "mem1": Backend(second, in_file(tmp_path, second, "dimm", skip=3 * PAGE), offset=3 * PAGE),
    }
    places = [*split("ram"), Place(6 << 30, (6 << 30) + SIZE, "mem1")]
    with opened(FakeQemu(str(tmp_path / "qmp"), backends, places)) as image:
        assert image.read(FOUR_GIB, SIZE - LOW) == first[LOW:]
        assert image.read((6 << 30) + 5, SIZE - 5) == second[5:]
        assert image.info.quirks == ()


def test_a_file_shorter_than_the_memory(tmp_path: Path) -> None:
    data = make_bytes(5)
    path = in_file(tmp_path, data[: SIZE - 2 * PAGE])
    with opened(FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, path)}, split("ram"))) as image:
        assert image.info.quirks == (
            f"{path} has {SIZE - 2 * PAGE} bytes, and the guest's memory there {SIZE}: the rest is missing",
        )
        end = FOUR_GIB + SIZE - LOW
        assert list(image.coverage(FOUR_GIB))[-1] == Range(end - 2 * PAGE, 2 * PAGE, Presence.TRUNCATED)
        with pytest.raises(NotInImageError, match="truncated or incomplete"):
            image.read(end - PAGE, 8)


def test_memory_in_no_file_is_read_from_qemu_itself(tmp_path: Path) -> None:
    """Who listens at the socket is this process: its memory has a buffer for the guest's."""
    data = make_bytes(6)
    buffer = (ctypes.c_char * SIZE).from_buffer_copy(data)
    backend = Backend(data, host_address=ctypes.addressof(buffer))
    with opened(FakeQemu(str(tmp_path / "qmp"), {"ram": backend}, split("ram"))) as image:
        assert image.read(0, LOW) == data[:LOW]
        assert image.read(FOUR_GIB, SIZE - LOW) == data[LOW:]
        buffer[7] = b"\xaa" if data[7] != 0xAA else b"\xbb"
        assert image.read(7, 1) == buffer[7]
        [quirk] = image.info.quirks
    assert quirk == (
        f"read from /proc/{os.getpid()}/mem: the memory 'ram' is in no file (memory-backend-file,share=on)"
    )


@pytest.mark.parametrize("why", ["private", "missing", "another"])
def test_a_file_that_will_not_do(tmp_path: Path, why: str) -> None:
    data = make_bytes(7)
    buffer = (ctypes.c_char * SIZE).from_buffer_copy(data)
    path = in_file(tmp_path, make_bytes(8) if why == "another" else data)
    backend = Backend(data, f"{path}?" if why == "missing" else path, why != "private", None, ctypes.addressof(buffer))
    with opened(FakeQemu(str(tmp_path / "qmp"), {"ram": backend}, split("ram"))) as image:
        assert image.read(0, LOW) == data[:LOW]
        said = {
            "private": f"{path} has not what the guest writes: its backend 'ram' has no share=on",
            "missing": f"{path}?: No such file or directory",
            "another": f"{path} is not the memory of this guest: QEMU has other bytes in it",
        }
        assert said[why] in image.info.quirks[0]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for temporary files."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def test_what_cannot_be_seen_from_here_is_dumped(temporary: Path) -> None:
    data = make_bytes(9)
    qemu = FakeQemu(None, {"ram": Backend(data)}, split("ram"))
    qemu.notes = write_note("QEMU", 0, b"state")
    with opened(qemu) as image:
        assert list(temporary.iterdir()) == []  # the file has no name
        assert not image.live
        assert image.read(FOUR_GIB, SIZE - LOW) == data[LOW:]
        assert [note.desc for note in image.notes] == [b"state"]
        assert image.info.quirks[0] == (
            "a snapshot: what the guest does afterwards shows after `refresh` only: the memory 'ram' is in no file"
            " (memory-backend-file,share=on); which process is QEMU is known of a Unix socket only"
        )
        data[0] ^= 0xFF
        assert image.read(0, 1) != data[:1]
        image.refresh()
        assert image.read(0, 1) == data[:1]
    assert list(temporary.iterdir()) == []


def test_zeros_of_a_snapshot_are_zeros(temporary: Path) -> None:
    data = bytearray(1 << 20)
    data[1 << 19] = 1
    with opened(FakeQemu(None, {"ram": Backend(data)}, [Place(0, len(data), "ram")])) as image:
        assert image.read(0, len(data)) == data


@pytest.mark.parametrize("socket_kind", ["unix", "tcp"])
def test_a_refused_dump_leaves_nothing(temporary: Path, tmp_path: Path, socket_kind: str) -> None:
    def refuse(_: object) -> object:
        raise Refused("Guest is busy")

    qemu = FakeQemu(str(tmp_path / "qmp") if socket_kind == "unix" else None, {"ram": Backend(make_bytes(1))}, [])
    qemu.answers["dump-guest-memory"] = refuse
    with qemu, pytest.raises(CommandError, match="QEMU refuses dump-guest-memory: Guest is busy"):
        open_guest(qemu.address)
    assert list(temporary.iterdir()) == []


def test_an_interrupted_dump_ends_and_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.image.qmp_dump.STEP", 1)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    qemu = FakeQemu(None, {"ram": Backend(make_bytes(10, 1 << 22))}, [Place(0, 1 << 22, "ram")])
    with qemu:
        with pytest.raises(KeyboardInterrupt):
            open_guest(qemu.address, progress=interrupt)
        assert Machine(qemu.address).is_running()  # it takes commands again
    assert list(temporary.iterdir()) == []


def test_no_room(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.image.qmp_dump.ROOM", 1 << 60)
    qemu = FakeQemu(None, {"ram": Backend(make_bytes(1))}, split("ram"))
    with qemu, pytest.raises(FileAccessError, match="MiB free, and a snapshot of the guest takes"):
        open_guest(qemu.address)
    assert "dump-guest-memory" not in qemu.log


def test_registers_are_of_when_they_were_asked_for(tmp_path: Path) -> None:
    data = make_bytes(11)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    qemu.notes = write_note("QEMU", 0, b"one")
    with opened(qemu) as given:
        image = OverlayImage(given)
        assert "dump-guest-memory" not in qemu.log
        assert [note.desc for note in image.notes] == [b"one"]
        assert image.ran_on
        qemu.notes = write_note("QEMU", 0, b"two")
        assert [note.desc for note in image.notes] == [b"one"]
        with image.still():
            assert "stop" in qemu.log
            assert "cont" not in qemu.log
            assert [note.desc for note in image.notes] == [b"two"]
        assert qemu.running
        assert image.ran_on
        qemu.running = False
        image.refresh()
        with image.still():
            pass
        assert not qemu.running
        assert not image.ran_on


def test_registers_that_qemu_refuses(tmp_path: Path) -> None:
    def refuse(_: object) -> object:
        raise Refused("no dump for this target")

    data = make_bytes(12)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    qemu.answers["dump-guest-memory"] = refuse
    with opened(qemu) as image:
        assert image.notes == ()
        assert image.info.quirks[-1].endswith("QEMU refuses dump-guest-memory: no dump for this target")


def test_the_machine_runs_on_whatever_happens_while_it_stands_still(tmp_path: Path) -> None:
    data = make_bytes(13)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    with opened(qemu) as image:
        for failure in (KeyboardInterrupt, CommandError):
            with pytest.raises(failure), image.still():
                raise failure
            assert qemu.running


def test_the_machine_runs_on_though_the_connection_is_lost(tmp_path: Path) -> None:
    data = make_bytes(18)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    with qemu:
        machine = Machine(qemu.address, SHORT * 5)
        with machine.connected() as qmp, machine.halted():
            qmp.socket.shutdown(socket.SHUT_RDWR)
        assert qemu.running


def test_a_second_interrupt_comes_after_the_machine_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_bytes(19)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    receive, send = Qmp.receive, Qmp.send
    sent: list[str] = []
    interrupts = iter([True])

    def interrupted(self: Qmp, silence: str = "") -> dict[str, object]:
        if "cont" in sent and next(interrupts, False):
            raise KeyboardInterrupt
        return receive(self, silence)

    def remember(self: Qmp, command: str, **arguments: object) -> int:
        sent.append(command)
        return send(self, command, **arguments)

    monkeypatch.setattr(Qmp, "receive", interrupted)
    monkeypatch.setattr(Qmp, "send", remember)
    with qemu:
        machine = Machine(qemu.address, SHORT * 5)
        with pytest.raises(KeyboardInterrupt), machine.halted():
            pass
        assert machine.is_running()
        assert sent.count("cont") == 2


def test_halt_and_resume(tmp_path: Path) -> None:
    data = make_bytes(14)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    with opened(qemu) as image:
        control = OverlayImage(image).control
        assert control is not None
        assert control.is_running()
        control.halt()
        control.halt()
        assert not control.is_running()
        control.resume()
        assert qemu.running


def test_others_can_ask_in_between(tmp_path: Path) -> None:
    """QMP has one client at a time: no connection is kept."""
    data = make_bytes(15)
    qemu = FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
    with opened(qemu) as image, open_guest(qemu.address, timeout=SHORT) as other:
        assert image.read(0, PAGE) == other.read(0, PAGE)
        with Qmp(qemu.address, SHORT), pytest.raises(FileAccessError, match="QMP serves one client at a time"):
            open_guest(qemu.address, timeout=SHORT)


def test_a_machine_that_is_gone(tmp_path: Path) -> None:
    data = make_bytes(16)
    with ExitStack() as stack:
        qemu = stack.enter_context(
            FakeQemu(str(tmp_path / "qmp"), {"ram": Backend(data, in_file(tmp_path, data))}, split("ram"))
        )
        image = stack.enter_context(open_guest(qemu.address))
        machine = Machine(qemu.address)
        with machine.connected() as qmp:
            qemu.kill()
            with pytest.raises(FileAccessError, match="QEMU has ended"):
                qmp.execute("query-status")
        for ask in (image.refresh, machine.is_running, machine.check, machine.halt, machine.resume):
            with pytest.raises(FileAccessError, match="nobody listens there; QEMU has ended"):
                ask()
        with pytest.raises(FileAccessError, match="nobody listens there; QEMU has ended"):
            _ = image.notes


def test_the_end_of_qemu_is_seen_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens at the socket is a process of its own here, and takes one client."""
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True);"
        "c, _ = s.accept(); c.sendall(b'{\"QMP\": {}}\\n'); c.recv(4096);"
        'c.sendall(b\'{"return": {}, "id": 1}\\n\'); c.recv(1)'
    )
    monkeypatch.setattr("kvm_dbg.image.qmp.is_qemu", lambda _: True)
    path = str(tmp_path / "qmp")
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        machine = Machine(path)
        with machine.connected():
            machine.watch()
            machine.check()
    with pytest.raises(FileAccessError, match="QEMU has ended"):
        machine.check()
    machine.close()


def test_nothing_is_named_beside_a_machine(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nothing else can be named beside its socket"):
        open_image([tmp_path / "ram"], qmp="socket")
    with pytest.raises(CommandError, match="nothing else can be named beside its socket"):
        open_image((), qmp="socket", base=0x1000)


# What is no QEMU


@contextmanager
def stranger(path: Path, speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen at a socket and do what `speak` does with the first client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    done = threading.Event()

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            try:
                speak(client)
            except OSError:
                return
            done.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(path)
    finally:
        done.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2",  # no end of a line
        b"\x00\xff\x00\xff\n",
        b"[1, 2]\n",
        b'{"hello": 1}\n',
        b'{"QMP": 7}\n',
        b"[" * 100000 + b"\n",
    ],
)
def test_another_protocol(tmp_path: Path, words: bytes) -> None:
    with (
        stranger(tmp_path / "socket", lambda client: client.sendall(words)) as address,
        pytest.raises(UnknownFormatError, match=r"does not speak QMP, QEMU's machine protocol: it said b'"),
    ):
        open_guest(address, timeout=SHORT)


def test_a_line_without_an_end(tmp_path: Path) -> None:
    def speak(client: socket.socket) -> None:
        for _ in range(MAX_LINE // (1 << 20) + 2):
            client.sendall(b" " * (1 << 20))

    with stranger(tmp_path / "socket", speak) as address, pytest.raises(UnknownFormatError, match="does not speak QMP"):
        open_guest(address, timeout=SHORT * 5)


def test_silence(tmp_path: Path) -> None:
    with (
        stranger(tmp_path / "socket", lambda _: None) as address,
        pytest.raises(
            FileAccessError, match=r"QMP serves one client at a time, and perhaps another one has it.*0\.2 s"
        ),
    ):
        open_guest(address, timeout=SHORT)


def test_a_connection_that_is_closed_at_once(tmp_path: Path) -> None:
    with (
        stranger(tmp_path / "socket", lambda client: client.shutdown(socket.SHUT_RDWR)) as address,
        pytest.raises(FileAccessError, match="the connection was closed: QEMU has ended, or refuses another one"),
    ):
        open_guest(address, timeout=SHORT)


def test_no_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FileAccessError, match="is no socket"):
        open_guest(str(file))
    with pytest.raises(FileAccessError, match="No such file or directory"):
        open_guest(str(tmp_path / "nothing"))
    with pytest.raises(FileAccessError, match="path too long"):
        open_guest("x" * 200)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(FileAccessError, match="nobody listens there; QEMU has ended, or was started without -qmp"):
        open_guest(f"127.0.0.1:{port}", timeout=SHORT)


def test_a_map_of_memory_that_is_none(temporary: Path) -> None:
    """Then QEMU still dumps what it has."""
    data = make_bytes(17)
    qemu = FakeQemu(None, {"ram": Backend(data)}, split("ram"))
    qemu.answers["human-monitor-command"] = lambda _: "unknown command: 'info mtree -f'\r\n"
    with opened(qemu) as image:
        assert image.read(0, LOW) == data[:LOW]
        assert 'no address space "memory" is in what QEMU answers' in image.info.quirks[0]
