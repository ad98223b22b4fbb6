"""/proc/kallsyms, from a file that looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvm_dbg.errors import FileAccessError
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.proc_kallsyms import read_proc_kallsyms

TEXT = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t startup
ffffffff82000000 D jiffies
ffffffffc0000000 t helper\t[ext9]
ffffffffc0001000 t bpf_prog_6deef7357e7b4530\t[bpf]
"""


def test_symbols_of_the_kernel_alone(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(TEXT)
    symbols = read_proc_kallsyms(str(path))
    assert len(symbols) == 4
    assert symbols.find("jiffies") == Symbol("jiffies", 0xFFFFFFFF82000000, 0, "D")
    assert symbols.find("helper") is None
    assert symbols.find_at(0xFFFFFFFF81000010) == Symbol("_text", 0xFFFFFFFF81000000, 0, "T")


def test_hidden_addresses_are_no_symbols(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text("".join(f"{0:016x}{line[16:]}\n" for line in TEXT.splitlines()))
    with pytest.raises(FileAccessError, match=r"hides the addresses \(sysctl kernel.kptr_restrict"):
        read_proc_kallsyms(str(path))
    with pytest.raises(FileAccessError, match="No such file"):
        read_proc_kallsyms(str(tmp_path / "none"))
