"""What kvm_dbg says by a monitor, held against the guest's own /proc."""

from __future__ import annotations

import kvm_dbg
from tests.live.guest.compare import Answers, Comparison
from tests.live.machine import LiveGuest


def hold(guest: LiveGuest, address: str) -> Comparison:
    """Hold what kvm_dbg says by a monitor against the guest's /proc before and after."""
    comparison = Comparison()
    before = guest.read_truth()
    with kvm_dbg.open((), str(guest.kernel.vmlinux), qmp=address) as kvm:
        ours = Answers(kvm)
    after = guest.read_truth()
    comparison.hold(ours, before, after)
    assert ours.load in (before["load"], after["load"])
    return comparison


def check(comparison: Comparison) -> None:
    """Fail if something was wrong, or little was looked at."""
    assert comparison.wrong == []
    checked = comparison.checked
    assert checked["processes"] > 50
    assert checked["identity"] > 30
    assert min(checked["args"], checked["env"]) >= 7
    assert checked["threads"] > 30
    assert checked["mods"] >= 6
    assert checked["log"] > 100
