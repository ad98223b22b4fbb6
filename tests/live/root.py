"""The live guest's files: an initramfs that finds its disk, and an ext4 image with Python, gdb and the project.

The image is made of the host's own Debian files (Python and its library, gdb, a few tools, the libraries of all), so
that nothing is fetched; it is kept in the lab's cache, by a digest of what went into it.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
from pathlib import Path

from tests.lab import cache
from tests.lab.cpio import Archive
from tests.lab.guest import find_libraries, find_modules, find_program, read_module
from tests.lab.package import KernelFiles
from tests.lab.scenario import LabError

SOURCES = Path(__file__).with_name("guest")
PROJECT = Path(__file__).resolve().parents[2]
PARTS = ("kvm_dbg", "gdb", "lldb")  # of the project
MODULES = ("virtio_pci", "virtio_blk", "loop", "dummy")
PROGRAMS = ("/usr/bin/python3.11", "/usr/bin/gdb", "/bin/busybox", "/bin/ps", "/usr/bin/setpriv", "/bin/dmesg")
TREES = ("/usr/lib/python3.11", "/usr/share/gdb")
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter", "turtledemo", "dist-packages")
APPLETS = (
    "sh", "mount", "umount", "mkdir", "chmod", "hostname", "ip", "stty", "base64", "rm", "cat", "sleep", "echo", "ls",
    "kill", "tail", "head", "grep", "sed", "uname", "env", "wc", "insmod", "rmmod", "mv", "sync", "id", "time", "true",
)  # fmt: skip
SIZE = 512 << 20  # bytes of the image, sparse


def write_initramfs(path: Path, kernel: KernelFiles, more: tuple[str, ...] = ()) -> None:
    """Write the initramfs, not compressed, that loads MODULES and `more` and goes on in the disk's root."""
    with path.open("wb") as file:
        archive = Archive(file)
        archive.add_device("/dev/console", 5, 1)
        archive.add_file("/init", (SOURCES / "init.sh").read_bytes(), 0o755)
        archive.add_file("/bin/busybox", find_program("busybox").read_bytes(), 0o755)
        for directory in ("/proc", "/root"):
            archive.add_directory(directory)
        files = find_modules(kernel.modules, (*MODULES, *more))
        names = [f"/modules/{module.name.partition('.')[0]}.ko" for module in files]
        for name, module in zip(names, files, strict=True):
            archive.add_file(name, read_module(module))
        archive.add_file("/modules/list", "".join(f"{name}\n" for name in names).encode())
        archive.close()


def obtain_root(root: Path) -> Path:
    """Return the ext4 image, made if the cache has none of these inputs."""
    files = [path for part in PARTS for path in sorted((PROJECT / part).rglob("*.py"))]
    programs = [f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}" for path in map(_find, PROGRAMS)]
    code = cache.digest_source(Path(__file__))
    key = cache.digest(code, programs, *sorted(SOURCES.iterdir()), *files)
    return cache.obtain(root, "live", "root", key, _make) / "root.ext4"


def _find(name: str) -> str:
    if not os.path.exists(name):
        raise LabError(f"no {name}: the live guest is made of the host's Debian files")
    return name


def _make(work: Path) -> None:
    tree = work / "tree"
    for directory in (
        "dev",
        "proc",
        "sys",
        "tmp",
        "root",
        "etc",
        "live",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
    ):
        (tree / directory).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    for program in PROGRAMS:
        _copy_program(tree, Path(program))
    for applet in APPLETS:
        (tree / "usr/bin" / applet).symlink_to("busybox")
    (tree / "usr/bin/python3").symlink_to("python3.11")
    for name in TREES:
        shutil.copytree(name, tree / name[1:], symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for extension in Path("/usr/lib/python3.11/lib-dynload").glob("*.so"):
        _copy_libraries(tree, extension)
    for part in PARTS:
        shutil.copytree(PROJECT / part, tree / "kvm" / part, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(tree / "kvm", stripdir=str(tree), quiet=2)
    for script in ("agent.sh", "compare.py", "zoo.py"):
        shutil.copy(SOURCES / script, tree / "live" / script)
        (tree / "live" / script).chmod(0o755)
    options = ["-static", "-O2", "-pthread"]
    for program in ("crowd", "spin"):
        _run(["gcc", *options, "-o", str(tree / "live" / program), str(SOURCES / f"{program}.c")])
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    image = work / "root.ext4"
    with image.open("wb") as file:
        file.truncate(SIZE)
    options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", str(tree)]
    _run([str(find_program("mke2fs")), *options, str(image)])
    shutil.rmtree(tree)


def _copy_program(tree: Path, program: Path) -> None:
    target = tree / "usr/bin" / program.name
    shutil.copy(program.resolve(), target)
    _copy_libraries(tree, program)


def _copy_libraries(tree: Path, program: Path) -> None:
    for library in find_libraries(program):
        place = str(library) if str(library).startswith("/usr/") else f"/usr{library}"
        target = tree / place[1:]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library.resolve(), target)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stderr.strip()}")
