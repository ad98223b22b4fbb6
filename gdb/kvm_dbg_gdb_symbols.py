"""Symbol files in gdb: the kernel's at its slide, its modules', and their removal when the image is closed."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from kvm_dbg_client import Server, ServerError
from kvm_dbg_gdb_setting import Setup, quiet, quoted, warn

import gdb


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

    def load(self, server: Server) -> None:
        """Load what the server knows of: rules for entry code, and vmlinux; what fails is said."""
        path = server.ready["vmlinux"]
        if path is None:
            warn("no vmlinux was found, so gdb has no symbols; kvm commands work without")
            return
        try:
            rules = server.ask({"unwind": True})["file"]
            if rules is not None:  # before vmlinux: gdb takes the first rule that it finds
                server.files.append(rules)
                self.add(rules, "", {})
        except (ServerError, gdb.error) as error:
            warn(f"backtraces may end in frames that never were: {error}")
        try:
            self.load_kernel(server.ready)
        except gdb.error as error:
            warn(f"{path}: gdb could not load its symbols: {error}")

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
        try:
            self.add(path, "-o {}".format(ready["slide"]), dict.fromkeys(ready["zero_based"], "0x0"))
            if directory is not None:
                self._finish_index(path, directory)
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

    def load_modules(self, server: Server, words: list[str]) -> None:
        """Load the symbols of the kernel's modules, from files in a directory or in the usual places."""
        rest = [word for word in words if word != "--load"]
        if len(rest) > 1 or any(word.startswith("-") for word in rest):
            raise gdb.GdbError("usage: kvm mods --load [DIRECTORY]")
        plan = server.ask({"modules": os.path.abspath(os.path.expanduser(rest[0])) if rest else None})["modules"]
        loaded = 0
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
                loaded += 1
            except gdb.error as error:
                warn("{}: gdb could not load {}: {}".format(module["name"], module["file"], error))
        gdb.write(f"symbols of {loaded} of {len(plan)} modules loaded\n")
        if plan and not loaded:
            raise gdb.GdbError("no module's symbols could be loaded")

    def unload(self) -> None:
        """Remove everything that was loaded, and put back what was there."""
        while self._paths:
            with contextlib.suppress(gdb.error):  # the user may have removed it
                quiet(f"remove-symbol-file {quoted(self._paths.pop())}")
        if self._replaced is not None:
            with contextlib.suppress(gdb.error):
                quiet(f"symbol-file {quoted(self._replaced)}")
            self._replaced = None
