"""Find Linux kernels in an image.

In this order: the VMCOREINFO note; the page tables that a hypervisor's notes say the CPUs used; the VMCOREINFO text in
memory (a page that begins with "OSRELEASE=": every running kernel keeps one); the text of `linux_banner`. What is
found in memory may be stale (an earlier boot, a kernel that was replaced by kexec), so each must prove itself, and
those that do come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kvm_dbg.arch.base import Paging
from kvm_dbg.errors import KernelNotFoundError, ReadError, UnsupportedError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.linux import boot_x86_64
from kvm_dbg.kernel.linux.boot import Boot, verify
from kvm_dbg.kernel.linux.hole import for_each_hole, raw_image_of
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.vmcoreinfo import MAX_SIZE, START, VmcoreInfo

Progress = Callable[[str], None]

PAGE = 4096  # bytes, the smallest page: VMCOREINFO's text starts at a multiple
MAX_CANDIDATES = 64  # more pages than that which begin with OSRELEASE= are no kernels
PROGRESS_STEP = 1 << 28  # bytes scanned between two reports
BANNER = b"Linux version "  # init/version.c: linux_banner
BANNER_SIZE = 512  # bytes that a banner may have
# Since 6.1 (init/Makefile, utsversion-tmp.h) a second, dead banner without a build number stays in the image.
BANNER_PATTERN = rb"Linux version (\S{1,64}) \([^\0\n]{1,300}\) (#[^ \0\n][^\0\n]{0,100})\n\0"
BLOCK = 1 << 21  # bytes of the kernel's map that are looked at together


def find_boots(image: MemoryImage, progress: Progress | None = None, *, all_of_memory: bool = True) -> list[Boot]:
    """Return the Linux kernels in the image, those that proved themselves first.

    all_of_memory: False to be content with the kernel that the CPUs ran, where the image's notes lead to it.

    Raises:
        KernelNotFoundError: there is none.
        UnsupportedError: a Linux kernel of an architecture that is not built.
        FormatError: the image is corrupt where it was read.
    """
    note = image.find_note("VMCOREINFO")
    if note is not None:
        info = VmcoreInfo(note.desc)
        if info.release is not None:
            return [boot_of(image, info, "VMCOREINFO note")]
    running = boots_of_cpus(image)
    if running and not all_of_memory:
        return running
    boots = {_identity(boot.vmcoreinfo): boot for boot in running}
    unsupported: UnsupportedError | None = None
    for paddr, info in list(for_each_vmcoreinfo(image, progress)):
        if _identity(info) not in boots:
            try:
                boots[_identity(info)] = boot_of(image, info, f"VMCOREINFO found at physical {paddr:#x}")
            except UnsupportedError as error:
                unsupported = error
    found = list(boots.values())
    if not found and unsupported is None:
        found = boots_of_banners(image, progress)
    if not found:
        if unsupported is not None:
            raise unsupported
        name = image.paths[0] if image.paths else "the image"
        raise KernelNotFoundError(
            f"{name}: no Linux kernel found: no VMCOREINFO note, no page that begins with OSRELEASE=, no page tables in"
            " the notes and no text of linux_banner in memory. If this is raw RAM, check --base and --hole"
        )
    return sorted(found, key=lambda boot: not boot.verified)


def _identity(info: VmcoreInfo | None) -> tuple[object, ...]:
    """Return what tells kernels apart: copies of one block are one kernel."""
    if info is None:
        return ()
    return (info.release, info.symbol("init_uts_ns"), info.symbol("swapper_pg_dir"), info.number("phys_base"))


def boot_of(image: MemoryImage, info: VmcoreInfo, source: str) -> Boot:
    """Return the kernel that a VMCOREINFO block describes, verified if that can be.

    Raises:
        UnsupportedError: it is of an architecture that is not built.
    """
    machine = image.info.machine
    if not boot_x86_64.recognise(info) and machine != boot_x86_64.ARCH.name:
        raise UnsupportedError(f"Linux on {machine or 'this architecture'}", f"release {info.release}")
    described = boot_x86_64.paging_of(info)
    pagings = [described] if described is not None else []
    pagings += boot_x86_64.pagings_of_cpus(image, info.number("sme_mask") or 0)
    first_problem = ""
    for paging in pagings:
        names, problem = verify(ImageSpace(boot_x86_64.ARCH, image, paging), info)
        if not problem and names is not None:
            quirk = "the page tables are not where VMCOREINFO says: a CPU's were used"
            return _boot(info, paging, names.version, source, True, () if paging == described else (quirk,))
        first_problem = first_problem or problem
    if described is not None:
        found = _try_holes(image, info, described, source)
        if found is not None:
            return found
    quirk = f"the kernel could not be verified: {first_problem or 'VMCOREINFO does not say where the page tables are'}"
    return _boot(info, described, None, source, False, (quirk,))


def _try_holes(image: MemoryImage, info: VmcoreInfo, paging: Paging, source: str) -> Boot | None:
    """Return the kernel if a hole in raw RAM makes its page tables right; the hole then stays set."""
    raw = raw_image_of(image)
    if raw is None:
        return None
    for start, end in list(for_each_hole(raw)):
        raw.set_hole((start, end))
        names, problem = verify(ImageSpace(boot_x86_64.ARCH, image, paging), info)
        if not problem and names is not None:
            quirk = f"raw RAM with a hole from {start:#x} to {end:#x}, found by following the kernel's page tables"
            return _boot(info, paging, names.version, source, True, (quirk,))
    raw.set_hole(None)
    return None


def _boot(
    info: VmcoreInfo, paging: Paging | None, version: str | None, source: str, verified: bool, quirks: tuple[str, ...]
) -> Boot:
    return Boot(
        arch=boot_x86_64.ARCH.name,
        release=info.release,
        version=version,
        paging=paging,
        slide=info.kernel_offset,
        phys_base=info.number("phys_base"),
        build_id=info.build_id,
        vmcoreinfo=info,
        source=source,
        verified=verified,
        quirks=quirks,
    )


def for_each_vmcoreinfo(image: MemoryImage, progress: Progress | None = None) -> Iterator[tuple[int, VmcoreInfo]]:
    """Yield (paddr, block) of every page in memory that begins like VMCOREINFO's text."""
    count = 0
    for paddr, chunk in _chunks(image, progress, "looking for VMCOREINFO"):
        first = -paddr % PAGE
        starts = chunk[first::PAGE]
        at = starts.find(START[0])
        while at >= 0:
            offset = first + at * PAGE
            if chunk.startswith(START, offset):
                yield paddr + offset, VmcoreInfo(chunk[offset : offset + MAX_SIZE])
                count += 1
                if count >= MAX_CANDIDATES:
                    return
            at = starts.find(START[0], at + 1)


def boots_of_cpus(image: MemoryImage) -> list[Boot]:
    """Return the kernel that the page tables in QEMU's notes lead to; it is verified by that.

    Its data holds a pointer to its VMCOREINFO text (`vmcoreinfo_data`): every pointer to the start of a page is tried,
    first of those in its variables, for which little has to be read, then of those in all of its image.
    """
    if image.info.machine not in (None, boot_x86_64.ARCH.name):
        return []
    for paging in boot_x86_64.pagings_of_cpus(image):
        space = ImageSpace(boot_x86_64.ARCH, image, paging)
        banner: Boot | None = None
        tried: set[int] = set()
        for data in boot_x86_64.for_each_data_block(space):
            boot = _described_boot(space, image, boot_x86_64.find_page_pointers(data) - tried, tried)
            if boot is not None:
                return [boot]
        for vaddr, data in boot_x86_64.for_each_kernel_block(space, BLOCK, BANNER_SIZE):
            match = re.search(BANNER_PATTERN, data) if banner is None else None
            if match is not None:
                banner = Boot(
                    arch=boot_x86_64.ARCH.name,
                    release=match[1].decode("ascii", "replace"),
                    version=match[2].decode("ascii", "replace"),
                    paging=paging,
                    slide=None,
                    phys_base=boot_x86_64.find_phys_base(space, vaddr + match.start()),
                    build_id=None,
                    vmcoreinfo=None,
                    source="page tables of a CPU in QEMU's notes",
                    verified=True,
                    banner_vaddr=vaddr + match.start(),
                )
            boot = _described_boot(space, image, boot_x86_64.find_page_pointers(data[:BLOCK]) - tried, tried)
            if boot is not None:
                return [boot]
        if banner is not None:
            return [banner]
    return []


def _described_boot(space: ImageSpace, image: MemoryImage, pointers: set[int], tried: set[int]) -> Boot | None:
    """Return the kernel whose VMCOREINFO one of the pointers leads to, None if none does; `tried` grows by them."""
    tried |= pointers
    for pointer in pointers:
        info = _read_vmcoreinfo(space, pointer)
        if info is not None and boot_x86_64.recognise(info):
            boot = boot_of(image, info, "VMCOREINFO found through the page tables of a CPU in QEMU's notes")
            if boot.verified:
                return boot
    return None


def _read_vmcoreinfo(space: ImageSpace, address: int) -> VmcoreInfo | None:
    """Return the block at a kernel address, None if there is none."""
    try:
        if "PCD" in space.walk(address).flags:  # a device's, whose reading may do something
            return None
        if space.read(address, len(START)) != START:
            return None
        return VmcoreInfo(space.read(address, PAGE))
    except ReadError:
        return None


def boots_of_banners(image: MemoryImage, progress: Progress | None = None) -> list[Boot]:
    """Return a kernel for each release of which memory has a text like `linux_banner`.

    There are copies (log buffers, page cache): which one is the kernel's own, and where the page tables are, only a
    kernel file can tell.

    Raises:
        UnsupportedError: the image says that it is of an architecture that is not built.
    """
    if image.info.machine not in (None, boot_x86_64.ARCH.name):
        raise UnsupportedError(f"Linux on {image.info.machine}")
    places: dict[str, list[int]] = {}
    for paddr, release in for_each_banner(image, progress):
        places.setdefault(release, []).append(paddr)
    return [
        Boot(
            arch=boot_x86_64.ARCH.name,
            release=release,
            version=None,
            paging=None,
            slide=None,
            phys_base=None,
            build_id=None,
            vmcoreinfo=None,
            source="text of linux_banner found at physical " + ", ".join(f"{paddr:#x}" for paddr in paddrs[:4]),
            verified=False,
            banner_paddrs=tuple(paddrs),
        )
        for release, paddrs in places.items()
    ]


def for_each_banner(image: MemoryImage, progress: Progress | None = None) -> Iterator[tuple[int, str]]:
    """Yield (paddr, release) of every text in memory that has the form of `linux_banner`."""
    tail, tail_end, count = b"", -1, 0
    for chunk_paddr, chunk in _chunks(image, progress, "looking for linux_banner"):
        overlap = tail if tail_end == chunk_paddr else b""  # a banner may lie across two chunks
        data, paddr = overlap + chunk, chunk_paddr - len(overlap)
        at = data.find(BANNER)
        while at >= 0:
            match = re.match(BANNER_PATTERN, data[at : at + BANNER_SIZE])
            if match is not None and at + match.end() > len(overlap):
                yield paddr + at, match[1].decode("ascii", "replace")
                count += 1
                if count >= MAX_CANDIDATES:
                    return
            at = data.find(BANNER, at + 1)
        tail, tail_end = data[-BANNER_SIZE:], paddr + len(data)


def _chunks(image: MemoryImage, progress: Progress | None, what: str) -> Iterator[tuple[int, bytes]]:
    """Yield the image's present memory in chunks, reporting now and then."""
    done = reported = 0
    for paddr, chunk in image.for_each_chunk():
        yield paddr, chunk
        done += len(chunk)
        if progress is not None and done - reported >= PROGRESS_STEP:
            reported = done
            progress(f"{what}: {done >> 20} MiB")


def choose(boots: list[Boot], candidate: int | None) -> Boot:
    """Return the chosen kernel (`candidate` counts from 1), or the one that proved itself, or the only one.

    Raises:
        KernelNotFoundError: there is no such candidate, or several and none chosen; lists them.
    """
    lines = tuple(f"{number}: {boot.describe()}" for number, boot in enumerate(boots, 1))
    listed = "".join(f"\n  {line}" for line in lines)
    if candidate is not None:
        if 1 <= candidate <= len(boots):
            return boots[candidate - 1]
        raise KernelNotFoundError(f"there is no kernel {candidate} in the image; it holds{listed}", lines)
    verified = [boot for boot in boots if boot.verified]
    if len(verified) == 1:
        return verified[0]
    if len(boots) == 1:
        return boots[0]
    raise KernelNotFoundError(f"several kernels are in the image; choose one with --kernel N{listed}", lines)
