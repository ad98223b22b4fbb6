"""Where frames are in the kernel's source: the DWARF of vmlinux, and of the files of modules.

A kernel is built in a directory of its own, and what compilers write of paths differs: relative to it, or below a
directory that was made up for the sake of reproducible builds. The root of the sources is what is left of the paths of
files whose names within the tree are known: init/main.c has start_kernel() since ever, and assembler has a root of its
own (arch/x86/entry/entry_64.S; its functions are not compiled with the same -fdebug-prefix-map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from kvm_dbg.debuginfo.dwarf import DwarfTypes
from kvm_dbg.debuginfo.dwarf_frame import FrameTable
from kvm_dbg.debuginfo.dwarf_scope import CodeMap, Place
from kvm_dbg.debuginfo.relocation import relocated
from kvm_dbg.elf import ElfFile, open_elf
from kvm_dbg.errors import CorruptError, ReadError, SymbolNotFound
from kvm_dbg.kernel.base import Frame, Kernel, Module, SourcePlace, Thread, Variable
from kvm_dbg.kernel.layout import remembered
from kvm_dbg.kernel.linux.module import for_each_module
from kvm_dbg.kernel.linux.stack import USER

if TYPE_CHECKING:
    from kvm_dbg.kernel.linux.kernel import LinuxKernel

INFO = ".debug_info"
ANCHORS = (("start_kernel", "init/main.c"), ("entry_SYSCALL_64", "arch/x86/entry/entry_64.S"))


class CodeFile:
    """One file with debug information; `slide` is what its addresses lack to those of the kernel's memory, in bytes."""

    def __init__(self, elf: ElfFile, slide: int) -> None:
        self.elf = elf
        self.slide = slide
        self.map = CodeMap(elf)

    @cached_property
    def types(self) -> DwarfTypes:
        """Return its types. Raises FormatError, UnsupportedError."""
        return DwarfTypes(self.elf)

    @cached_property
    def frames(self) -> FrameTable:
        """Return where functions save registers. Raises FormatError."""
        return FrameTable(self.map.sections)


class Source:
    """The source of one kernel, a `SourceReader`.

    Raises:
        KvmDbgError: its file has no debug information, or is damaged.
    """

    def __init__(self, kernel: LinuxKernel, path: str) -> None:
        self.kernel = kernel
        self.find_file: Callable[[Module], str | None] | None = None
        self._main = CodeFile(open_elf(path), kernel.slide)
        self._modules: dict[str, CodeFile | None] = {}
        self._roots = [root for anchor in ANCHORS if (root := self._root(*anchor))]
        self._places: dict[int, list[SourcePlace]] = {}

    def _root(self, function: str, file: str) -> str:
        """Return the directory that `file`, which has `function`, is in; "" if it is not known."""
        symbol = self.kernel.symbols.find(function)
        unit = self._main.map.unit_at(symbol.address - self.kernel.slide) if symbol is not None else None
        path = unit.path if unit is not None else ""
        return path.removesuffix(file) if path.endswith(f"/{file}") else ""

    def places(self, frame: Frame) -> Sequence[SourcePlace]:
        """Return where a frame is; see `SourceReader`."""
        address = address_of(frame)
        if address not in self._places:
            file = self.file_of(frame)
            found = [] if file is None else file.map.places_at(address - file.slide)
            self._places[address] = [self._shown(place) for place in found]
        return self._places[address]

    def variables(self, thread: Thread, frames: Sequence[Frame], number: int) -> Sequence[Sequence[Variable]]:
        """Return the variables at each place of a frame; see `SourceReader`."""
        from kvm_dbg.kernel.linux.variable import read_variables

        return read_variables(self, thread, frames, number)

    def file_of(self, frame: Frame) -> CodeFile | None:
        """Return the file that a frame's code is from, None if there is none with debug information."""
        if frame.stack == USER or frame.name is None:
            return None
        return self._main if frame.module is None else self._module(frame.module)

    def _module(self, name: str) -> CodeFile | None:
        if name not in self._modules:
            self._modules[name] = None
            self._modules[name] = self._open_module(name)
        return self._modules[name]

    def _open_module(self, name: str) -> CodeFile | None:
        try:
            module = next((one for one in for_each_module(self.kernel) if one.name == name), None)
            path = self.find_file(module) if module is not None and self.find_file is not None else None
        except (ReadError, CorruptError, SymbolNotFound):
            return None  # the list of modules is damaged
        if module is None or path is None:
            return None
        elf = open_elf(path)
        if elf.find_section(INFO) is None:
            elf.close()
            return None
        linked = relocated(elf, {".text": module.address, **module.sections})
        if linked is not elf:
            elf.close()
        return CodeFile(linked, 0)

    def _shown(self, place: Place) -> SourcePlace:
        line = place.line
        if line is None:
            return SourcePlace(place.function, None, None, 0, 0, place.inlined)
        file = line.file
        for root in self._roots:
            file = file.removeprefix(root)
        return SourcePlace(place.function, file, line.file, line.line, line.column, place.inlined)


def address_of(frame: Frame) -> int:
    """Return an address of the instruction that a frame is in: a return address is already past the call."""
    return frame.pc if frame.exact else frame.pc - 1


def open_source_reader(kernel: Kernel, find_file: Callable[[Module], str | None]) -> Source | None:
    """Return the source of a kernel, None without vmlinux or debug information in it. Raises KvmDbgError."""
    source = remembered(kernel, _make_source)
    if source is not None:
        source.find_file = find_file
    return source


def _make_source(kernel: Kernel) -> Source | None:
    path = getattr(kernel, "vmlinux_path", None)
    if path is None:
        return None
    with open_elf(path) as elf:
        if elf.find_section(INFO) is None:
            return None
    return Source(cast("LinuxKernel", kernel), path)
