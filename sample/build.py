#!/usr/bin/env python3
"""Make the demo's dump again: build a small kernel, crash it in QEMU, reduce what is left to a few MiB.

Everything comes from Debian 12 packages: linux-source-6.1 (downloaded, not installed), flex, bison, bc, libelf-dev,
libssl-dev, dwarves, dwz, gcc, libc6-dev, make, xz-utils, busybox-static, qemu-system-x86, makedumpfile. It needs no
root rights.

    sample/build.py --work DIR                  all steps, about 15 minutes on two cores
    sample/build.py --work DIR boot pack        only these steps, on what earlier ones left in DIR

The steps, in order:

    source   DIR/linux-source-6.1: Debian's kernel source, as it is
    kernel   vmlinux, bzImage, modules from allnoconfig and kernel.config; the two modules of guest/
    guest    the guest's programs and its two initramfs archives, one for each kernel
    boot     the first kernel runs guest/init, which crashes it; the crash kernel copies /proc/vmcore to a disk
    pack     demo.tar.xz with vmlinux (reduced), vmcore (makedumpfile), modules; truth/; SHA256SUMS of both

A new run gives an equally good dump, not the same bytes: addresses are randomised and time passes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "linux-source-6.1"
# Where the debug information says that the sources are, instead of the directory that this script was run in.
KERNEL_SOURCES = f"/usr/src/{PACKAGE}"
GUEST_SOURCES = "/usr/src/kvm-dbg-demo/guest"
MODULES = ("drivers/block/loop.ko", "fs/binfmt_misc.ko", "guest/shelf.ko", "guest/shelf_proc.ko")
ZOO = ("as", "catalogue", "clerk", "counter", "doorman", "librarian", "load-crash-kernel", "notes", "painter", "parent")
# The objects that keep their debug information: what a backtrace of the demo goes through, and the core's types.
# With all of it the kernel would need 10 MiB more, compressed.
DEBUGGED = re.compile(
    r"init/|ipc/|kernel/(sched|printk|locking|futex|module)/|kernel/[^/]+$|kernel/(rcu/tree|time/(hrtimer|timekeeping|timer))\."
    r"|arch/x86/entry/|arch/x86/kernel/[^/]+$|arch/x86/mm/fault\.|lib/(idr|maple_tree|radix-tree|xarray)\."
    r"|mm/(filemap|memory|mmap|page_alloc|percpu|shmem|slab_common|slub|util|vmalloc)\."
    r"|fs/(dcache|eventpoll|exec|file|file_table|fs_struct|inode|namei|namespace|open|pipe|read_write|select)\."
    r"|fs/(seq_file|signalfd|super|timerfd)\.|fs/proc/(array|base|generic|inode)\."
    r"|net/(socket|core/sock|netlink/af_netlink|unix/af_unix)\.|drivers/tty/(n_tty|pty|tty_io)\."
)
# Column numbers and location views make debug information half as big again, and no debugger here shows them.
DEBUG_FLAGS = "-gno-column-info -gno-statement-frontiers -gno-variable-location-views"
# Drop zero pages (1), the page cache (2, 4) and free pages (16); keep the processes' own (8): arguments are there.
DUMP_LEVEL = 23
SIZE_LIMIT = 8 << 20
BOOT_TIMEOUT = 300  # seconds; QEMU's software emulation needs about 100


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command, show it, stop the script if it fails."""
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def make_source(work: Path) -> None:
    """Download and unpack Debian's kernel source package."""
    run("apt-get", "download", PACKAGE, cwd=work)
    (package,) = work.glob(f"{PACKAGE}_*.deb")
    run("dpkg-deb", "-x", package, work / "package")
    run("tar", "-xf", work / "package/usr/src" / f"{PACKAGE}.tar.xz", cwd=work)


def make_kernel(work: Path) -> None:
    """Build the kernel, its modules and those of guest/, and keep this machine's paths out of the debug information."""
    tree = work / PACKAGE
    flags = f"-ffile-prefix-map={tree}={KERNEL_SOURCES}"
    guest_flags = f"{DEBUG_FLAGS} {flags} -ffile-prefix-map={work / 'guest'}={GUEST_SOURCES}"
    make = [
        "nice",
        "make",
        "-s",
        f"-j{min(2, os.cpu_count() or 1)}",
        "KBUILD_BUILD_USER=kvm_dbg",
        "KBUILD_BUILD_HOST=demo",
    ]
    make += ["KBUILD_BUILD_VERSION=1", "KBUILD_BUILD_TIMESTAMP=2026-11-23 00:00 UTC"]
    run("make", "-s", f"KCONFIG_ALLCONFIG={HERE / 'kernel.config'}", "allnoconfig", cwd=tree)
    config = (tree / ".config").read_text().splitlines()
    wanted = [line for line in (HERE / "kernel.config").read_text().splitlines() if line.startswith("CONFIG_")]
    if lost := [line for line in wanted if line not in config]:
        sys.exit(f"build.py: the kernel's configuration does not accept {lost}")
    kernel = [*make, f"KCFLAGS={DEBUG_FLAGS} {flags}", f"KAFLAGS={flags}"]
    run(*kernel, "vmlinux", cwd=tree)
    drop_debug_information(tree)
    run(*kernel, "bzImage", "modules", cwd=tree)
    shutil.rmtree(work / "guest", ignore_errors=True)
    shutil.copytree(HERE / "guest", work / "guest")
    run(*make, f"KCFLAGS={guest_flags}", f"M={work / 'guest'}", "modules", cwd=tree)


def drop_debug_information(tree: Path) -> None:
    """Strip the objects of a linked kernel that DEBUGGED does not name; the next make links it again."""
    members = subprocess.run(
        ["ar", "t", "vmlinux.a"], cwd=tree, check=True, capture_output=True, text=True
    ).stdout.split()
    stripped = [member for member in members if not DEBUGGED.match(member)]
    print(f"+ strip --strip-debug: {len(stripped)} of {len(members)} objects", flush=True)
    subprocess.run(["strip", "--strip-debug", *stripped], cwd=tree, check=True)


def pack_initramfs(work: Path, name: str, files: list[tuple[str, Path]], links: list[tuple[str, str]]) -> None:
    """Write one initramfs archive with the kernel's gen_init_cpio, which can make device nodes without root rights."""
    lines = [
        f"dir /{path} 755 0 0"
        for path in ("bin", "boot", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys", "tmp")
    ]
    lines += ["nod /dev/console 600 0 0 c 5 1"]
    lines += [f"file {path} {source} {oct(source.stat().st_mode & 0o777)[2:]} 0 0" for path, source in files]
    lines += [f"slink {path} {target} 777 0 0" for path, target in links]
    (work / f"{name}.list").write_text("\n".join(lines) + "\n")
    print(f"+ gen_init_cpio {name}.list > {name}", flush=True)
    with open(work / name, "wb") as archive:
        subprocess.run(
            [str(work / PACKAGE / "usr/gen_init_cpio"), str(work / f"{name}.list")], stdout=archive, check=True
        )


def make_guest(work: Path) -> None:
    """Compile the zoo and pack both initramfs archives: the crash kernel's lies inside the first kernel's."""
    run("gcc", "-O2", "-Wall", "-Wextra", "-static", "-pthread", "-s", "-o", work / "zoo", HERE / "guest/zoo.c")
    busybox = shutil.which("busybox") or sys.exit("build.py: no busybox; install busybox-static")
    (work / "passwd").write_text(
        "".join(
            f"{name}:x:{uid}:{uid}::/:/bin/sh\n"
            for name, uid in (("root", 0), ("alice", 1000), ("bob", 1001), ("carol", 1002))
        )
    )
    (work / "group").write_text(
        "".join(f"{name}:x:{gid}:\n" for name, gid in (("root", 0), ("alice", 1000), ("bob", 1001), ("carol", 1002)))
    )
    files = [("/init", HERE / "guest/init"), ("/bin/busybox", Path(busybox))]
    pack_initramfs(work, "crash-initrd", files, [])
    files += [("/bin/zoo", work / "zoo"), ("/etc/passwd", work / "passwd"), ("/etc/group", work / "group")]
    files += [("/boot/bzImage", work / PACKAGE / "arch/x86/boot/bzImage"), ("/boot/initrd", work / "crash-initrd")]
    for module in MODULES:
        target = work / f"stripped-{Path(module).name}"
        run("strip", "--strip-debug", "-o", target, find_module(work, module))
        files.append((f"/lib/modules/{Path(module).name}", target))
    pack_initramfs(work, "initrd", files, [(f"/bin/{name}", "zoo") for name in ZOO])


def find_module(work: Path, module: str) -> Path:
    """Return where the build left a module: guest/ lies beside the kernel's tree, all others in it."""
    return work / module if module.startswith("guest/") else work / PACKAGE / module


def make_boot(work: Path) -> None:
    """Boot, crash, and cut what the crash kernel copied and the truth out of the two disks."""
    for disk, size in (("vmcore.disk", 128 << 20), ("truth.disk", 16 << 20)):
        with open(work / disk, "wb") as file:
            file.truncate(size)
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-machine",
        "microvm,acpi=off,rtc=on",
        "-smp",
        "2",
        "-m",
        "128M",
        "-no-reboot",
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        f"file:{work / 'console'}",
        "-kernel",
        str(work / PACKAGE / "arch/x86/boot/bzImage"),
        "-initrd",
        str(work / "initrd"),
        "-append",
        "console=ttyS0 reboot=t tsc=reliable crashkernel=32M demo=bookshop",
    ]
    for disk in ("vmcore", "truth"):
        command += ["-drive", f"id={disk},file={work / disk}.disk,format=raw,if=none"]
        command += ["-device", f"virtio-blk-device,serial={disk},drive={disk}"]
    print("+", *command, flush=True)
    subprocess.run(command, check=True, timeout=BOOT_TIMEOUT)
    console = (work / "console").read_text(errors="replace")
    copied = re.search(r"demo: vmcore of (\d+) bytes", console)
    if not copied:
        sys.exit(
            f"build.py: no vmcore; see {work / 'console'} (KASLR may have left no room for the crash kernel: try again)"
        )
    os.truncate(work / "vmcore.disk", int(copied[1]))
    shutil.rmtree(work / "truth", ignore_errors=True)
    (work / "truth").mkdir()
    run("tar", "-xf", work / "truth.disk", "-C", work / "truth")


def strings(path: Path) -> list[str]:
    """Return the NUL-terminated strings of a file such as /proc/PID/cmdline."""
    parts = path.read_bytes().decode().split("\0")
    return parts if parts[-1] else parts[:-1]


def pack_truth(work: Path) -> None:
    """Copy the truth, the processes' many files as one processes.json, the console up to the crash kernel's start."""
    truth = HERE / "truth"
    shutil.rmtree(truth, ignore_errors=True)
    truth.mkdir()
    for path in sorted((work / "truth").iterdir()):
        if path.is_file():
            shutil.copy(path, truth / path.name)
    processes: dict[str, dict[str, object]] = {}
    for folder in sorted((work / "truth/processes").iterdir(), key=lambda folder: int(folder.name)):
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        processes[folder.name] = {
            "status": {key: value.strip() for key, value in status.items()},
            "cmdline": strings(folder / "cmdline"),
            "environ": strings(folder / "environ"),
            "stat": (folder / "stat").read_text().strip(),
            "threads": (folder / "threads").read_text().splitlines(),
            "statm": (folder / "statm").read_text().strip(),
            "maps": (folder / "maps").read_text().splitlines(),
            "fd": re.findall(r"(\d+) -> (.*)", (folder / "fd").read_text()),
        }
    (truth / "processes.json").write_text(json.dumps(processes, indent=1, ensure_ascii=False) + "\n")
    shutil.copy(work / PACKAGE / ".config", truth / "config")
    console = (work / "console").read_text(errors="replace").replace("\r", "")
    end = console.index("Linux version", console.index("Linux version") + 1)
    (truth / "console").write_text(console[: console.rindex("\n", 0, end) + 1])


def sha256(path: Path, name: str) -> str:
    """Return one line as sha256sum writes it."""
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an archive member say nothing about this machine."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def make_pack(work: Path) -> None:
    """Write what ships into this directory, with checksums; refuse what is too big.

    vmlinux and vmcore go into one archive, the dump with its pages as they are: both hold the same kernel, and xz
    finds most of it twice. That saves 2 MiB against two compressed files.
    """
    unpacked = work / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    (unpacked / "modules").mkdir(parents=True)
    # Relocations are of no use in a linked kernel, and a third of its size; dwz keeps one copy of each type.
    run("objcopy", "--remove-relocations=*", work / PACKAGE / "vmlinux", unpacked / "vmlinux")
    run("dwz", unpacked / "vmlinux")
    for module in MODULES:
        shutil.copy(find_module(work, module), unpacked / "modules")
    run("makedumpfile", "--message-level", "0", "-d", str(DUMP_LEVEL), work / "vmcore.disk", unpacked / "vmcore")
    contents = [path for path in sorted(unpacked.rglob("*")) if path.is_file()]
    (HERE / "UNPACKED.SHA256SUMS").write_text(
        "".join(sha256(path, str(path.relative_to(unpacked))) for path in contents)
    )
    with tarfile.open(work / "demo.tar", "w") as archive:
        for name in ("vmlinux", "vmcore", "modules"):
            archive.add(unpacked / name, name, filter=without_owner)
    run("xz", "-9e", "--force", "--keep", work / "demo.tar")
    shutil.copy(work / "demo.tar.xz", HERE)
    pack_truth(work)
    shipped = [HERE / "demo.tar.xz", *sorted((HERE / "truth").iterdir())]
    (HERE / "SHA256SUMS").write_text("".join(sha256(path, str(path.relative_to(HERE))) for path in shipped))
    for path in (*contents, *shipped):
        print(f"{path.stat().st_size:10} {path}")
    size = sum(path.stat().st_size for path in shipped)
    if size > SIZE_LIMIT:
        sys.exit(f"build.py: {size} bytes are more than the {SIZE_LIMIT} that may ship")


STEPS = {"source": make_source, "kernel": make_kernel, "guest": make_guest, "boot": make_boot, "pack": make_pack}


def main() -> None:
    """Run the steps that the command line names, all of them by default, in order."""
    parser = argparse.ArgumentParser(description="Make the demo's dump again (see the top of this file).")
    parser.add_argument("--work", type=Path, required=True, help="directory for sources and objects, about 3 GiB")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"some of: {' '.join(STEPS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        if name in arguments.steps or not arguments.steps:
            step(work)


if __name__ == "__main__":
    main()
