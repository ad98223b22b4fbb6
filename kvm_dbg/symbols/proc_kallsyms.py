"""/proc/kallsyms: the symbols of the kernel that runs here, as it tells them itself.

Facts: kernel/kallsyms.c s_show(): a line for each symbol, "ADDRESS LETTER NAME", a tab and "[MODULE]" for those of
modules, BPF programs and the like; kptr_restrict (Documentation/admin-guide/sysctl/kernel.rst) makes all addresses 0
for those who may not see them. Sizes are not told.
"""

from __future__ import annotations

import re

from kvm_dbg.errors import FileAccessError
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols

PATH = "/proc/kallsyms"
LINE = re.compile(r"^([0-9a-f]+) (\S) (\S+)(\t\[\S+\])?$", re.MULTILINE)
MAX_SIZE = 1 << 27  # characters; a kernel with many modules has some 15 million


def read_proc_kallsyms(path: str = PATH) -> ListedSymbols:
    """Return the kernel's own symbols; modules' are read from their own tables.

    Raises:
        FileAccessError: the file cannot be read, or hides the addresses.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_SIZE)
    except OSError as error:
        raise FileAccessError(path, error.strerror or str(error)) from error
    found = [Symbol(match[3], int(match[1], 16), 0, match[2]) for match in LINE.finditer(text) if match[4] is None]
    if not any(symbol.address for symbol in found if symbol.kind in "tT"):
        raise FileAccessError(path, "hides the addresses (sysctl kernel.kptr_restrict, or no CAP_SYSLOG)")
    return ListedSymbols(found)
