"""Symbol files in gdb: the kernel's at its slide, its modules', and their removal when the image is closed."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from kvm_dbg_client import Server, ServerError
from kvm_dbg_gdb_setting import Setup, quiet, quoted, warn

import gdb

INDEX_IN_BACKGROUND = 15  # the first version that writes its index beside its work


def cache_directory() -> str | None:
    """Return the directory of this gdb's index cache, made if need be; None where none can be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "kvm-dbg", "gdb-index", str(gdb.VERSION).replace(os.sep, "_"))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


class SymbolFiles:
    """The symbol files that were loaded for one image."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._replaced: str | None = None
        self._disabled: list[str] = []  # gdb's own unwinders
        self._modules: str | None = None  # the file made of those that have none of their own

    def load(self, server: Server) -> None:
        """Load what the server knows of: vmlinux and rules for entry code, or what stands in for them; modules.

        What fails is said.
        """
        path = server.ready["vmlinux"]
        made: dict[str, Any] = {}
        try:
            made = self._ask_made(server, [])
        except ServerError as error:
            warn(f"no symbols could be made from the image: {error}")
        if path is not None:
            try:
                rules = server.ask({"unwind": True})["file"]
                if rules is not None:  # before vmlinux: gdb takes the first rule that it finds
                    server.files.append(rules)
                    self.add(rules, "", {})
                    # it comes before all rules where code cannot be read, as in dumps that leave the text out
                    self._disable("aarch64 stub")
            except (ServerError, gdb.error) as error:
                warn(f"backtraces may end in frames that never were: {error}")
            try:
                self.load_kernel(server.ready)
            except gdb.error as error:
                warn(f"{path}: gdb could not load its symbols: {error}")
        elif made.get("file") is not None:
            warn("no vmlinux was found: symbols and unwind rules are made from the image")
            self._add_made(
                made["file"], "-o {}".format(server.ready["slide"]), dict.fromkeys(made["zero_based"], "0x0")
            )
        else:
            warn("no vmlinux was found, so gdb has no symbols; kvm commands work without")
        self._replace_modules(made.get("modules"))

    def _ask_made(self, server: Server, without: list[str]) -> dict[str, Any]:
        """Return what the server has made from the image. Raises ServerError."""
        made = server.ask({"symbols": True, "without": without})
        server.files += made["temporary"]
        for problem in made["problems"]:
            warn(problem)
        return made

    def _add_made(self, path: str, where: str, sections: dict[str, str]) -> bool:
        """Load a made file, without gdb's index cache: it knows files by build-id only, and this one has vmlinux's."""
        setup = Setup()
        setup.change("index-cache enabled", "off")
        try:
            self.add(path, where, sections)
        except gdb.error as error:
            warn(f"gdb could not load the symbols that were made from the image: {error}")
            return False
        finally:
            setup.restore()
        return True

    def _replace_modules(self, path: str | None) -> None:
        """Load the file made of modules in the place of the last one."""
        if self._modules is not None:
            with contextlib.suppress(gdb.error, ValueError):  # the user may have removed it
                self._paths.remove(self._modules)
                quiet(f"remove-symbol-file {quoted(self._modules)}")
            self._modules = None
        if path is not None and self._add_made(path, "", {}):
            self._modules = path

    def load_kernel(self, ready: dict[str, Any]) -> None:
        """Load vmlinux at the kernel's slide; sections linked at address 0 (per-CPU data) stay there.

        Raises:
            gdb.error: gdb does not like the file.
        """
        path = str(ready["vmlinux"])
        main = gdb.selected_inferior().progspace.filename
        if main and os.path.realpath(main) == os.path.realpath(path):
            quiet("symbol-file")  # it is at its link address; the whole file is placed anew below
            self._replaced = main
        setup = Setup()
        directory = cache_directory()
        if directory is not None:
            setup.change("index-cache directory", directory)
            setup.change("index-cache enabled", "on")
        where, sections = "-o {}".format(ready["slide"]), dict.fromkeys(ready["zero_based"], "0x0")
        known = os.listdir(directory) if directory is not None else []
        try:
            self.add(path, where, sections)
            if directory is not None:
                self._finish_index(path, directory)
                if int(gdb.VERSION.partition(".")[0]) < INDEX_IN_BACKGROUND and os.listdir(directory) != known:
                    self.remove()  # what has made an index goes on without it, and looks names up for half a minute
                    self.add(path, where, sections)
        finally:
            setup.restore()

    def _finish_index(self, path: str, directory: str) -> None:
        """Let a gdb that writes its index in the background (15 and newer) end that before the cache is off again."""
        for objfile in gdb.objfiles():
            if objfile.filename and os.path.realpath(objfile.filename) == os.path.realpath(path):
                name = f"{objfile.build_id}.gdb-index"
                if objfile.build_id and not os.path.exists(os.path.join(directory, name)):
                    with contextlib.suppress(gdb.error):
                        quiet("maintenance wait-for-index-cache")
                return

    def add(self, path: str, where: str, sections: dict[str, str]) -> None:
        """Load a symbol file. Raises gdb.error."""
        words = ["add-symbol-file", quoted(path), where]
        for name, address in sections.items():
            words += ["-s", name, address]
        quiet(" ".join(words))
        self._paths.append(path)

    def _disable(self, unwinder: str) -> None:
        """Disable one of gdb's own unwinders until `unload`, if this gdb has it and can (16 and newer)."""
        with contextlib.suppress(gdb.error):
            quiet(f'maintenance frame-unwinder disable -name "{unwinder}"')
            self._disabled.append(unwinder)

    def load_modules(self, server: Server, words: list[str]) -> None:
        """Load the symbols of the kernel's modules, from files in a directory or in the usual places."""
        rest = [word for word in words if word != "--load"]
        if len(rest) > 1 or any(word.startswith("-") for word in rest):
            raise gdb.GdbError("usage: kvm mods --load [DIRECTORY]")
        plan = server.ask({"modules": os.path.abspath(os.path.expanduser(rest[0])) if rest else None})["modules"]
        loaded = []
        absent = [module["name"] for module in plan if module["file"] is None and module["problem"] is None]
        if absent:
            warn("no file was found of: " + ", ".join(absent))
        for module in plan:
            if module["problem"] is not None:
                warn(f"{module['name']}: {module['problem']}")
            if module["file"] is None:
                continue
            sections = dict(module["sections"])
            text = sections.pop(".text", None)
            try:
                self.add(module["file"], text if text is not None else "", sections)
                loaded.append(module["name"])
            except gdb.error as error:
                warn("{}: gdb could not load {}: {}".format(module["name"], module["file"], error))
        if loaded and self._modules is not None:
            try:
                self._replace_modules(self._ask_made(server, loaded)["modules"])
            except ServerError as error:
                warn(f"symbols of these modules that were made from the image stay beside theirs: {error}")
        gdb.write(f"symbols of {len(loaded)} of {len(plan)} modules loaded\n")
        if plan and not loaded:
            raise gdb.GdbError("no module's symbols could be loaded")

    def remove(self) -> None:
        """Remove what was added last."""
        with contextlib.suppress(gdb.error):  # the user may have removed it
            quiet(f"remove-symbol-file {quoted(self._paths.pop())}")

    def unload(self) -> None:
        """Remove everything that was loaded, and put back what was there."""
        self._modules = None
        while self._disabled:
            with contextlib.suppress(gdb.error):
                quiet(f'maintenance frame-unwinder enable -name "{self._disabled.pop()}"')
        while self._paths:
            self.remove()
        if self._replaced is not None:
            with contextlib.suppress(gdb.error):
                quiet(f"symbol-file {quoted(self._replaced)}")
            self._replaced = None
