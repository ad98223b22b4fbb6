"""CPU time is scaled as kernel/sched/cputime.c scales it."""

from __future__ import annotations

import pytest

from kvm_dbg.kernel.linux.cputime import CpuTime, adjust


@pytest.mark.parametrize(
    ("time", "previous", "expected"),
    [
        (CpuTime(3, 1, 400), (0, 0), (300, 100)),  # in proportion
        (CpuTime(0, 0, 400), (0, 0), (400, 0)),  # no tick was seen: all of it is the user's
        (CpuTime(5, 0, 400), (0, 0), (400, 0)),
        (CpuTime(0, 5, 400), (0, 0), (0, 400)),
        (CpuTime(3, 1, 400), (300, 120), (300, 120)),  # what was shown before never falls
        (CpuTime(3, 1, 400), (310, 20), (310, 90)),
        (CpuTime(3, 1, 400), (100, 150), (250, 150)),
        (CpuTime(1, 2, 1000), (0, 0), (334, 666)),  # rounded down
    ],
)
def test_adjust(time: CpuTime, previous: tuple[int, int], expected: tuple[int, int]) -> None:
    assert adjust(time, *previous) == expected
