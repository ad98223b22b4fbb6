"""A file for debuggers, made from the image itself: an ELF file that stands in for a vmlinux that nobody has.

    symbol.py       the symbol table: kallsyms, of the kernel and of its modules
    frame.py        unwind rules (.debug_frame): ORC, said in DWARF
    declaration.py  types, functions and variables that have one, from BTF
    dwarf.py        their DWARF: .debug_info, .debug_abbrev, .debug_str, ...
    elf_writer.py   sections, program headers and notes, written down

The text itself is not in it: its sections are SHT_NOBITS, and a debugger reads them from the image.

Addresses. The kernel's own part has link-time addresses, those of the image minus KASLR's slide, so that it serves
every image of one build and is placed by debuggers as vmlinux is. Modules are wherever they were loaded: their part
has run-time addresses, and is a file of its own unless the kernel's part has run-time addresses as well (slide 0).

`dwarf.make_dwarf(kernel, system, slide)` returns the sections of debug information by name, without those that are
made here; each address in them is a run-time address minus `slide`, that of a per-CPU variable its offset in the
per-CPU area, unchanged.
"""
