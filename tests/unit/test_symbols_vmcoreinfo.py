"""VMCOREINFO's lines, right and wrong ones."""

from __future__ import annotations

import random

import pytest

from kvm_dbg.symbols.vmcoreinfo import MAX_SIZE, VmcoreInfo

TEXT = b"""OSRELEASE=6.1.0
BUILD-ID=0123456789abcdef0123456789ABCDEF01234567
PAGESIZE=4096
SYMBOL(_stext)=ffffffffa1400000
NUMBER(phys_base)=-268435456
NUMBER(VMALLOC_START)=0xffffa20000000000
NUMBER(pgtable_l5_enabled)=0
OFFSET(list_head.prev)=8
SIZE(page)=64
LENGTH(zone.free_area)=11
KERNELOFFSET=20400000
CRASHTIME=1700000000
"""


def test_values() -> None:
    info = VmcoreInfo(TEXT + bytes(100) + b"OSRELEASE=other\n")
    assert info.release == "6.1.0"
    assert info.build_id == "0123456789abcdef0123456789abcdef01234567"
    assert info.page_size == 4096
    assert info.symbol("_stext") == 0xFFFFFFFFA1400000
    assert info.number("phys_base") == -0x10000000
    assert info.number("VMALLOC_START") == 0xFFFFA20000000000
    assert info.number("pgtable_l5_enabled") == 0
    assert info.offset("list_head.prev") == 8
    assert info.size("page") == 64
    assert info.length("zone.free_area") == 11
    assert info.kernel_offset == 0x20400000
    assert info.crash_time == 1700000000


def test_what_is_not_there_is_none() -> None:
    info = VmcoreInfo(b"")
    assert info.release is None
    assert info.build_id is None
    assert info.page_size is None
    assert info.crash_time is None
    assert info.kernel_offset is None
    assert info.symbol("a") is info.number("a") is info.size("a") is info.offset("a") is info.length("a") is None


@pytest.mark.parametrize(
    "line",
    [
        b"NUMBER(x)=",
        b"NUMBER(x)=zz",
        b"NUMBER(x)=0xzz",
        b"NUMBER(x)=" + b"9" * 5000,
        b"NUMBER(x)",
        b"=5",
        b"\xff\xfe=\x80",
        b"NUMBER(x)=1e3",
    ],
)
def test_garbage_says_nothing(line: bytes) -> None:
    info = VmcoreInfo(b"OSRELEASE=6.1.0\n" + line + b"\n")
    assert info.release == "6.1.0"
    assert info.number("x") is None


@pytest.mark.parametrize("value", [b"", b"123", b"g" * 40, b"0" * 40, b"0" * 41, b"\xff" * 40])
def test_garbage_build_ids(value: bytes) -> None:
    assert VmcoreInfo(b"BUILD-ID=" + value + b"\n").build_id is None


@pytest.mark.parametrize("value", [b"-5", b"1" + b"0" * 16, b"ffffffffffffffffff", b"x"])
def test_impossible_addresses(value: bytes) -> None:
    assert VmcoreInfo(b"SYMBOL(a)=" + value + b"\n").symbol("a") is None


def test_a_block_cut_off_in_a_line() -> None:
    info = VmcoreInfo(TEXT[:-40])
    assert info.release == "6.1.0"
    assert info.crash_time is None


def test_every_truncation_keeps_the_whole_lines() -> None:
    lines = TEXT.split(b"\n")
    for size in range(len(TEXT)):
        info = VmcoreInfo(TEXT[:size])
        whole = TEXT[:size].count(b"\n")
        for line in lines[:whole]:
            key, _, value = line.partition(b"=")
            assert info.values[key.decode()] == value.decode()


def test_what_lies_behind_the_block_is_not_read() -> None:
    assert VmcoreInfo(TEXT + b"\0PAGESIZE=1\n").page_size == 4096
    assert VmcoreInfo(b"x" * MAX_SIZE + b"\nPAGESIZE=4096\n").page_size is None


def test_garbage_raises_nothing() -> None:
    generator = random.Random(4)
    for _ in range(500):
        data = bytearray(TEXT)
        for _ in range(8):
            data[generator.randrange(len(data))] = generator.randrange(256)
        info = VmcoreInfo(bytes(data))
        for found in (info.page_size, info.kernel_offset, info.symbol("_stext"), info.number("phys_base")):
            assert found is None or isinstance(found, int)
