"""Counters of memory and events, those that `vmstat -s` prints, in its order and words.

Sources: sys/uvm/uvm_extern.h (struct uvmexp), sys/sys/cpu_data.h (struct cpu_data: what each CPU counts),
sys/sys/namei.h (struct nchstats: eight counters and more behind them, in the same order since 4.4BSD, as wide as the
variable's size says), usr.bin/vmstat/vmstat.c, dosum(). NetBSD 10 counts per CPU what was in
uvmexp, as elements of cpu_counts[] by enum cpu_count (sys/sys/cpu_data.h 1.45 and later, December 2019).

Of faults, traps, context switches and software interrupts, vmstat has those of the last CPU only when it reads a dump;
here they are the sums, as on the running system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number
from kvm_dbg.kernel.netbsd.cpu import read_cpus
from kvm_dbg.kernel.usage import Counter

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel


class Row(NamedTuple):
    """One line of `vmstat -s`.

    name: the member of struct uvmexp. per_cpu: where CPUs have counted it themselves, the newest place first: the end
    of an enumerator's name, CPU_COUNT_..., or a member of struct cpu_data (in small letters).
    """

    name: str
    meaning: str
    per_cpu: tuple[str, ...] = ()


ROWS = (
    Row("pagesize", "bytes per page"),
    Row("ncolors", "page colors"),
    Row("npages", "pages managed"),
    Row("free", "pages free", ("FREEPAGES",)),
    Row("paging", "pages paging"),
    Row("wired", "pages wired"),
    Row("zeropages", "zero pages"),
    Row("reserve_pagedaemon", "reserve pagedaemon pages"),
    Row("reserve_kernel", "reserve kernel pages"),
    Row("anonpages", "anonymous pages", ("ANONUNKNOWN ANONCLEAN ANONDIRTY",)),
    Row("filepages", "cached file pages", ("FILEUNKNOWN FILECLEAN FILEDIRTY -EXECPAGES",)),
    Row("execpages", "cached executable pages", ("EXECPAGES",)),
    Row("freemin", "minimum free pages"),
    Row("freetarg", "target free pages"),
    Row("wiredmax", "maximum wired pages"),
    Row("nswapdev", "swap devices"),
    Row("swpages", "swap pages"),
    Row("swpginuse", "swap pages in use"),
    Row("nswget", "swap allocations"),
    Row("faults", "total faults taken", ("NFAULT", "cpu_nfault")),
    Row("traps", "traps", ("NTRAP", "cpu_ntrap")),
    Row("intrs", "device interrupts", ("NINTR", "cpu_nintr")),
    Row("swtch", "CPU context switches", ("NSWTCH", "cpu_nswtch")),
    Row("softs", "software interrupts", ("NSOFT", "cpu_nsoft")),
    Row("syscalls", "system calls", ("NSYSCALL", "cpu_nsyscall")),
    Row("pageins", "pagein requests", ("PAGEINS",)),
    Row("pdpageouts", "pageout requests"),
    Row("pgswapin", "pages swapped in"),
    Row("pgswapout", "pages swapped out"),
    Row("forks", "forks total", ("FORKS",)),
    Row("forks_ppwait", "forks blocked parent", ("FORKS_PPWAIT",)),
    Row("forks_sharevm", "forks shared address space with parent", ("FORKS_SHAREVM",)),
    Row("pga_zerohit", "pagealloc zero wanted and avail"),
    Row("pga_zeromiss", "pagealloc zero wanted and not avail"),
    Row("zeroaborts", "aborts of idle page zeroing"),
    Row("colorhit", "pagealloc desired color avail", ("COLORHIT",)),
    Row("colormiss", "pagealloc desired color not avail", ("COLORMISS",)),
    Row("cpuhit", "pagealloc local cpu avail", ("CPUHIT",)),
    Row("cpumiss", "pagealloc local cpu not avail", ("CPUMISS",)),
    Row("fltnoram", "faults with no memory", ("FLTNORAM",)),
    Row("fltnoanon", "faults with no anons", ("FLTNOANON",)),
    Row("fltpgwait", "faults had to wait on pages", ("FLTPGWAIT",)),
    Row("fltpgrele", "faults found released page", ("FLTPGRELE",)),
    Row("fltrelck", "faults relock", ("FLTRELCK",)),
    Row("fltrelckok", "faults relock ok", ("FLTRELCKOK",)),
    Row("fltanget", "anon page faults", ("FLTANGET",)),
    Row("fltanretry", "anon retry faults", ("FLTANRETRY",)),
    Row("fltamcopy", "amap copy faults", ("FLTAMCOPY",)),
    Row("fltnamap", "neighbour anon page faults", ("FLTNAMAP",)),
    Row("fltnomap", "neighbour object page faults", ("FLTNOMAP",)),
    Row("fltlget", "locked pager get faults", ("FLTLGET",)),
    Row("fltget", "unlocked pager get faults", ("FLTGET",)),
    Row("flt_anon", "anon faults", ("FLT_ANON",)),
    Row("flt_acow", "anon copy on write faults", ("FLT_ACOW",)),
    Row("flt_obj", "object faults", ("FLT_OBJ",)),
    Row("flt_prcopy", "promote copy faults", ("FLT_PRCOPY",)),
    Row("flt_przero", "promote zero fill faults", ("FLT_PRZERO",)),
    Row("pdwoke", "times daemon wokeup"),
    Row("pdrevs", "revolutions of the clock hand"),
    Row("pdfreed", "pages freed by daemon"),
    Row("pdscans", "pages scanned by daemon"),
    Row("pdanscan", "anonymous pages scanned by daemon"),
    Row("pdobscan", "object pages scanned by daemon"),
    Row("pdreact", "pages reactivated"),
    Row("pdbusy", "pages found busy by daemon"),
    Row("pdpending", "total pending pageouts"),
    Row("pddeact", "pages deactivated"),
)
LOOKUPS = ("goodhits", "neghits", "badhits", "falsehits", "miss", "long", "pass2", "2passes")  # struct nchstats
LOOKUP_WORDS = (*("good hits", "negative hits", "bad hits", "false hits", "miss", "too long", "pass2 hits", "2passes"),)
COUNTED = LOOKUPS[:6]  # what makes up all lookups
SHARES = {
    "goodhits": "% positive cache hits", "neghits": "% negative cache hits", "pass2": "% per-process cache hits",
    "badhits": "% deletions", "falsehits": "% falsehits", "long": "% toolong",
}  # fmt: skip
NEW, OLD = "ci_data.cpu_counts", "ci_data"
PREFIX = "CPU_COUNT_"


def for_each_counter(kernel: Kernel) -> Iterator[Counter]:
    """Yield the counters; one that cannot be told says why.

    Raises:
        SymbolNotFound, TypeNotFound: there is no uvmexp, or nobody knows what it looks like.
    """
    reader = _Reader(kernel)
    for row in ROWS:
        yield _counter(row.name, row.meaning, partial(reader.value, row))
    yield from _lookups(kernel)


def _counter(name: str, meaning: str, read: Callable[[], int]) -> Counter:
    try:
        return Counter(name, read(), meaning)
    except KvmDbgError as error:
        return Counter(name, None, meaning, str(error))


class _Reader:
    """Reads uvmexp, and what CPUs count, once each."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        members: dict[str, Names] = {row.name: (row.name, None) for row in ROWS}
        layout = Layout(kernel.types, "struct uvmexp", members, kernel.arch.byteorder)
        self._uvmexp = layout.read(kernel, kernel.symbols.address("uvmexp"))
        self._cpus: dict[str, Record] = {}

    def value(self, row: Row) -> int:
        """Return a counter. Raises KvmDbgError."""
        if row.per_cpu and self._kernel.types.has_member("struct cpu_info", NEW):
            return sum(
                -self._count(word[1:]) if word[0] == "-" else self._count(word) for word in row.per_cpu[0].split()
            )
        if len(row.per_cpu) > 1:
            if not self._kernel.types.has_member("struct cpu_info", f"{OLD}.{row.per_cpu[1]}"):
                raise TypeNotFound("struct cpu_data", "no type tells where CPUs keep their counters (struct cpu_data)")
            return self._sum(f"{OLD}.{row.per_cpu[1]}", 0)
        return self._uvmexp[row.name]

    def _count(self, word: str) -> int:
        number = self._kernel.types.find_enumerator(PREFIX + word)
        if number is None:
            raise MemberNotFound("enum cpu_count", PREFIX + word)
        return self._sum(NEW, number)

    def _sum(self, path: str, number: int) -> int:
        kernel = self._kernel
        offset = kernel.types.offset_of("struct cpu_info", path) + 8 * number
        return sum(read_number(kernel, place + offset, 8, signed=True) for place in read_cpus(kernel))


def _lookups(kernel: Kernel) -> Iterator[Counter]:
    """Yield the name cache's counters, and their shares in percent, rounded down."""
    try:
        values = _read_lookups(kernel)
    except KvmDbgError as error:
        values, why = None, str(error)
    else:
        why = ""
    total = None if values is None else sum(values[name] for name in COUNTED)
    yield Counter("ncs_total", total, "total name lookups", why)
    for name, words in zip(LOOKUPS, LOOKUP_WORDS, strict=True):
        yield Counter(f"ncs_{name}", None if values is None else values[name], words, why)
    for name, words in SHARES.items():
        share = None if values is None or total is None else 100 * values[name] // total if total else 0
        yield Counter(f"ncs_{name}_percent", share, words, why)


def _read_lookups(kernel: Kernel) -> dict[str, int]:
    symbol = kernel.symbols.find("nchstats")
    if symbol is None:
        raise SymbolNotFound("nchstats")
    width = kernel.arch.pointer_size  # long; uint64_t on every machine since 2014
    if symbol.size and symbol.size < len(LOOKUPS) * width:
        raise CorruptError(symbol.address, f"nchstats has {symbol.size} bytes")
    if symbol.size >= len(LOOKUPS) * 8:
        width = 8
    return {name: read_number(kernel, symbol.address + at * width, width) for at, name in enumerate(LOOKUPS)}
