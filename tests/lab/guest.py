"""Build what the guest runs: an initramfs of our C programs, busybox, a few Debian tools and kernel modules."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tests.lab.cpio import Archive
from tests.lab.scenario import LabError

SOURCES = Path(__file__).with_name("guest")
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for: the distribution's places only, whatever the user's PATH says."""


class Program(NamedTuple):
    """A program of the zoo that has symbols and is kept beside the dump. path: as the guest sees it."""

    path: str
    source: str
    options: tuple[str, ...]


PROGRAMS = (
    Program("/zoo/lib/libcallee.so", "callee.c", ("-g", "-O0", "-shared", "-fPIC", "-Wl,-soname,libcallee.so")),
    Program("/zoo/caller", "caller.c", ("-g", "-O0", "-pthread", "-Wl,-rpath,$ORIGIN/lib", "-L:/zoo/lib", "-lcallee")),
    Program("/zoo/ia32", "ia32.c", ("-g", "-O0", "-m32", "-nostdlib", "-static")),
    Program("/zoo/toiler", "toiler.c", ("-g", "-O2", "-static")),
)
"""In the order in which they are compiled; "-L:" is a directory of the guest."""
_KEEPER = "keeper"
_ANIMALS = re.compile(r'(?:\{|spawn\(|animals? = )"([\w-]+)", (?:\w+\}|\(char|nothing|many)|strcmp\(name, "(\w+)"\)')
_TOOLS = ("ps", "dmesg")


def find_program(name: str) -> Path:
    """Return the path of an installed program.

    Raises LabError if there is none.
    """
    found = shutil.which(name, path=SEARCH)
    if not found:
        raise LabError(f"no program {name}: run `python -m tests.lab install` as root")
    return Path(found)


def compile_program(name: str, out: Path) -> bytes:
    """Compile guest/NAME.c into a static program and return it; `out` is a directory for the compiler's output."""
    program = out / name
    options = ["-static", "-O2", "-pthread"]
    command = [str(find_program("gcc")), *options, "-o", str(program), str(SOURCES / f"{name}.c"), "-lutil"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{result.stderr}")
    return program.read_bytes()


def compile_programs(root: Path) -> None:
    """Compile PROGRAMS, and copy the libraries that they need, to their places in the guest's tree below `root`.

    Raises LabError with the compiler's words.
    """
    for program in PROGRAMS:
        target = root / program.path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        options = [option.replace("-L:", f"-L{root}") for option in program.options]
        flags = [flag for flag in options if not flag.startswith("-l")]
        libraries = [flag for flag in options if flag.startswith("-l")]
        prefix = f"-ffile-prefix-map={SOURCES}=/usr/src/zoo"
        command = [str(find_program("gcc")), prefix, *flags, "-o", str(target), program.source, *libraries]
        result = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
        if result.returncode:
            raise LabError(f"{' '.join(command)} failed:\n{result.stderr}")
        for library in find_libraries(target):
            copy = root / str(library)[1:]
            if not library.is_relative_to(root) and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, copy)


def find_libraries(program: Path) -> list[Path]:
    """Return the shared libraries that `program` needs, its loader included; none for a static program."""
    result = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    return [Path(match) for match in re.findall(r"(/\S+) \(0x", result.stdout)]


def find_foreign_program(root: Path, name: str) -> dict[str, Path]:
    """Return what a program needs that was unpacked below `root`: the guest's path to our file, the program first.

    The program's own loader lists its libraries, since it may be too new for ours.
    """
    programs = [path for path in root.rglob(name) if path.is_file() and path.parent.name in ("bin", "sbin")]
    loaders = [path for path in root.rglob("ld-linux-x86-64.so.2") if path.is_file()]
    if not programs or not loaders:
        raise LabError(f"{root}: no {name} with its loader")
    libraries = ":".join(str(path) for path in (root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"))
    command = [str(loaders[0]), "--library-path", libraries, "--list", str(programs[0])]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)}: {result.stdout}{result.stderr}")
    found = [Path(match) for match in re.findall(r"(\S+) \(0x", result.stdout) if match.startswith(str(root))]
    table = {f"/bin/{name}": programs[0], "/lib64/ld-linux-x86-64.so.2": loaders[0]}
    return table | {f"/lib/x86_64-linux-gnu/{path.name}": path for path in found if "ld-linux" not in path.name}


def find_animals() -> set[str]:
    """Return the names under which zoo.c expects to be executed."""
    return {first or second for first, second in _ANIMALS.findall((SOURCES / "zoo.c").read_text())}


def read_module(path: Path) -> bytes:
    """Return a module's ELF image, decompressed if the package ships it compressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def find_modules(tree: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Return the files of the `wanted` modules and of all that they depend on, in loading order.

    Names that the tree has no file for are left out: another kernel has them built in.
    """
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    order: list[Path] = []

    def visit(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        match = re.search(rb"\0depends=([^\0]*)\0", read_module(path))
        for dependency in match[1].decode().split(",") if match else ():
            visit(dependency)
        order.append(path)

    for name in wanted:
        visit(name)
    return order


def write_initramfs(
    path: Path,
    work: Path,
    tree: Path,
    modules: tuple[str, ...],
    programs: Path,
    crash: tuple[Path, Path] | None = None,
) -> None:
    """Write the guest's initramfs to `path`.

    Args:
        path: the file to write, not compressed.
        work: a directory for the compiler's output.
        tree: the kernel package's module tree.
        modules: the names of the modules to load.
        programs: what compile_programs() made.
        crash: the crash kernel and its initramfs, if the guest shall load one.
    """
    with path.open("wb") as file:
        archive = Archive(file)
        ours = {f"/{path.relative_to(programs)}": path for path in sorted(programs.rglob("*")) if path.is_file()}
        _add_base(archive, work, _TOOLS if crash is None else (*_TOOLS, "kexec"), ours)
        for name, source in ours.items():
            archive.add_file(name, source.read_bytes(), 0o755)
        _add_modules(archive, find_modules(tree, modules))
        archive.add_file("/zoo/keeper", compile_program("zoo", work), 0o755)
        for animal in sorted(find_animals() - {_KEEPER}):
            archive.add_link(f"/zoo/{animal}", _KEEPER)
        if crash:
            archive.add_file("/crash/vmlinuz", crash[0].read_bytes())
            archive.add_file("/crash/initrd", crash[1].read_bytes())
        archive.close()


def write_crash_initramfs(path: Path, work: Path, tree: Path, tools: Path) -> None:
    """Write the crash kernel's initramfs to `path`: as small as it can be, since it lives in reserved memory.

    `tools` is where makedumpfile and its libraries were unpacked.
    """
    with path.open("wb") as file:
        archive = Archive(file)
        _add_base(archive, work, ())
        for name, source in find_foreign_program(tools, "makedumpfile").items():
            archive.add_file(name, source.read_bytes(), 0o755)
        _add_modules(archive, find_modules(tree, ("virtio_pci", "virtio_blk", "ext4")))
        archive.add_file("/crash.sh", (SOURCES / "crash.sh").read_bytes(), 0o755)
        archive.close()


def _add_base(archive: Archive, work: Path, tools: tuple[str, ...], present: Collection[str] = ()) -> None:
    archive.add_device("/dev/console", 5, 1)
    archive.add_file("/init", compile_program("init", work), 0o755)
    programs = [find_program(name) for name in ("busybox", *tools)]
    for program in programs:
        archive.add_file(f"/bin/{program.name}", program.read_bytes(), 0o755)
    for applet in ("sh", "mount", "umount", "mkdir", "cut", "tee", "cp", "rm", "dd", "cat", "grep"):
        archive.add_link(f"/bin/{applet}", "busybox")
    for library in sorted({library for program in programs for library in find_libraries(program)}):
        if str(library) not in present:
            archive.add_file(str(library), library.read_bytes(), 0o755)


def _add_modules(archive: Archive, files: list[Path]) -> None:
    names = [f"/modules/{path.name.partition('.')[0]}.ko" for path in files]
    for name, path in zip(names, files, strict=True):
        archive.add_file(name, read_module(path))
    archive.add_file("/modules/list", "".join(f"{name}\n" for name in names).encode())
