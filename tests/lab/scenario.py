"""What the lab can make: which kernels, on which machines, dumped in which way.

KERNELS and SCENARIOS are the two lists that everything else reads; a new scenario is one more entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class LabError(Exception):
    """Something that the lab needs is missing or went wrong; the text says what to do."""


class Take(Enum):
    """How a dump is taken."""

    PAUSED = "paused"
    """QEMU stops a healthy guest and writes its memory."""
    PANIC = "panic"
    """The guest panics and hangs; QEMU writes its memory."""
    KDUMP = "kdump"
    """The guest panics into its crash kernel, where makedumpfile reads /proc/vmcore."""


@dataclass(frozen=True)
class Kernel:
    """A kernel as Debian ships it: a meta package and its -dbg, from the given suites."""

    name: str
    suites: tuple[str, ...]
    target: str = ""
    """The suite that is preferred to the others, as in `apt-get -t`: backports need it."""
    too_new: bool = False
    """Whether its suite's makedumpfile does not know it yet, and with a dump level leaves out pages that it must keep.

    Seen with makedumpfile 1.7.6 (knows 6.12) and Linux 7.3: slab pages are missing.
    """
    package: str = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Scenario:
    """One guest, and the moment at which it is dumped."""

    name: str
    kernel: str
    take: Take
    levels: int = 4
    memory: int = 512
    """MiB of RAM."""
    cpus: int = 2
    vmcoreinfo: bool = True
    """Whether QEMU has its vmcoreinfo device, through which the guest's notes get into QEMU's dump."""
    kaslr: bool = True
    noise: int = 0
    """Records added to the kernel's log: 3000 of them wrap its ring more than once."""
    derived: bool = False
    """Whether makedumpfile on the host makes its own formats out of QEMU's ELF file."""
    words: tuple[str, ...] = field(default=())
    """More words for the kernel's command line."""


KERNELS: tuple[Kernel, ...] = (
    Kernel("deb11", ("bullseye",)),
    Kernel("deb12", ("bookworm", "bookworm-security")),
    Kernel("deb13", ("trixie", "trixie-security")),
    Kernel("bpo13", ("trixie", "trixie-security", "trixie-backports"), target="trixie-backports", too_new=True),
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("deb12-4level", "deb12", Take.PAUSED, memory=1024, derived=True),
    Scenario("deb13-4level", "deb13", Take.PAUSED),
    Scenario("deb12-kdump", "deb12", Take.KDUMP, memory=1024),
    Scenario("bpo13-4level", "bpo13", Take.PAUSED),
    Scenario("deb12-panic", "deb12", Take.PANIC, cpus=4),
    Scenario("deb11-4level", "deb11", Take.PAUSED),
    Scenario("deb12-5level", "deb12", Take.PAUSED, levels=5, memory=5120, vmcoreinfo=False, noise=3000),
    Scenario("deb13-kdump", "deb13", Take.KDUMP, levels=5, memory=768),
    Scenario("bpo13-5level", "bpo13", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000),
    Scenario("deb11-kdump", "deb11", Take.KDUMP, memory=768),
    Scenario("deb12-nokaslr", "deb12", Take.PAUSED, vmcoreinfo=False, kaslr=False, cpus=1),
    Scenario("deb13-5level", "deb13", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000),
    Scenario("bpo13-panic", "bpo13", Take.PANIC),
    Scenario("deb11-5level", "deb11", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000),
    Scenario("deb13-panic", "deb13", Take.PANIC, levels=5, cpus=3),
    Scenario("bpo13-kdump", "bpo13", Take.KDUMP, memory=768),
    Scenario("deb11-panic", "deb11", Take.PANIC),
)
"""In the order in which they are built: neighbours use different kernels, so that fetching these overlaps."""


def find_scenario(name: str) -> Scenario:
    """Return the scenario called `name`.

    Raises LabError, naming those that exist.
    """
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise LabError(f"no scenario {name!r}; there are: {', '.join(entry.name for entry in SCENARIOS)}")


def find_kernel(name: str) -> Kernel:
    """Return the kernel called `name`.

    Raises LabError, naming those that exist.
    """
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise LabError(f"no kernel {name!r}; there are: {', '.join(entry.name for entry in KERNELS)}")
