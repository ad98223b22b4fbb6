"""Symbols in lldb: the kernel's at its slide, with unwind rules for all of its code, and its modules'."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Callable, Iterator, NamedTuple

from kvm_dbg_client import Server, ServerError

import lldb

SPLIT_FUNCTIONS = 23  # the first version known not to take a function in several pieces for all between them


class CommandFailed(Exception):  # noqa: N818 - the name says it
    """A command ends with this text for people."""


class Symbols(NamedTuple):
    """Where the kernel's symbols are.

    object: the file that lldb takes for the kernel. debug: the one with its debug information, None if that is the
    same. trap_handlers: functions that may have switched the stack, which lldb shall unwind by the first file's rules.
    modules: a file with the kernel's loaded modules, at their run-time addresses.
    """

    object: str
    debug: str | None
    trap_handlers: list[str]
    modules: str | None = None


def warn(text: str) -> None:
    """Say something that is no command's output: standard output stays clean for scripts."""
    sys.stderr.write(f"kvm: {text}\n")
    sys.stderr.flush()


def lldb_version() -> int:
    """Return lldb's major version, 0 if it cannot be told."""
    found = re.search(r"version (\d+)\.", lldb.SBDebugger.GetVersionString() or "")
    return int(found[1]) if found else 0


def cache_directory() -> str | None:
    """Return the directory of this lldb's index cache, made if need be; None where none can be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "kvm-dbg", "lldb-index", str(lldb_version()))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


def find_symbols(server: Server) -> Symbols | None:
    """Return the files to load for the opened kernel, None where no vmlinux was found; what is missing is said."""
    path = server.ready["vmlinux"]
    if path is None:
        return _find_made(server)
    if lldb_version() < SPLIT_FUNCTIONS:
        try:
            path = server.ask({"joined": True})["file"]
        except ServerError as error:
            warn(f"backtraces through functions in several pieces may take minutes: {error}")
    try:
        module = server.ask({"lldb": True})
    except ServerError as error:
        warn(f"backtraces end where the kernel was entered or interrupted: {error}")
        return Symbols(str(path), None, [])
    debug = None if module["complete"] else str(path)
    return Symbols(str(module["file"]), debug, list(module["trap_handlers"]))


def _find_made(server: Server) -> Symbols | None:
    """Return the files that are made from the image, None if they cannot be; what is missing is said."""
    try:
        made = server.ask({"symbols": True, "for_lldb": True})
    except ServerError as error:
        warn(f"no vmlinux was found, and no symbols could be made from the image: {error}")
        return None
    server.files.extend(str(name) for name in made["temporary"])
    for problem in made["problems"]:
        warn(str(problem))
    warn("no vmlinux was found: symbols, types and unwind rules are made from the image, without source lines")
    path, modules = str(made["file"]), str(made["modules"])
    try:
        module = server.ask({"lldb": True, "made": path})
    except ServerError as error:
        warn(f"backtraces end where the kernel was entered or interrupted: {error}")
        return Symbols(path, None, [], modules)
    return Symbols(str(module["file"]), path, list(module["trap_handlers"]), modules)


def create_target(debugger: Any, symbols: Symbols | None, triple: str) -> Any:
    """Return a new target with the kernel's symbols, not yet placed; without them if lldb does not like the files.

    Raises:
        CommandFailed: lldb makes no target at all.
    """
    error = lldb.SBError()
    # a platform has the processors that lldb's makers thought of; without one named lldb takes what fits
    platforms = ("remote-freebsd" if "freebsd" in triple else "remote-linux", None)
    target = lldb.SBTarget()
    for name in (symbols.object, "") if symbols is not None else ("",):
        for platform in platforms:
            if not target.IsValid():
                target = debugger.CreateTarget(name, triple, platform, False, error)
        if name and not target.IsValid():
            warn(f"{name}: lldb could not load its symbols: {error.GetCString()}")
    if not target.IsValid():
        raise CommandFailed(f"lldb could not make a target: {error.GetCString()}")
    if symbols is not None and target.GetNumModules():
        name = os.path.basename(symbols.object)
        if symbols.debug is not None:
            _execute(debugger, target, f'target symbols add -s "{name}" "{symbols.debug}"')
        if symbols.trap_handlers:
            _execute(debugger, target, "settings append target.trap-handler-names " + " ".join(symbols.trap_handlers))
    return target


def delete_target(debugger: Any, target: Any) -> Any:
    """Delete a target, and return what to keep until the end.

    lldb 23 takes the target of a process for alive when its event thread reads late news of that process
    (Debugger::DefaultEventHandler makes an ExecutionContextRef of it), and crashes if nobody holds it any more.
    SBDebugger.DeleteTarget empties the object that it is given, so what is kept is another one.
    """
    kept = lldb.SBTarget(target)
    debugger.DeleteTarget(target)
    return kept


def _execute(debugger: Any, target: Any, command: str) -> None:
    """Execute one of lldb's commands on a target that need not be the selected one."""
    result = lldb.SBCommandReturnObject()
    debugger.GetCommandInterpreter().HandleCommand(command, lldb.SBExecutionContext(target), result)
    if not result.Succeeded():
        warn(f"{command[:60]}: {str(result.GetError()).strip()}")


def add_symbols(target: Any, symbols: Symbols, execute: Callable[[str, Any], Any]) -> Any:
    """Add the kernel's symbols to a target that is there; return the module, or None if lldb does not like the file.

    execute: executes one of lldb's commands on a target.
    """
    module = target.AddModule(symbols.object, target.GetTriple(), None)
    if not module.IsValid():
        warn(f"{symbols.object}: lldb could not load its symbols")
        return None
    name = os.path.basename(symbols.object)
    if symbols.debug is not None:
        execute(f'target symbols add -s "{name}" "{symbols.debug}"', target)
    if symbols.trap_handlers:
        execute("settings append target.trap-handler-names " + " ".join(symbols.trap_handlers), target)
    return module


def place(target: Any, slide: int, symbols: Symbols, module: Any = None) -> None:
    """Place the kernel's segments, or the sections of a file that has none, and the modules' file.

    What is linked at address 0 (per-CPU data) is nowhere: no task has it there. `module` is the kernel's, if that is
    not the target's first one.
    """
    if symbols.modules is not None:
        modules = target.AddModule(symbols.modules, target.GetTriple(), None)
        if modules.IsValid():
            target.SetModuleLoadAddress(modules, 0)
    for section in _kernel_sections(module or target.GetModuleAtIndex(0)):
        target.SetSectionLoadAddress(section, section.GetFileAddress() + slide)


def unplace(target: Any, module: Any) -> None:
    """Let the kernel's sections be nowhere."""
    for section in _kernel_sections(module):
        target.ClearSectionLoadAddress(section)


def _kernel_sections(module: Any) -> Iterator[Any]:
    """Yield what is at its link address plus the slide: segments, or sections where there are none."""
    sections = [module.GetSectionAtIndex(index) for index in range(module.GetNumSections())]
    segments = [section for section in sections if str(section.GetName()).startswith("PT_LOAD")]
    for section in segments or sections:
        address = section.GetFileAddress()
        if address and address != lldb.LLDB_INVALID_ADDRESS and section.GetByteSize():
            yield section


def load_modules(target: Any, server: Server, words: list[str], result: Any) -> None:
    """Load the symbols of the kernel's modules, from files in a directory or in the usual places.

    Raises:
        CommandFailed: wrong words, or nothing could be loaded.
        ServerError, ServerGone: as the server says.
    """
    rest = [word for word in words if word != "--load"]
    if len(rest) > 1 or any(word.startswith("-") for word in rest):
        raise CommandFailed("usage: kvm mods --load [DIRECTORY]")
    plan = server.ask({"modules": os.path.abspath(os.path.expanduser(rest[0])) if rest else None})["modules"]
    absent = [module["name"] for module in plan if module["file"] is None and module["problem"] is None]
    if absent:
        warn("no file was found of: " + ", ".join(absent))
    loaded = 0
    for module in plan:
        if module["problem"] is not None:
            warn("{}: {}".format(module["name"], module["problem"]))
        if module["file"] is not None:
            if _load_module(target, module):
                loaded += 1
            else:
                warn("{}: lldb could not load {}".format(module["name"], module["file"]))
    result.Print(f"symbols of {loaded} of {len(plan)} modules loaded\n")
    if plan and not loaded:
        raise CommandFailed("no module's symbols could be loaded")


def _load_module(target: Any, module: dict[str, Any]) -> bool:
    added = target.AddModule(str(module["file"]), target.GetTriple(), None)
    if not added.IsValid():
        return False
    for name, address in module["sections"].items():
        section = added.FindSection(name)
        if section.IsValid():
            target.SetSectionLoadAddress(section, int(address, 16))
    return True
