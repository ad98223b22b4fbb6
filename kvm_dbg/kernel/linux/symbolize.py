"""Names for addresses, and the symbols that modules carry in memory.

Sources: include/linux/module.h (struct mod_kallsyms: the table that stays after a module's start; `typetab` since
v5.2), kernel/kallsyms.c (mapping symbols "$d", "$x" of the ARM and RISC-V ABIs name no code), and arch/arm64/kvm: the
hypervisor's copies of symbols are called "__kvm_nvhe_..."; scripts/kallsyms.c (of names for one address the first is
shown).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, Names, Record, observed
from kvm_dbg.kernel.linux.module import ModuleReader, for_each_module_record
from kvm_dbg.symbols.base import Symbol, SymbolTable
from kvm_dbg.symbols.kallsyms import MAX_NAME, MAX_SYMBOLS, JoinedSymbols, ListedSymbols, parse_module_symbols

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

TABLE: dict[str, Names] = {
    "symtab": "symtab",
    "num_symtab": "num_symtab",
    "strtab": "strtab",
    "typetab": ("typetab", None),
}
ELF_SYM_SIZE = {4: 16, 8: 24}  # sizeof(Elf32_Sym), sizeof(Elf64_Sym), by the size of a pointer
FAR = 1 << 20  # bytes: a symbol without a size names nothing further away
PIECE = 1 << 16
ALIASES = ("__do", "__ia32", "__se", "__x64")  # one function where a system call has no arguments; SYSCALL_DEFINE0
MAX_STRINGS = 1 << 26


def symbolize(kernel: Kernel, address: int) -> str | None:
    """Return "name+0x12" or "name+0x12 [module]" for a kernel address, None if nothing is near."""
    symbol = find_symbol(kernel, address)
    if symbol is None:
        return None
    distance = address - symbol.address
    if not symbol.size and distance > FAR:
        return None
    place = f"+{distance:#x}" if distance else ""
    return symbol.name + place + (f" [{symbol.module}]" if symbol.module else "")


def find_symbol(kernel: Kernel, address: int) -> Symbol | None:
    """Return the symbol that `address` lies in, the kernel's own without a look at modules; None if there is none."""
    first, end = kernel.symbols.find("_stext"), kernel.symbols.find("_end")
    own = first is not None and end is not None and first.address <= address < end.address
    table = kernel.symbols if own else observed(kernel, read_all_symbols)
    symbol = table.find_at(address)
    return symbol if symbol is not None and not is_marker(symbol.name) else None


def shown_symbol(kernel: Kernel, symbol: Symbol) -> Symbol:
    """Return the one of a system call's several names that the kernel shows, the first in alphabetical order."""
    prefix, sys, name = symbol.name.partition("_sys_")
    if sys and prefix in ALIASES:
        for other in ALIASES:
            alias = kernel.symbols.find(f"{other}_sys_{name}")
            if alias is not None and alias.address == symbol.address:
                return alias
    return symbol


def is_marker(name: str) -> bool:
    """Return whether a symbol marks something for tools and names no code or data of the kernel."""
    return name.startswith(("$", ".L", "__kvm_nvhe_"))


def read_all_symbols(kernel: Kernel) -> SymbolTable:
    """Return the kernel's symbols joined with those of all modules whose tables can be read."""
    tables: dict[str, SymbolTable] = {}
    ranges: list[tuple[int, int, str]] = []
    try:
        reader = ModuleReader(kernel)
        for module in for_each_module_record(kernel):
            name = module.text("name")
            ranges += [(base, base + size, name) for base, size in reader.ranges(module)]
            tables[name] = ListedSymbols(s for s in _read_or_none(kernel, module) if not is_marker(s.name))
    except (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound):
        pass  # a broken list of modules costs the names of the rest
    return JoinedSymbols(kernel.symbols, tables, ranges)


def _read_or_none(kernel: Kernel, module: Record) -> tuple[Symbol, ...]:
    try:
        return read_module_symbols(kernel, module)
    except (ReadError, CorruptError, TypeNotFound, MemberNotFound):
        return ()


def read_module_symbols(kernel: Kernel, module: Record) -> tuple[Symbol, ...]:
    """Return the symbols of one module in the order of its table; none without CONFIG_KALLSYMS.

    Raises:
        ReadError, CorruptError: the table cannot be read.
    """
    address = module.get("kallsyms")
    if not address:
        return ()
    layout = Layout(kernel.types, "struct mod_kallsyms", TABLE, kernel.arch.byteorder)
    table = layout.read(kernel, address)
    count = table["num_symtab"]
    if count > MAX_SYMBOLS:
        raise CorruptError(address, f"module {module.text('name')} has {count} symbols")
    word = kernel.arch.pointer_size
    symtab = kernel.read(table["symtab"], count * ELF_SYM_SIZE[word])
    typetab = kernel.read(table["typetab"], count) if "typetab" in table else None
    little = kernel.arch.byteorder == "little"
    return parse_module_symbols(
        module.text("name"),
        symtab,
        _read_strings(kernel, table["strtab"], symtab, ELF_SYM_SIZE[word], little=little),
        typetab,
        word_bits=8 * word,
        byteorder=kernel.arch.byteorder,
        letter_in="typetab" if typetab is not None else _find_letters(symtab, word),
    )


def _find_letters(symtab: bytes, word: int) -> str:
    """Return where kernels before v5.2 keep nm's letters: st_info held them until v5.0 (commit 5439c985c5a8)."""
    size, offset = ELF_SYM_SIZE[word], 4 if word == 8 else 12
    infos = symtab[size + offset :: size]
    return "st_info" if infos and all(chr(info).isalpha() and info < 128 for info in infos) else "st_size"


def _read_strings(kernel: Kernel, address: int, symtab: bytes, size: int, *, little: bool) -> bytes:
    """Return the string table as far as the symbols' names go and memory can be read."""
    order = "little" if little else "big"
    last = max(
        (
            int.from_bytes(symtab[at : at + 4], "little" if order == "little" else "big")
            for at in range(0, len(symtab), size)
        ),
        default=0,
    )
    if last > MAX_STRINGS:
        raise CorruptError(address, f"a module's symbol has its name {last} bytes into the strings")
    data = kernel.read(address, last + 1)
    try:
        while data.find(b"\0", last) < 0 and len(data) < last + MAX_NAME:
            data += kernel.read(address + len(data), min(64, 4096 - (address + len(data)) % 4096))
    except ReadError:
        pass  # the last name is cut off; the table that uses it says so by leaving it out
    return data
