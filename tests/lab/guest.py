"""Build what the guest runs: an initramfs of our two C programs, busybox, a few Debian tools and kernel modules."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

from tests.lab.cpio import Archive
from tests.lab.scenario import LabError

SOURCES = Path(__file__).with_name("guest")
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for: the distribution's places only, whatever the user's PATH says."""

_KEEPER = "keeper"
_ANIMALS = re.compile(r'(?:\{|spawn\(|animals? = )"([\w-]+)", (?:\w+\}|\(char|nothing|many)|strcmp\(name, "(\w+)"\)')
_CRASH_TOOLS = ("makedumpfile",)
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


def find_libraries(program: Path) -> list[Path]:
    """Return the shared libraries that `program` needs, its loader included; none for a static program."""
    result = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    return [Path(match) for match in re.findall(r"(/\S+) \(0x", result.stdout)]


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
    path: Path, work: Path, tree: Path, modules: tuple[str, ...], crash: tuple[Path, Path] | None = None
) -> None:
    """Write the guest's initramfs to `path`.

    Args:
        path: the file to write, not compressed.
        work: a directory for the compiler's output.
        tree: the kernel package's module tree.
        modules: the names of the modules to load.
        crash: the crash kernel and its initramfs, if the guest shall load one.
    """
    with path.open("wb") as file:
        archive = Archive(file)
        _add_base(archive, work, _TOOLS if crash is None else (*_TOOLS, "kexec"))
        _add_modules(archive, find_modules(tree, modules))
        archive.add_file("/zoo/keeper", compile_program("zoo", work), 0o755)
        for animal in sorted(find_animals() - {_KEEPER}):
            archive.add_link(f"/zoo/{animal}", _KEEPER)
        if crash:
            archive.add_file("/crash/vmlinuz", crash[0].read_bytes())
            archive.add_file("/crash/initrd", crash[1].read_bytes())
        archive.close()


def write_crash_initramfs(path: Path, work: Path, tree: Path) -> None:
    """Write the crash kernel's initramfs to `path`: as small as it can be, since it lives in reserved memory."""
    with path.open("wb") as file:
        archive = Archive(file)
        _add_base(archive, work, _CRASH_TOOLS)
        _add_modules(archive, find_modules(tree, ("virtio_pci", "virtio_blk", "ext4")))
        archive.add_file("/crash.sh", (SOURCES / "crash.sh").read_bytes(), 0o755)
        archive.close()


def _add_base(archive: Archive, work: Path, tools: tuple[str, ...]) -> None:
    archive.add_device("/dev/console", 5, 1)
    archive.add_file("/init", compile_program("init", work), 0o755)
    programs = [find_program(name) for name in ("busybox", *tools)]
    for program in programs:
        archive.add_file(f"/bin/{program.name}", program.read_bytes(), 0o755)
    for applet in ("sh", "mount", "umount", "mkdir", "cut", "tee", "cp", "rm", "dd", "cat"):
        archive.add_link(f"/bin/{applet}", "busybox")
    for library in sorted({library for program in programs for library in find_libraries(program)}):
        archive.add_file(str(library), library.read_bytes(), 0o755)


def _add_modules(archive: Archive, files: list[Path]) -> None:
    names = [f"/modules/{path.name.partition('.')[0]}.ko" for path in files]
    for name, path in zip(names, files, strict=True):
        archive.add_file(name, read_module(path))
    archive.add_file("/modules/list", "".join(f"{name}\n" for name in names).encode())
