from __future__ import annotations

import random

import pytest

from kvm_dbg.symbols.vmcoreinfo import MAX_SIZE, VmcoreInfo

# of a real kernel, shortened
TEXT = b"""OSRELEASE=6.1.0-56-cloud-amd64
BUILD-ID=3b43fad5034874490492495d552c0af6a5fab235
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffffa3016b20
SYMBOL(_stext)=ffffffffa1400000
OFFSET(uts_namespace.name)=0
SIZE(page)=64
OFFSET(list_head.next)=0
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=4
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(phys_base)=547356672
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(VMALLOC_START)=0xffffb4e780000000
KERNELOFFSET=20400000
CRASHTIME=1795445084
"""


def test_all_kinds_of_lines() -> None:
    info = VmcoreInfo(TEXT + bytes(100))
    assert info.release == "6.1.0-56-cloud-amd64"
    assert info.build_id == "3b43fad5034874490492495d552c0af6a5fab235"
    assert info.page_size == 4096
    assert info.symbol("_stext") == 0xFFFFFFFFA1400000
    assert info.size("page") == 64
    assert info.offset("uts_namespace.name") == 0
    assert info.length("zone.free_area") == 11
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -129
    assert info.number("VMALLOC_START") == 0xFFFFB4E780000000
    assert info.kernel_offset == 0x20400000
    assert info.crash_time == 1795445084


def test_what_is_not_there_is_none() -> None:
    info = VmcoreInfo(b"")
    assert info.release is None
    assert info.build_id is None
    assert info.page_size is None
    assert info.kernel_offset is None
    assert info.crash_time is None
    answers = [ask("x") for ask in (info.symbol, info.size, info.offset, info.length, info.number)]
    assert answers == [None] * 5


@pytest.mark.parametrize("text", ["", "0" * 40, "xyz", "3b43fad5034874490492495d552c0af6a5fab23", "\udcff" * 40])
def test_build_ids_of_the_wrong_shape_are_none(text: str) -> None:
    assert VmcoreInfo(b"BUILD-ID=" + text.encode("utf-8", "surrogateescape") + b"\n").build_id is None


@pytest.mark.parametrize("value", [b"", b"zz", b"9" * 100, b"0x", b"--1", b"\xff\xfe"])
def test_numbers_that_are_none(value: bytes) -> None:
    info = VmcoreInfo(b"NUMBER(a)=" + value + b"\nSYMBOL(b)=" + value + b"\nPAGESIZE=4096\n")
    assert info.number("a") is None
    assert info.symbol("b") is None
    assert info.page_size == 4096


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
