"""The same memory through every file that the lab took of it: equal page by page, whatever the format."""

from __future__ import annotations

import functools
import random

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, Presence
from tests.lab import SCENARIOS, Dump, find

WHOLE = ("raw", "vmcore", "elf")  # what the others are compared with: the first of these that a scenario has
KINDS = (
    "elf", "elf-paging", "qemu-kdump-zlib", "raw", "raw-joined", "vmcore", "zlib-d0", "lzo-d0", "raw-d0", "zlib-d31",
    "lzo-d31", "snappy-flag-d31", "zstd-flag-d31", "zstd-d31", "raw-d31", "elf-d31", "split-zlib-d1", "split-lzo-d1",
    "flattened-lzo-d31", "flattened-zlib-d31", "flattened-elf-d31", "cut-elf", "cut-qemu-kdump-zlib", "cut-lzo-d31",
    "cut-zlib-d0", "cut-flattened-lzo-d31", "incomplete-lzo-d31",
)  # fmt: skip
PAGE = 4096
FIRMWARE = 0xFFFC0000
LOW_MEMORY = 2 << 30  # of QEMU's machine, where it has more than that; the rest starts at 4 GiB


@pytest.fixture(params=[scenario.name for scenario in SCENARIOS], scope="module")
def dump(request: pytest.FixtureRequest) -> Dump:
    """One scenario of the lab."""
    found = find(request.param)
    if found is None:
        pytest.skip(f"the lab has no dump {request.param}: python -m tests.lab build {request.param}")
    return found


def opened(dump: Dump, kind: str) -> MemoryImage:
    hole = (LOW_MEMORY, 4 << 30) if kind == "raw-joined" else None
    return open_image(list(dump.files[kind].paths), hole=hole)


def pages(image: MemoryImage, presence: Presence) -> int:
    return sum(run.size for run in image.coverage() if run.presence is presence) // PAGE


def test_every_file_has_the_same_memory(dump: Dump) -> None:
    unknown = set(dump.files) - set(KINDS)
    assert not unknown, "the lab makes kinds of files that this test does not know"
    whole = next(kind for kind in WHOLE if kind in dump.files)
    with opened(dump, whole) as reference:
        end = max(run.end for run in reference.coverage())
        for kind in dump.files:
            compared = 0
            with opened(dump, kind) as image:
                for paddr, chunk in image.for_each_chunk(0, end):
                    if FIRMWARE <= paddr < 4 << 30:
                        continue  # flash: ELF has its bytes, pmemsave what a read of the device gives
                    assert reference.read(paddr, len(chunk)) == chunk, f"{kind} differs from {whole} at {paddr:#x}"
                    compared += len(chunk)
            assert compared >= 1 << 20, kind  # the lab fills a small disk for the incomplete ones


def test_every_file_says_what_it_is(dump: Dump) -> None:
    for kind, file in dump.files.items():
        with opened(dump, kind) as image:
            info = image.info
            assert info.format == file.form.removeprefix("flattened-"), kind
            assert (dict(info.details).get("container") == "flattened") is file.form.startswith("flattened-"), kind
            if info.format != "raw":
                assert (info.machine, info.byteorder, info.word_bits) == ("x86_64", "little", 64), kind
                assert info.release == dump.release or image.find_note("VMCOREINFO") is None, kind
            if info.format == "kdump" and file.level is not None:
                assert info.dump_level == file.level, kind
            short = kind.startswith(("cut-", "incomplete-"))
            assert info.complete is not short, kind
            assert (pages(image, Presence.TRUNCATED) > 0) is short, kind
            assert (pages(image, Presence.EXCLUDED) > 0) is ("d31" in kind), kind


def test_reads_agree_with_the_coverage(dump: Dump) -> None:
    chance = random.Random(7)
    for kind in dump.files:
        with opened(dump, kind) as image:
            runs = list(image.coverage())
            for run in chance.choices(runs, k=60):
                paddr = run.start + chance.randrange(run.size)
                size = min(run.end - paddr, chance.choice((1, 100, 9000)))
                partial = image.read_partial(paddr, size)
                if run.presence is Presence.PRESENT:
                    assert partial.missing == ()
                    assert image.read(paddr, size) == partial.data
                else:
                    assert [part.presence for part in partial.missing] == [run.presence], kind
                    with pytest.raises(NotInImageError) as error:
                        image.read(paddr, size)
                    assert error.value.reason == run.presence.value


@functools.cache
def _part_paths(name: str) -> tuple[Dump, str] | None:
    dump = find(name)
    split = [kind for kind in dump.files if kind.startswith("split-")] if dump is not None else []
    return (dump, split[0]) if dump is not None and split else None


@pytest.mark.parametrize("name", ["deb12-4level", "deb12-kdump"])
def test_part_of_a_split_set(name: str) -> None:
    found = _part_paths(name)
    if found is None:
        pytest.skip(f"the lab has no dump {name}: python -m tests.lab build {name}")
    dump, kind = found
    paths = dump.files[kind].paths
    with open_image(list(reversed(paths))) as image, open_image(paths[1]) as part:
        assert image.info.complete
        assert not part.info.complete
        held = pages(part, Presence.PRESENT)
        assert 0 < held < pages(image, Presence.PRESENT)
        assert held + pages(part, Presence.TRUNCATED) == pages(image, Presence.PRESENT)
        for paddr, chunk in part.for_each_chunk():
            assert image.read(paddr, len(chunk)) == chunk
