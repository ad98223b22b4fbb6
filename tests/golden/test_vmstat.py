"""Counters of memory and events against the guest's own /proc/vmstat.

The guest went on after it had written that down: it wrote its account of itself to a disk, and panicked or was stopped.
What that moves is in MOVED, and counts up if it only can; everything else is equal.
"""

from __future__ import annotations

import re

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.linux.vmstat import for_each_zone
from tests.golden.subject import Subject

PRINTED_ONLY = {"nr_unstable"}
"""mm/vmstat.c writes it without any counter, as a last line (vmstat_show())."""
WORKED_OUT = {"nr_dirty_threshold", "nr_dirty_background_threshold"}
COUNTS_UP = re.compile(
    r"pgpg(in|out)|pg(alloc|fault|free|reuse|majfault|activate)\w*|numa_(hit|local)|nr_(dirtied|written)"
)
MOVED = re.compile(
    rf"{COUNTS_UP.pattern}|nr_(zone_)?(in)?active_(anon|file)|nr_zone_write_pending|nr_dirty|nr_writeback|nr_anon_pages"
    r"|nr_(slab_(un)?reclaimable|file_pages|mapped|kernel_stack|page_table_pages|free_pages\w*|shmem|mlock)"
    r"|workingset_nodes|nr_vmscan_write|nr_foll_pin\w*|thp_\w+|unevictable_\w+"
)


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


def test_counters_are_those_of_proc_vmstat(subject: Subject) -> None:
    expected = {name: int(value) for name, value in map(str.split, subject.truth.text("proc/vmstat").splitlines())}
    counters = list(system_of(subject.kernel).for_each_counter(subject.kernel))
    assert [counter.name for counter in counters] == [name for name in expected if name not in PRINTED_ONLY]
    assert {counter.name for counter in counters if counter.value is None} == WORKED_OUT
    different = {}
    equal = up = 0
    for counter in counters:
        if counter.value is None:
            assert counter.why == "/proc/vmstat works it out when it is read"
            continue
        before = expected[counter.name]
        equal += counter.value == before
        if not MOVED.fullmatch(counter.name) and counter.value != before:
            different[counter.name] = (counter.value, before)
        if COUNTS_UP.fullmatch(counter.name):
            assert counter.value >= before, counter
            up += counter.value > before
    assert different == {}
    assert equal > 110
    assert up >= 4


def test_free_pages_are_those_of_the_zones(subject: Subject) -> None:
    """Two structures of the same kernel: what zones count is the sum of all zones' own counters."""
    kernel, types = subject.kernel, subject.kernel.types
    member = types.offset_of("struct zone", "vm_stat")
    own = sum(int.from_bytes(kernel.read(zone + member, 8), "little") for zone in for_each_zone(kernel))
    free = next(counter for counter in system_of(kernel).for_each_counter(kernel) if counter.name == "nr_free_pages")
    assert free.value == own
