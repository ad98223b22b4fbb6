"""What an image of a BSD says of itself twice, the same on each of them.

Sources: sys/msgbuf.h (the log's magic number), sys/kern/kern_synch.c (averunnable), sys/conf/newvers.sh (`version` and
`osrelease` are written by one script).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.kernel.bsd.loadavg import read_load_average
from kvm_dbg.kernel.check import Finding, Subject

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_LOAD = 10_000


def _check_log(kernel: Kernel) -> Iterator[Finding]:
    from kvm_dbg.kernel import system_of

    count = sum(1 for _ in system_of(kernel).for_each_log_record(kernel))
    yield ("ok", f"{count} lines behind the buffer's magic") if count else ("partial", "the log is empty")


def _check_load(kernel: Kernel) -> Iterator[Finding]:
    load = read_load_average(kernel)
    values = (load.one, load.five, load.fifteen)
    grade = "ok" if max(values) < MAX_LOAD else "suspect"
    yield grade, "load averages " + ", ".join(f"{value:.2f}" for value in values)


def _check_release(kernel: Kernel) -> Iterator[Finding]:
    release = str(getattr(kernel, "release", ""))
    found = kernel.read(kernel.symbols.address("osrelease"), len(release) + 1)
    if found == release.encode() + b"\0":
        yield "ok", f"version and osrelease say {release}"
    else:
        yield "suspect", f"version says {release}, osrelease {found!r}"


COMMON: tuple[Subject, ...] = (
    Subject("the log's header", ("log",), _check_log),
    Subject("the load averages' range", ("loadavg",), _check_load),
    Subject("the release's two places", ("sys",), _check_release),
)
