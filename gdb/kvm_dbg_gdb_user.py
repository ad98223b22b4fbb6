"""Processes of the image in gdb: each an inferior of its own, beside the kernel's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kvm_dbg_client import Server
from kvm_dbg_gdb_setting import Setup, quiet, quoted, split_words, warn

import gdb

HELP = ("-h", "--help")
USUAL_SYSROOTS = ("", "/", "target:")  # that name no directory in the place of the image's root


class UserInferiors:
    """The inferiors that `kvm user` made, by PID.

    Args:
        setup: of the session; what is changed here lasts until that is closed.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._numbers: dict[int, int] = {}
        self._sysroot = ""

    def run(self, kvm: Any, argument: str) -> None:
        """Run `kvm user`: print what there is of a process, and open it; or close. Raises as Kvm's methods do."""
        server = kvm.need_server()
        words = split_words(argument)
        if "--close" in words:
            if not self.close(closed_pid(words)):
                raise gdb.GdbError("no process is open")
            return
        line = self._with_sysroot(argument)
        kvm.run(f"user {line}")
        if not any(word in HELP for word in words):
            self._open(server, line, kvm.inferior)

    def _with_sysroot(self, argument: str) -> str:
        """Return the words of a command line, with the user's own `set sysroot` as the last --sysroot."""
        chosen = str(gdb.parameter("sysroot") or "")
        if chosen not in USUAL_SYSROOTS and not chosen.startswith("target:"):
            self._sysroot = chosen
        return f"{argument} --sysroot {quoted(self._sysroot)}" if self._sysroot else argument

    def _open(self, server: Server, words: str, kernel: int) -> None:
        """Make the inferior of a process, connect it, and select it. Raises gdb.GdbError, gdb.error, ServerError."""
        answer = server.ask({"user": words})
        pid = answer["pid"]
        self.close(pid)
        before = gdb.selected_inferior().num
        with silence():
            quiet("add-inferior -no-connection")
            number = max(inferior.num for inferior in gdb.inferiors())
            self._numbers[pid] = number
            try:
                quiet(f"inferior {number}")
                self._connect(answer)
            except gdb.error as error:
                self._remove(pid, before)
                raise gdb.GdbError(f"gdb could not open process {pid}: {error}") from None
            except BaseException:
                self._remove(pid, before)
                raise
        warn(f"inferior {number} is process {pid} ({answer['command']}); `inferior {kernel}` is the kernel")

    def _connect(self, answer: dict[str, Any]) -> None:
        self._setup.change("sysroot", "")  # the server names files of this machine
        executable = answer["executable"]
        if executable is not None:
            quiet(f"file {quoted(executable['file'])}")
        quiet(f"target remote {answer['address']}")
        if executable is None:
            with contextlib.suppress(gdb.error):  # gdb 13 lists them and waits for an executable
                quiet("sharedlibrary")
        debug = {file["file"]: file["debug"] for file in (executable, *answer["libraries"]) if file is not None}
        for objfile in gdb.objfiles():
            path = debug.get(objfile.filename)
            if path is not None and not any(one.owner == objfile for one in gdb.objfiles()):
                try:
                    objfile.add_separate_debug_file(path)
                except gdb.error as error:
                    warn(f"{path}: gdb could not load it: {error}")

    def leave(self, number: int) -> None:
        """Select inferior `number` if one of these is selected."""
        if gdb.selected_inferior().num in self._numbers.values():
            with silence():
                quiet(f"inferior {number}")

    def close(self, pid: int | None = None) -> int:
        """Remove the inferior of a process, or of all; return how many there were."""
        pids = [one for one in self._numbers if pid in (None, one)]
        with silence():
            for one in pids:
                self._remove(one, gdb.selected_inferior().num)
        return len(pids)

    def _remove(self, pid: int, back: int) -> None:
        """Disconnect and remove an inferior, and select the one numbered `back`, or the first one in its place."""
        number = self._numbers.pop(pid)
        if all(inferior.num != number for inferior in gdb.inferiors()):
            return  # the user has removed it
        select(number)
        with contextlib.suppress(gdb.error):
            if gdb.selected_inferior().num == number and gdb.selected_inferior().pid:
                quiet("detach")  # `disconnect` forgets the threads of all inferiors
        numbers = [inferior.num for inferior in gdb.inferiors() if inferior.num != number]
        select(back if back in numbers else min(numbers))
        with contextlib.suppress(gdb.error):
            quiet(f"remove-inferiors {number}")


def select(number: int) -> None:
    """Select an inferior; one whose connection is lost as well, of which gdb can show no frame."""
    with contextlib.suppress(gdb.error):
        quiet(f"inferior {number}")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let gdb say nothing of the inferiors and frames that are selected meanwhile."""
    setup = Setup()
    setup.change("suppress-cli-notifications", "on")
    try:
        yield
    finally:
        setup.restore()


def closed_pid(words: list[str]) -> int | None:
    """Return the PID that `kvm user --close` is given, None for all. Raises gdb.GdbError."""
    rest = [word for word in words if word != "--close"]
    if len(rest) > 1 or not all(word.isdecimal() for word in rest):
        raise gdb.GdbError("usage: kvm user --close [PID]")
    return int(rest[0]) if rest else None
