"""The files of the kernel's loadable modules, and where their sections are in memory: what gdb's add-symbol-file needs.

A file is a module's if its name is (`-` and `_` are one, as modprobe(8) has it) and its build-id is the one that the
kernel keeps of the loaded module (since 5.14, commit a0e7f4ac8dbd, `struct module` has `build_id`); where the image
has none, the name must do. Debug files may also be named by the build-id alone, below `.build-id`. What a file says of
its symbols must be what the kernel's own table (kallsyms) says of the loaded module, for the sections as the kernel
placed them. Files compressed by the distribution are unpacked into the cache, since gdb reads none. In the place of a
stripped file comes the debug file that it names, see `debug_link.py`.

A module that is being loaded or removed is placed by its sections if the kernel still, or already, keeps their places.
One that is unformed (its memory is set up, or has been freed) is not placed at all: enum module_state in
include/linux/module.h, load_module and free_module in kernel/module/main.c.

FreeBSD's modules are files as they come from the linker: relocatable on x86_64, and elsewhere such whose sections lie
as in the file, from the address that the kernel keeps on (sys/kern/link_elf.c).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.debug_link import DEBUG_DIRECTORY, find_debug_file, read_debug_link
from kvm_dbg.elf import ET_DYN, open_elf
from kvm_dbg.errors import CommandError, FileAccessError, FormatError, KvmDbgError

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session
    from kvm_dbg.elf import ElfFile
    from kvm_dbg.kernel.base import Module
    from kvm_dbg.symbols.base import SymbolTable

SUFFIXES = (".ko.debug", ".ko", ".ko.zst", ".ko.xz", ".ko.gz")  # likeliest with debug information first
USUAL_PLACES = (  # the last four are FreeBSD's, hier(7)
    "/usr/lib/debug/lib/modules/{release}",
    "/usr/lib/debug/usr/lib/modules/{release}",
    "/lib/modules/{release}",
    "/usr/lib/debug/boot/kernel",
    "/usr/lib/debug/boot/modules",
    "/boot/kernel",
    "/boot/modules",
)
BUILD_IDS = ".build-id"  # below a directory of debug files: xx/rest.debug
SAMPLE = 256  # symbols of a file that are compared with the kernel's
STT_OBJECT, STT_FUNC = 1, 2
MAX_FILES = 200_000  # looked at below one directory
MAX_MODULE_SIZE = 1 << 30  # bytes, unpacked
ZSTD_CHUNK = 1 << 16  # bytes read at a time: they can stand for 10,000 times as many
SHF_ALLOC = 2
LIVE, UNFORMED = "live", "unformed"  # states of a module
NO_FILE = "no file found"
NOT_ASKED = "not loaded: `kvm mods --load`"


class Plan(NamedTuple):
    """What is known of one module's symbols.

    file: whose symbols are the module's, None if none is. sections: the name of each section that is in memory -> its
    address. problem: why there is no file although there are candidates. remark: what is amiss with the one found.
    """

    name: str
    file: str | None
    sections: dict[str, int]
    problem: str | None = None
    remark: str | None = None

    @property
    def summary(self) -> str:
        """Return the file, or why there is none, in one line."""
        if self.file is None:
            return self.problem or NO_FILE
        return f"{self.file} ({self.remark})" if self.remark else self.file


class LoadedSymbols:
    """What a debugger was told of modules' symbols, and what it has made of that.

    Attributes:
        files: whose symbols the debugger has, by their real paths.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._plans: dict[str, Plan] = {}

    def plan(self, plans: list[Plan]) -> None:
        """Remember what the debugger is about to load; a file that it was given earlier stays if there is none now."""
        for plan in plans:
            if plan.file is not None or plan.name not in self._plans or self._plans[plan.name].file is None:
                self._plans[plan.name] = plan

    def summary(self, name: str) -> str:
        """Return whose symbols the module `name` has, or why it has none, in one line."""
        plan = self._plans.get(name)
        if plan is None:
            return NOT_ASKED
        if plan.file is not None and os.path.realpath(plan.file) not in self.files:
            return f"not loaded: the debugger does not have {plan.file}"
        return plan.summary


def plan_modules(session: Session, directory: str | None, *, unpack: bool = True) -> Iterator[tuple[Module, Plan]]:
    """Yield each module of the kernel's list and what is known of its symbols.

    Args:
        session: with an open image.
        directory: where to look, with everything below; None for the usual places.
        unpack: unpack compressed files into the cache, and check what they are; else they are named unchecked.

    Raises:
        CommandError: the directory cannot be read.
        KvmDbgError: the modules cannot be listed.
    """
    if directory is not None and not os.path.isdir(directory):
        raise CommandError(f"{directory}: not a directory that can be read")
    places = [directory] if directory is not None else _places(session)
    files = _files_by_name(places)
    roots = [*places, *((DEBUG_DIRECTORY,) if directory is None else ())]
    for module in session.system.for_each_module(session.kernel):
        yield (
            module,
            _plan(
                session, module, [*_named_by_id(module, roots), *files.get(module.name.replace("-", "_"), [])], unpack
            ),
        )


def find_module_file(session: Session, module: Module) -> str | None:
    """Return the path of one module's file out of the usual places, None if there is none that fits."""
    places = _places(session)
    paths = [
        *_named_by_id(module, [*places, DEBUG_DIRECTORY]),
        *_files_by_name(places).get(module.name.replace("-", "_"), []),
    ]
    return _plan(session, module, paths, True).file


def _files_by_name(places: list[str]) -> dict[str, list[str]]:
    """Return the module files below the places by their modules' names, the likeliest first."""
    files: dict[str, list[str]] = {}
    for place in places:
        for name, path in _for_each_module_file(place):
            files.setdefault(name, []).append(path)
    return files


def _named_by_id(module: Module, roots: list[str]) -> list[str]:
    """Return the files that are called as the module's build-id, where debug files are kept by it."""
    if not module.build_id:
        return []
    own = f"{module.build_id[:2]}/{module.build_id[2:]}.debug"
    paths = (os.path.join(root, BUILD_IDS, own) for root in roots)
    return [path for path in paths if os.path.isfile(path)]


def _places(session: Session) -> list[str]:
    """Return where modules usually are: below the directories searched for vmlinux, beside it, and in the system."""
    release = str(getattr(session.kernel, "release", None) or "")
    vmlinux = getattr(session.kernel, "vmlinux_path", None)
    places = list(session.request.search) if session.request is not None else []
    if vmlinux is not None:
        boot = Path(str(vmlinux)).resolve().parent  # PREFIX/boot; PREFIX/lib/modules/REL, PREFIX/boot/kernel
        places += [str(boot.parent / "lib" / "modules" / release)] if boot.name == "boot" else [str(boot)]
        if boot.parent.name == "boot":
            prefix = boot.parent.parent
            places += [str(boot.parent / "modules"), *(str(prefix / place[1:]) for place in USUAL_PLACES[3:5])]
    return [*places, *(place.format(release=release) for place in USUAL_PLACES)]


def _for_each_module_file(directory: str) -> Iterator[tuple[str, str]]:
    """Yield (module's name, path) of the module files below a directory, those with debug information first."""
    found: list[tuple[int, str, str]] = []
    seen = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            seen += 1
            for rank, suffix in enumerate(SUFFIXES):
                if name.endswith(suffix):
                    found.append((rank, name.removesuffix(suffix).replace("-", "_"), os.path.join(parent, name)))
                    break
        if seen > MAX_FILES:
            break
    for _, name, path in sorted(found):
        yield name, path


def _plan(session: Session, module: Module, paths: list[str], unpack: bool) -> Plan:
    if module.state == UNFORMED:
        return Plan(module.name, None, {}, "not placed: it is not set up yet, or has been freed (unformed)")
    places = {name: address for name, address in module.sections.items() if _is_loaded(module, address)}
    if ".text" not in module.sections and module.state == LIVE:
        places[".text"] = module.address
    if not places:
        return Plan(module.name, None, {}, f"not placed: where its sections are is not in the image ({module.state})")
    problem: str | None = None
    for path in paths:
        if not unpack and path.endswith(tuple(_UNPACKERS)):
            return Plan(module.name, path, {}, remark="compressed, and not checked yet")
        try:
            path, remark = _with_debug_information(path, _unpacked(path, module, session.index_directory))
            with open_elf(path) as file:
                build_id = file.find_build_id()
                if module.build_id and build_id is not None and build_id.hex() != module.build_id:
                    problem = f"{path} is another build: {build_id.hex()}, in the image {module.build_id}"
                    continue
                names = {section.name for section in file.sections if section.flags & SHF_ALLOC and section.size}
                own = places
                if file.header.type == ET_DYN and not module.sections:
                    own = {one.name: module.address + one.addr for one in file.sections if one.name in names}
                difference = _find_difference(file, module, own, session.system.all_symbols(session.kernel))
                if difference is not None:
                    problem = f"{path} is not the module in the image: {difference}"
                    continue
        except KvmDbgError as error:
            problem = str(error)
            continue
        present = {name: address for name, address in own.items() if name in names or name == ".text"}
        return Plan(module.name, path, present, remark=remark)
    return Plan(module.name, None, {}, problem)


def _with_debug_information(path: str, unpacked: str) -> tuple[str, str | None]:
    """Return the debug file that a module's file names, and nothing; else the file itself, and what is amiss with it.

    Args:
        path: where the distribution has the file, by which the debug file is looked for.
        unpacked: the same without compression.
    """
    with open_elf(unpacked) as file:
        link = None if file.find_section(".debug_info") is not None else read_debug_link(file)
    if link is None:
        return unpacked, None
    found, why = find_debug_file(link, os.path.dirname(path))
    return (found, None) if found is not None else (unpacked, why)


def _find_difference(file: ElfFile, module: Module, sections: dict[str, int], symbols: SymbolTable) -> str | None:
    """Return in what the symbols of a module's file contradict the kernel's table; None if they agree.

    Only symbols whose name the module has once, there and here, are compared.
    """
    from kvm_dbg.symbols.elf_data import SymbolData

    table = file.find_section(".symtab")
    if table is None:
        return None
    linked = file.header.type == ET_DYN  # its symbols have addresses; those of relocatable files, places in sections
    places = {
        one.number: sections[one.name] - (one.addr if linked else 0)
        for one in file.sections
        if one.flags & SHF_ALLOC and one.name in sections
    }
    data = SymbolData(file, table)
    count = table.size // table.entsize if table.entsize else 0
    rows = [
        row for row in map(data.row, range(count)) if row.type in (STT_OBJECT, STT_FUNC) and places.get(row.section)
    ]
    seen = Counter(row.name for row in rows)
    compared = different = 0
    example = ""
    for row in rows:
        place = places[row.section]
        if seen[row.name] > 1 or place is None:
            continue
        name = data.name(row.name).decode("utf-8", "replace")
        known = [symbol for symbol in symbols.find_all(name) if symbol.module == module.name]
        if len(known) != 1:
            continue
        compared += 1
        if known[0].address != place + row.value:
            different += 1
            example = example or f"{name} would be at {place + row.value:#x}, and is at {known[0].address:#x}"
        if compared >= SAMPLE:
            break
    return f"{different} of {compared} symbols are elsewhere; {example}" if different else None


def _is_loaded(module: Module, address: int) -> bool:
    """Return whether a section still is where it was loaded; those of initialisation are freed afterwards."""
    return not module.ranges or any(start <= address < start + size for start, size in module.ranges)


def _unpacked(path: str, module: Module, cache: str | None) -> str:
    """Return the path of the module without compression, made in the cache if need be. Raises KvmDbgError."""
    unpack = next((unpack for suffix, unpack in _UNPACKERS.items() if path.endswith(suffix)), None)
    if unpack is None:
        return path
    if cache is None:
        raise CommandError(f"{path} is compressed, and there is no cache directory to unpack it to")
    status = os.stat(path)
    target = Path(cache) / "modules" / f"{module.name}-{status.st_size:x}-{status.st_mtime_ns:x}.ko"
    if target.exists():
        return str(target)
    part = target.with_suffix(f".{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(unpack(path))
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FileAccessError(target, f"cannot be written: {error.strerror}") from error
    return str(target)


def _unpack_xz(path: str) -> bytes:
    import lzma

    try:
        with lzma.open(path) as file:
            return file.read(MAX_MODULE_SIZE)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError(path, 0, "xz stream", str(error)) from error


def _unpack_gzip(path: str) -> bytes:
    import gzip
    import zlib

    try:
        with gzip.open(path) as file:
            return file.read(MAX_MODULE_SIZE)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise FormatError(path, 0, "gzip stream", str(error)) from error


def _unpack_zstd(path: str) -> bytes:
    import zstandard

    parts: list[bytes] = []
    size = 0
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    try:
        with open(path, "rb") as file:
            while size < MAX_MODULE_SIZE and not unpacker.eof and (data := file.read(ZSTD_CHUNK)):
                parts.append(unpacker.decompress(data))
                size += len(parts[-1])
    except zstandard.ZstdError as error:
        raise FormatError(path, 0, "zstd stream", str(error)) from error
    if not unpacker.eof:
        raise FormatError(path, 0, "zstd stream", f"it ends too early, after {size} bytes of the module")
    return b"".join(parts)


_UNPACKERS: dict[str, Callable[[str], bytes]] = {".xz": _unpack_xz, ".gz": _unpack_gzip, ".zst": _unpack_zstd}
