"""What kvm_dbg says by a monitor, held against the guest's own /proc."""

from __future__ import annotations

import kvm_dbg
from tests.live.guest.compare import RETRIES, Answers, Comparison
from tests.live.machine import LiveGuest

AGENT = 1  # the guest's process that carries out what it is told
PASSING = frozenset(
    ("agent.sh", "sh", "rm", "base64", "busybox", "cat")
)  # that it starts for that, and after an answer


def hold(guest: LiveGuest, address: str) -> Comparison:
    """Hold what kvm_dbg says by a monitor against the guest's /proc before and after."""
    comparison = Comparison()
    before = guest.read_truth()
    with kvm_dbg.open((), str(guest.kernel.vmlinux), qmp=address) as kvm:
        ours = Answers(kvm)
    comparison.hold(ours, before, guest.read_truth(), AGENT, PASSING)
    for _ in range(RETRIES):  # they change every five seconds
        first = read_load(guest)
        with kvm_dbg.open((), str(guest.kernel.vmlinux), qmp=address) as kvm:
            load = kvm.load_average()
        mine = [f"{one:.2f}" for one in (load.one, load.five, load.fifteen)]
        last = read_load(guest)
        if first == last:
            break
    comparison.check("loadavg", mine in (first, last), True, f"{mine} is neither {first} nor {last}")
    return comparison


def read_load(guest: LiveGuest) -> list[str]:
    """Return the load averages of the guest's /proc."""
    return guest.check("cat /proc/loadavg").split()[:3]


def check(comparison: Comparison) -> None:
    """Fail if something was wrong, or little was looked at."""
    assert not comparison.wrong, "\n".join(comparison.wrong)
    checked = comparison.checked
    assert checked["processes"] > 50
    assert checked["identity"] > 30
    assert min(checked["args"], checked["env"]) >= 7
    assert checked["threads"] > 30
    assert checked["mods"] >= 6
    assert checked["log"] > 100
