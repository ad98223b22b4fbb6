"""What the lab can make: which kernels, on which machines, dumped in which way.

KERNELS, CATCHES and SCENARIOS are the lists that everything else reads; a new scenario is one more entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class LabError(Exception):
    """Something that the lab needs is missing or went wrong; the text says what to do."""


class GuestDiedError(LabError):
    """The guest's kernel panicked where it should not have."""


class Take(Enum):
    """How a dump is taken."""

    PAUSED = "paused"
    """QEMU stops a healthy guest and writes its memory."""
    PANIC = "panic"
    """The guest panics and hangs; QEMU writes its memory."""
    KDUMP = "kdump"
    """The guest panics into its crash kernel, where makedumpfile reads /proc/vmcore."""


class Trigger(Enum):
    """How a guest is made to panic."""

    PROCESS = "process"
    """Its process `crasher` writes c to /proc/sysrq-trigger."""
    INTERRUPT = "interrupt"
    """A break and a c on the console, which the serial port's interrupt handler takes for Alt-SysRq-c, on CPU 0."""
    NMI = "nmi"
    """A non-maskable interrupt that nobody knows; only CPU 0 takes it.

    Linux before 5.15 keeps what it prints in an NMI in a buffer, and its last words, for which we wait, stay there.
    """


@dataclass(frozen=True)
class Catch:
    """A moment at which QEMU stops the guest: CPU 0 enters a function of the kernel, in a known state.

    The animals `busy` and `toiler` share that CPU.
    """

    name: str
    function: str
    mask: tuple[str, int, int] | None = None
    """A register, and what it must be under a mask: tells apart why the function is called."""
    nmi_at: str = ""
    """The catch at which the CPU gets an NMI first."""


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
    trigger: Trigger = Trigger.PROCESS
    at: str = ""
    """The catch at which the trigger is pulled; empty for a guest that has nothing to do but the animal `busy`."""
    catches: tuple[str, ...] = ()
    """Catches at which the guest is dumped once more, after everything else."""
    words: tuple[str, ...] = field(default=())
    """More words for the kernel's command line."""


KERNELS: tuple[Kernel, ...] = (
    Kernel("deb11", ("bullseye",)),
    Kernel("deb12", ("bookworm", "bookworm-security")),
    Kernel("deb13", ("trixie", "trixie-security")),
    Kernel("bpo13", ("trixie", "trixie-security", "trixie-backports"), target="trixie-backports", too_new=True),
)

CATCHES: tuple[Catch, ...] = (
    # int update_process_times(int user_tick): the timer's interrupt, over the kernel and over user space
    Catch("tick", "update_process_times", ("rdi", 1, 0)),
    Catch("user-tick", "update_process_times", ("rdi", 1, 1)),
    # the toiler's datagram arrives
    Catch("softirq", "net_rx_action"),
    # vm_fault_t handle_mm_fault(vma, address, unsigned int flags, regs): FAULT_FLAG_USER is 1 << 6
    Catch("fault", "handle_mm_fault", ("rdx", 0x40, 0x40)),
    # static void unknown_nmi_error(reason, regs), over the timer's interrupt over the kernel
    Catch("nmi", "unknown_nmi_error", nmi_at="tick"),
)
_SYSRQ, _NMI = ("sysrq_always_enabled", "irqaffinity=0"), ("unknown_nmi_panic",)
_ALL = ("tick", "softirq", "fault", "nmi")

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("deb12-4level", "deb12", Take.PAUSED, memory=1024, derived=True),
    Scenario("deb13-4level", "deb13", Take.PAUSED),
    Scenario("deb12-kdump", "deb12", Take.KDUMP, memory=1024),
    Scenario("bpo13-4level", "bpo13", Take.PAUSED, catches=_ALL),
    Scenario("deb12-panic", "deb12", Take.PANIC, cpus=4),
    Scenario("deb11-4level", "deb11", Take.PAUSED, catches=_ALL),
    Scenario("deb12-5level", "deb12", Take.PAUSED, levels=5, memory=5120, vmcoreinfo=False, noise=3000),
    Scenario("deb13-kdump", "deb13", Take.KDUMP, levels=5, memory=768),
    Scenario("bpo13-5level", "bpo13", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000),
    Scenario("deb11-kdump", "deb11", Take.KDUMP, memory=768),
    Scenario("deb12-nokaslr", "deb12", Take.PAUSED, vmcoreinfo=False, kaslr=False, cpus=1),
    Scenario("deb13-5level", "deb13", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000, catches=_ALL),
    Scenario("bpo13-panic", "bpo13", Take.PANIC),
    Scenario("deb11-5level", "deb11", Take.PAUSED, levels=5, vmcoreinfo=False, noise=3000),
    Scenario("deb13-panic", "deb13", Take.PANIC, levels=5, cpus=3),
    Scenario("bpo13-kdump", "bpo13", Take.KDUMP, memory=768),
    Scenario("deb11-panic", "deb11", Take.PANIC),
    Scenario("deb12-irq", "deb12", Take.PANIC, trigger=Trigger.INTERRUPT, at="fault", words=_SYSRQ),
    Scenario("bpo13-irq", "bpo13", Take.PANIC, levels=5, trigger=Trigger.INTERRUPT, at="softirq", words=_SYSRQ),
    Scenario("deb12-nmi", "deb12", Take.PANIC, trigger=Trigger.NMI, words=_NMI),
    Scenario("deb13-nmi", "deb13", Take.PANIC, levels=5, trigger=Trigger.NMI, at="tick", words=_NMI),
    Scenario("bpo13-nmi", "bpo13", Take.PANIC, trigger=Trigger.NMI, at="softirq", words=_NMI),
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


def find_catch(name: str) -> Catch:
    """Return the catch called `name`.

    Raises LabError, naming those that exist.
    """
    for catch in CATCHES:
        if catch.name == name:
            return catch
    raise LabError(f"no catch {name!r}; there are: {', '.join(entry.name for entry in CATCHES)}")


def find_kernel(name: str) -> Kernel:
    """Return the kernel called `name`.

    Raises LabError, naming those that exist.
    """
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise LabError(f"no kernel {name!r}; there are: {', '.join(entry.name for entry in KERNELS)}")
