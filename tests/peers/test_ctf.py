"""The tests' CTF, as pahole reads it (version 2, the one that it knows): the writer is no invention."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvm_dbg.debuginfo.base import Member, PointerType, size_of
from kvm_dbg.debuginfo.ctf import open_ctf
from kvm_dbg.elf import open_elf
from tests.unit.test_ctf import kernel
from tests.writers.kernel_file import Entry, Part, write_kernel_file

MEMBER = re.compile(
    r"(?P<name>\w+)(?:\[\d+\]|:(?P<bits>\d+)|\)\([^;]*\))?;"
    r" +/\* +(?P<offset>\d+)(?:: *(?P<bit>\d+))? +(?P<size>\d+) \*/"
)
NOT_READ = ("td_state",)  # pahole 1.24 takes an enum's size for bits


def bits_of(found: Member) -> tuple[int, int]:
    size = found.type.size if isinstance(found.type, PointerType) else size_of(found.type)
    return found.bit_offset, found.bit_size or 8 * size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_struct_as_pahole_shows_it(order: str, compressed: bool, tmp_path: Path) -> None:
    pahole = shutil.which("pahole")
    if pahole is None:
        pytest.skip("pahole is not installed")
    section = kernel(2, order).section(compressed=compressed)
    parts = [Part(".text", data=bytes(64), addr=0x1000, flags=6), Part(".SUNW_ctf", data=section, flags=0)]
    path = tmp_path / "kernel"
    path.write_bytes(write_kernel_file(parts, [Entry("start", 0x1000, type=0)], order=order))
    words = [pahole, "-F", "ctf", "-C", "thread,big", str(path)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    rows = [found for found in MEMBER.finditer(shown) if found["name"] not in NOT_READ]
    assert {"td_name", "td_tid", "inner_b", "td_low", "td_high", "td_hook", "td_far", "tail"} <= {
        r["name"] for r in rows
    }
    with open_elf(path) as elf:
        types = open_ctf(elf)
        assert types is not None
        for row in rows:
            struct = types.struct("struct big" if row["name"] in ("head", "tail") else "struct thread")
            offset = 8 * int(row["offset"]) + int(row["bit"] or 0)
            assert bits_of(struct.member(row["name"])) == (offset, int(row["bits"] or 8 * int(row["size"]))), row[
                "name"
            ]
