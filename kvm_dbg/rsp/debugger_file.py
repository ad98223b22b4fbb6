"""Files that a debugger is given beside vmlinux, or in its place: made from the image.

Where there is no vmlinux, the kernel's own symbols, types and unwind rules are made into a file at link-time addresses.
With the types of the modules that the image has, it depends on the build and on these: it is kept in the cache by
build-id, for a few sets of modules. Modules are elsewhere in every image: their file, and the rules for what vmlinux
has none for, live as long as the server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_dbg.elf import SHF_ALLOC, open_elf
from kvm_dbg.errors import FileAccessError, KvmDbgError

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session


MAX_SETS = 8  # of modules, of one build and for one kind of debugger


class DebuggerFiles:
    """Makes files when they are asked for; `close` removes those that are not kept."""

    def __init__(self) -> None:
        self._directory: str | None = None
        self._count = 0

    def make_unwind(self, session: Session) -> str | None:
        """Return the path of a file of unwind rules to load before vmlinux, or None if there are none to add.

        Raises:
            FileAccessError: it cannot be written.
        """
        from kvm_dbg.kernel_file.chain_frame import make_chain_file
        from kvm_dbg.kernel_file.frame import make_frame_file
        from kvm_dbg.rsp.frame_table import read_covered

        path = getattr(session.kernel, "vmlinux_path", None)
        slide = getattr(session.kernel, "slide", None) or 0
        try:
            covered = read_covered(str(path)) if path is not None else []
            runs = [(start + slide, end + slide) for start, end in covered]
            tables = session.system.for_each_unwind_gap(session.kernel, runs)
            wide = session.kernel.arch.name == "x86_64"
            data = make_frame_file(tables) if wide else make_chain_file(session.kernel.arch, tables)
        except KvmDbgError:  # no such tables, or not in the image: a backtrace guesses in entry code
            return None
        return None if data is None else self._write("entry-code", [data])

    def make_symbols(
        self, session: Session, without: Collection[str] = (), *, for_lldb: bool = False
    ) -> dict[str, object]:
        """Return what an adapter needs to know of the made files.

        file: of the kernel, at link-time addresses; None if there is a vmlinux. zero_based: its sections that no slide
        moves. modules: of modules, at run-time addresses. temporary: the paths of those that
        end with the server. problems: what they lack, a sentence each.

        Args:
            session: with an open image.
            without: modules whose symbols the debugger has already.
            for_lldb: see `kernel_file.make_kernel_file`.

        Raises:
            FileAccessError: a file cannot be written.
            KvmDbgError: the kernel's own symbols cannot be read.
        """
        from kvm_dbg.kernel_file import make_kernel_file

        problems: list[str] = []
        temporary: list[str] = []
        file = None
        if getattr(session.kernel, "vmlinux_path", None) is None:
            file = self._kernel_file(session, temporary, problems, for_lldb)
        made = make_kernel_file(session.kernel, session.system, own=False, without=without, for_lldb=for_lldb)
        problems += made.problems
        modules = self._write("modules", made.pieces)
        temporary.append(modules)
        return {
            "file": file,
            "zero_based": zero_based_sections(file) if file is not None else [],
            "modules": modules,
            "temporary": temporary,
            "problems": problems,
        }

    def _kernel_file(self, session: Session, temporary: list[str], problems: list[str], for_lldb: bool) -> str:
        from kvm_dbg.kernel_file import LAYOUT, make_kernel_file
        from kvm_dbg.kernel_file.debug_info import digest_of, read_module_types

        module_types = read_module_types(session.kernel, session.system, problems)
        build_id = getattr(session.kernel, "build_id", None)
        kept: Path | None = None
        if session.index_directory is not None and build_id:
            kind = "made-lldb" if for_lldb else "made"
            kept = Path(session.index_directory) / build_id / f"{kind}-{LAYOUT}-{digest_of(module_types)}.elf"
            if is_whole(kept, build_id):
                return str(kept)
        slide = getattr(session.kernel, "slide", None) or 0
        if session.progress is not None:
            session.progress("making a kernel file")
        made = make_kernel_file(
            session.kernel, session.system, slide=slide, modules=False, module_types=module_types, for_lldb=for_lldb
        )
        problems += made.problems
        if kept is not None and not made.problems:  # another image of this build may have what this one lacks
            with contextlib.suppress(FileAccessError):
                keep(made.pieces, kept)
                remove_oldest(kept.parent, f"{kind}-{LAYOUT}-*.elf", MAX_SETS)
                return str(kept)
        temporary.append(self._write("kernel", made.pieces))
        return temporary[-1]

    def _write(self, name: str, pieces: Iterable[bytes]) -> str:
        try:
            self._directory = self._directory or tempfile.mkdtemp(prefix="kvm-dbg-")
            self._count += 1
            path = Path(self._directory) / f"{name}-{self._count}.debug"  # never one that a debugger has open
            with path.open("wb") as file:
                file.writelines(pieces)
        except OSError as error:
            raise FileAccessError(tempfile.gettempdir(), f"cannot write there: {error.strerror}") from error
        return str(path)

    def close(self) -> None:
        """Remove the files."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def is_whole(path: Path, build_id: str) -> bool:
    """Return whether a kept file is there, of this build, and not cut off: its section headers are its end."""
    try:
        with open_elf(path) as file:
            head, found = file.header, file.find_build_id()
            end = head.shoff + head.shnum * head.shentsize
            return found is not None and found.hex() == build_id and end == path.stat().st_size
    except (KvmDbgError, OSError):
        return False


def keep(pieces: Iterable[bytes], path: Path) -> str:
    """Write a file into the cache, whole or not at all, and return its path. Raises FileAccessError."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.writelines(pieces)
        part.replace(path)
    except OSError as error:
        raise FileAccessError(path, f"cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return str(path)


def remove_oldest(folder: Path, pattern: str, number: int) -> None:
    """Leave the newest `number` of a folder's files with such names."""
    with contextlib.suppress(OSError):  # somebody else does the same
        files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in files[number:]:
            path.unlink()


def zero_based_sections(path: str) -> list[str]:
    """Return the allocated sections that start at address 0 and so are not moved by a slide.

    On x86_64 `.data..percpu` was linked at 0 until 6.15 (commit 9d7de2aa8b41 made per-CPU symbols ordinary ones).
    """
    with open_elf(path) as file:
        return [
            section.name for section in file.sections if section.flags & SHF_ALLOC and section.size and not section.addr
        ]
