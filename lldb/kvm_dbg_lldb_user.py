"""Processes of the image in lldb: each a target of its own, beside the kernel's."""

from __future__ import annotations

from typing import Any, Callable, ContextManager

from kvm_dbg_lldb_symbols import delete_target

import lldb

HELP = ("-h", "--help")


class UserError(Exception):
    """A command about processes ends with this text for people."""


class UserTargets:
    """The targets that `kvm user` made, by PID.

    Args:
        debugger: where they are made.
        warn: says something that is no command's output.
        synchronous: makes a context in which commands return when the target has stopped.
    """

    def __init__(
        self, debugger: Any, warn: Callable[[str], None], synchronous: Callable[[], ContextManager[None]]
    ) -> None:
        self._debugger = debugger
        self._warn = warn
        self._synchronous = synchronous
        self._targets: dict[int, Any] = {}
        self._deleted: list[Any] = []  # see delete_target

    def run(self, kvm: Any, line: str, words: list[str], result: Any) -> None:
        """Run `kvm user`: print what there is of a process, and open it; or close. Raises as Kvm's methods do.

        Args:
            kvm: the session.
            line: the command line behind `kvm user`, and its `words`.
            words: of the line.
            result: of the command.
        """
        server = kvm.need_server()
        if "--close" in words:
            if not self.close(closed_pid(words)):
                raise UserError("no process is open")
            return
        kvm.run(f"user {line}", result)
        if not any(word in HELP for word in words):
            self._open(kvm, server.ask({"user": line}))

    def _open(self, kvm: Any, answer: dict[str, Any]) -> None:
        """Make the target of a process, connect it, and select it. Raises UserError."""
        pid = answer["pid"]
        self.close(pid)
        before = self._debugger.GetSelectedTarget()
        target = self._create_target(answer)
        self._targets[pid] = target
        try:
            self._connect(target, "unix-connect://{}".format(answer["address"]))
        except BaseException:
            self.close(pid)
            self._debugger.SetSelectedTarget(before)
            raise
        self._debugger.SetSelectedTarget(target)
        self._place(target, answer)
        number = self._debugger.GetIndexOfTarget(target)
        kernel = self._debugger.GetIndexOfTarget(kvm.target)
        self._warn(
            f"target {number} is process {pid} ({answer['command']}); `target select {kernel}` goes back to the kernel"
        )

    def _connect(self, target: Any, address: str) -> None:
        """Connect a target to the server. Raises UserError."""
        with self._synchronous():  # SBTarget.ConnectRemote shows the news to the user
            result = self._execute(target, f'process connect -p gdb-remote "{address}"')
        if not result.Succeeded() or target.GetProcess().GetState() != lldb.eStateStopped:
            raise UserError(f"lldb could not connect to the server: {result.GetError()}")

    def _execute(self, target: Any, command: str) -> Any:
        """Execute one of lldb's commands on a target without showing what it says, and return its result."""
        result = lldb.SBCommandReturnObject()
        context = lldb.SBExecutionContext(target)
        self._debugger.GetCommandInterpreter().HandleCommand(command, context, result)
        return result

    def _create_target(self, answer: dict[str, Any]) -> Any:
        """Return a target with the executable, if there is one. Raises UserError."""
        error = lldb.SBError()
        executable = answer["executable"]
        path = executable["file"] if executable is not None else ""
        target = self._debugger.CreateTarget(path, answer["triple"], "remote-linux", False, error)
        if not target.IsValid():
            raise UserError(f"lldb could not make a target: {error.GetCString()}")
        return target

    def _place(self, target: Any, answer: dict[str, Any]) -> None:
        """Place the executable and the libraries where the process has them, with their debug files."""
        for file in (answer["executable"], *answer["libraries"]):
            if file is None:
                continue
            if file is answer["executable"]:
                module = target.GetModuleAtIndex(0)
                if file["debug"] is not None:
                    self._execute(target, 'target symbols add -s "{}" "{}"'.format(file["file"], file["debug"]))
            else:
                module = target.AddModule(file["file"], answer["triple"], None, file["debug"])
            if module.IsValid():
                target.SetModuleLoadAddress(module, int(file["bias"], 16))

    def close(self, pid: int | None = None) -> int:
        """Delete the target of a process, or of all; return how many there were."""
        pids = [one for one in self._targets if pid in (None, one)]
        for one in pids:
            target = self._targets.pop(one)
            if target.IsValid():
                process = target.GetProcess()
                if process.IsValid():
                    with self._synchronous():
                        process.Detach()
                self._deleted.append(delete_target(self._debugger, target))
        return len(pids)


def closed_pid(words: list[str]) -> int | None:
    """Return the PID that `kvm user --close` is given, None for all. Raises UserError."""
    rest = [word for word in words if word != "--close"]
    if len(rest) > 1 or not all(word.isdecimal() for word in rest):
        raise UserError("usage: kvm user --close [PID]")
    return int(rest[0]) if rest else None
