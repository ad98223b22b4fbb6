"""A file for debuggers, made from the image itself: an ELF file that stands in for a vmlinux that nobody has.

    symbol.py       the symbol table: kallsyms, of the kernel and of its modules
    frame.py        unwind rules (.debug_frame): ORC, said in DWARF by frame_rule.py
    debug_info.py   what of types, functions and variables the image knows
    dwarf.py        their DWARF, made from BTF: .debug_info, .debug_abbrev, .debug_str (dwarf_*.py: its parts)
    declaration.py  the types of variables, which BTF lacks
    elf_writer.py   sections, program headers and notes, written down

The text itself is not in it: its sections are SHT_NOBITS, and a debugger reads them from the image.

Addresses. The kernel's own part has link-time addresses, those of the image minus KASLR's slide, so that it serves
every image of one build and is placed by debuggers as vmlinux is. Modules are wherever they were loaded: their part
has run-time addresses, and is a file of its own unless the kernel's part has run-time addresses as well (slide 0).

The debug information has the same addresses as the symbols: run-time ones minus `slide`, and of a per-CPU variable its
offset in the per-CPU area, unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.elf import SHT_PROGBITS
from kvm_dbg.errors import KvmDbgError, UnsupportedError
from kvm_dbg.kernel_file import frame
from kvm_dbg.kernel_file.elf_writer import Section, build_id_section, memory_section, write_elf
from kvm_dbg.kernel_file.symbol import FUNCTIONS, join, make_symbols
from kvm_dbg.symbols.kallsyms import JoinedSymbols

if TYPE_CHECKING:
    from kvm_dbg.debuginfo.btf import BtfTypes
    from kvm_dbg.kernel.base import Area, Kernel, OperatingSystem
    from kvm_dbg.kernel.unwind_rule import UnwindTable
    from kvm_dbg.symbols.base import SymbolColumns

LAYOUT = 4  # of what is kept in caches: raise it when what is made changes


class MadeFile(NamedTuple):
    """A file's bytes, in pieces, and a sentence on each thing that it lacks."""

    pieces: list[bytes]
    problems: tuple[str, ...]
    symbols: int
    modules: int

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return sum(map(len, self.pieces))


def make_kernel_file(
    kernel: Kernel,
    system: OperatingSystem,
    *,
    slide: int = 0,
    own: bool = True,
    modules: bool = True,
    without: Collection[str] = (),
    types: bool = True,
    module_types: Mapping[str, BtfTypes] | None = None,
    for_lldb: bool = False,
) -> MadeFile:
    """Return a file for debuggers.

    Args:
        kernel: of which.
        system: its operating system.
        slide: what is subtracted from the kernel's own addresses; 0 where modules are in the same file.
        own: with the kernel's own symbols and unwind rules.
        modules: with those of its modules.
        without: modules whose symbols a debugger has from elsewhere; it gets their unwind rules all the same.
        types: with debug information made from BTF; only with the kernel's own part.
        module_types: of modules, to be in it besides: see `debug_info.read_module_types`.
        for_lldb: functions' parameters have their names in it (see `dwarf.make_dwarf`), and each function has one
            entry of unwind rules (see `frame.make_debug_frame`).

    Raises:
        UnsupportedError: the processor is none of 64 bits, little-endian.
        ReadError: the kernel's own symbols cannot be read.
    """
    arch = kernel.arch
    if arch.pointer_size != 8 or arch.byteorder != "little":
        raise UnsupportedError(f"a file for debuggers of an {arch.name} kernel")
    problems: list[str] = []
    areas: list[Area] = []
    symbols: list[SymbolColumns] = []
    tables: list[UnwindTable] = []
    if own:
        areas += system.for_each_area(kernel, modules=False)
        symbols.append(kernel.symbols.columns())
        tables += system.for_each_unwind_table(kernel, modules=False)
        if not areas:
            problems.append("the symbols _text and _end are not known, so the kernel's own symbols have no sections")
    names: set[str] = set()
    if modules:
        tables += system.for_each_unwind_table(kernel, modules=True)
        found = list(_areas_of_modules(kernel, system, problems))
        names = {area.module or "" for area in found}
        areas += [area for area in found if area.module not in without]
        symbols += _symbols_of_modules(kernel, system, names - {*without}, problems)
    problems += dict.fromkeys(table.problem for table in tables if table.problem)
    areas.sort(key=lambda area: area.start)
    joined = join(symbols)
    placed = make_symbols(joined, areas, slide)
    if placed.homeless:
        problems.append(f"{placed.homeless} symbols lie in no known part of the kernel and are left out")
    sections = [_section_of(area, 0 if area.fixed else slide) for area in areas]
    build_id = getattr(kernel, "build_id", None)
    if own and build_id:
        sections.append(build_id_section(bytes.fromhex(build_id)))
    if arch.elf_machine == frame.MACHINE:
        functions = _find_functions(joined) if for_lldb else []
        rules = frame.make_debug_frame(tables, slide, user=not slide, functions=functions)
        if rules:
            sections.append(Section(".debug_frame", SHT_PROGBITS, rules, align=8))
    if own and types:
        from kvm_dbg.kernel_file.debug_info import make_debug_sections

        made = make_debug_sections(
            kernel,
            system,
            areas,
            slide,
            modules=modules,
            module_types=module_types or {},
            parameter_names=for_lldb,
            problems=problems,
        )
        sections += [Section(name, SHT_PROGBITS, data) for name, data in made.items()]
    sections += placed.sections
    return MadeFile(
        write_elf(sections, arch.elf_machine), tuple(problems), len(joined.names) - placed.homeless, len(names)
    )


def _find_functions(symbols: SymbolColumns) -> list[int]:
    """Return where functions begin, ascending."""
    return sorted(set(compress(symbols.addresses, map(FUNCTIONS.__contains__, map(chr, symbols.letters)))))


def _section_of(area: Area, slide: int) -> Section:
    start, end = area.start - slide, area.end - slide
    return memory_section(area.name, start, end, executable=area.executable, writable=area.writable)


def _areas_of_modules(kernel: Kernel, system: OperatingSystem, problems: list[str]) -> Iterator[Area]:
    """Yield the parts of modules; a broken list costs those after the break."""
    try:
        yield from system.for_each_area(kernel, modules=True)
    except KvmDbgError as error:
        problems.append(f"modules are missing: {error}")


def _symbols_of_modules(
    kernel: Kernel, system: OperatingSystem, names: Collection[str], problems: list[str]
) -> list[SymbolColumns]:
    table = system.all_symbols(kernel)
    if not isinstance(table, JoinedSymbols):
        return []
    found = {name: table.modules[name].columns() for name in sorted(names) if name in table.modules}
    bare = [name for name in sorted(names) if name not in found or not found[name].names]
    if bare:
        problems.append(f"no symbols of {', '.join(bare)} could be read")
    return list(found.values())
