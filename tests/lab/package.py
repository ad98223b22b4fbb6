"""Fetch and unpack Debian's kernel packages, of this release or another, without touching the system's apt.

Each kernel has an apt state of its own (sources, lists, cache) that names only its suites.  The archive's addresses and
keyring are those that the system's own apt uses, so a local mirror is respected.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import cache
from tests.lab.guest import SEARCH, find_modules
from tests.lab.scenario import Kernel, LabError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "makedumpfile": "makedumpfile",
    "kexec": "kexec-tools",
    "busybox": "busybox-static",
    "gcc": "gcc",
    "nm": "binutils",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "fallocate": "util-linux",
    "setpriv": "util-linux",
    "dmesg": "util-linux",
    "ps": "procps",
    "xz": "xz-utils",
    "ldd": "libc-bin",
}
"""The programs that the lab runs or puts into guests, and the packages that they come in (libc6-dev comes with gcc)."""

MODULES = ("virtio_pci", "virtio_blk", "qemu_fw_cfg", "loop", "dummy", "xfs", "tun", "nf_nat", "vfat", "nls_utf8")
"""Modules that the guest loads, beside those that they need.  The first three carry the lab itself."""


@dataclass(frozen=True)
class KernelFiles:
    """An unpacked kernel: absolute paths, and what it says of itself."""

    release: str
    version: str
    """Debian's version of the package."""
    vmlinuz: Path
    vmlinux: Path
    modules: Path
    """Holds the .ko files as installed, in the tree of the package."""
    debug: Path
    """Root of debug files: holds lib/modules/RELEASE/... of those modules that the guests load."""
    tools: Path
    """Root of an unpacked makedumpfile and its libraries, of the same Debian release as the kernel."""


def find_missing_tools() -> dict[str, str]:
    """Return the programs that are not installed, with the package of each."""
    return {tool: package for tool, package in TOOLS.items() if shutil.which(tool, path=SEARCH) is None}


def check_tools() -> None:
    """Raise LabError, with the command that installs them, if programs are missing."""
    missing = find_missing_tools()
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LabError(
            f"missing programs: {', '.join(missing)}; as root run `python -m tests.lab install` ({packages})"
        )


def find_mirrors() -> tuple[str, str]:
    """Return the addresses of Debian's archive and of its security archive, as the system's apt has them."""
    output = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"])
    main = security = ""
    for line in output.splitlines():
        address, _, label = line.partition(" ")
        if label == "Debian-Security":
            security = security or address
        elif label == "Debian":
            main = main or address
    if not main:
        raise LabError("apt knows no Debian archive: run apt-get update (is there a sources list?)")
    return main, security


@functools.cache
def kernel_key(kernel: Kernel) -> str:
    """Return the digest of all that decides what obtain_kernel() fetches, but for the day it is done."""
    return cache.digest(kernel, MODULES, cache.digest_source(Path(__file__)))


def obtain_kernel(root: Path, kernel: Kernel) -> KernelFiles:
    """Return the unpacked kernel, fetching it if the cache has none."""
    entry = cache.obtain(root, "kernels", kernel.name, kernel_key(kernel), lambda work: _fetch(kernel, work))
    facts = json.loads((entry / "kernel.json").read_text())
    paths = (entry / facts[name] for name in ("vmlinuz", "vmlinux", "modules", "debug", "tools"))
    return KernelFiles(facts["release"], facts["version"], *paths)


def _run(command: list[str], cwd: Path | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stderr.strip()}")
    return result.stdout


def _prepare_apt(kernel: Kernel, state: Path) -> list[str]:
    """Make an apt state below `state` for the kernel's suites; return the options that select it."""
    main, security = find_mirrors()
    for name in (
        "etc/apt/sources.list.d",
        "etc/apt/preferences.d",
        "etc/apt/apt.conf.d",
        "etc/apt/trusted.gpg.d",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ):
        (state / name).mkdir(parents=True)
    lines = []
    for suite in kernel.suites:
        address = security if suite.endswith("-security") else main
        if address:
            lines.append(f"deb [arch=amd64 signed-by={KEYRING}] {address} {suite} main\n")
    (state / "etc/apt/sources.list").write_text("".join(lines))
    options = [
        "-o",
        f"Dir={state}",
        "-o",
        "Dir::State::status=/dev/null",
        "-o",
        "APT::Architecture=amd64",
        "-o",
        "APT::Sandbox::User=root",
        "-o",
        "Acquire::Languages=none",
        "-o",
        f"APT::Default-Release={kernel.target}",
    ]
    _run(["apt-get", *options, "-q", "update"])
    return options


def _find_dependency(options: list[str], package: str, suffix: str) -> str:
    """Return the one versioned package that the meta package `package` stands for."""
    record = _run(["apt-cache", *options, "show", "--no-all-versions", package])
    match = re.search(r"^Depends: .*?(linux-image-[0-9]\S*?" + suffix + r")(?:[ ,]|$)", record, re.MULTILINE)
    if not match:
        raise LabError(f"package {package} depends on no kernel: {record}")
    return match[1]


def _find_parts(options: list[str], image: str, release: str) -> list[str]:
    """Return the packages that hold the image and the modules where Debian has split them off (from Linux 7.2 on)."""
    record = _run(["apt-cache", *options, "show", "--no-all-versions", image])
    return re.findall(r"\blinux-(?:binary|modules)-" + re.escape(release) + r"(?=[ ,])", record)


def _find_first(root: Path, *names: str) -> Path:
    """Return the first of `names` that exists below `root`."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise LabError(f"the kernel's packages hold none of {', '.join(names)}: has Debian moved it?")


def _fetch(kernel: Kernel, work: Path) -> None:
    state = work / "apt"
    options = _prepare_apt(kernel, state)
    image = _find_dependency(options, kernel.package, "cloud-amd64")
    release = image.removeprefix("linux-image-")
    debs = work / "debs"
    debs.mkdir()
    packages = [image, *_find_parts(options, image, release)]
    _run(["apt-get", *options, "-q", "download", f"{image}-dbg", *packages], cwd=debs)
    (debug_deb,) = debs.glob("*-dbg_*.deb")
    version = _run(["dpkg-deb", "-f", str(debug_deb), "Version"]).strip()

    (work / "image").mkdir()
    for deb in debs.glob("*.deb"):
        if deb != debug_deb:
            _run(["dpkg-deb", "-x", str(deb), str(work / "image")])
    modules = _find_first(work, "image/lib/modules", "image/usr/lib/modules")
    wanted = [path.name.partition(".")[0] + ".ko" for path in find_modules(modules, MODULES)]
    debug = work / "debug"
    debug.mkdir()
    patterns = [f"*/vmlinux-{release}", f"*/{release}/vmlinux", *(f"*/{name}*" for name in wanted)]
    archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(debug_deb)], stdout=subprocess.PIPE)
    _extract(archive, patterns, debug)
    vmlinux = _find_first(debug, f"usr/lib/debug/boot/vmlinux-{release}", f"usr/lib/debug/vmlinux-{release}")
    vmlinuz = _find_first(work, f"image/boot/vmlinuz-{release}", f"image/usr/lib/modules/{release}/vmlinuz")
    tools = work / "tools"
    _fetch_makedumpfile(options, tools)
    shutil.rmtree(debs)
    shutil.rmtree(state)
    paths = {
        "vmlinuz": vmlinuz,
        "vmlinux": vmlinux,
        "modules": modules,
        "debug": debug / "usr/lib/debug",
        "tools": tools,
    }
    facts: dict[str, object] = {name: str(path.relative_to(work)) for name, path in paths.items()}
    facts |= {"release": release, "version": version, "package": image, "kernel": asdict(kernel)}
    (work / "kernel.json").write_text(json.dumps(facts, indent=1))


def _fetch_makedumpfile(options: list[str], tools: Path) -> None:
    """Unpack the makedumpfile of the kernel's own suite, and the libraries that it needs, below `tools`.

    A makedumpfile that is older than the kernel leaves out pages that it must keep.
    """
    plan = _run(["apt-get", *options, "-s", "--no-install-recommends", "install", "makedumpfile"])
    names = re.findall(r"^Inst ((?:makedumpfile|lib|zlib)\S*)", plan, re.MULTILINE)
    debs = tools / "debs"
    debs.mkdir(parents=True)
    _run(["apt-get", *options, "-q", "download", *(name for name in names if "perl" not in name)], cwd=debs)
    for deb in debs.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(deb), str(tools)])
    shutil.rmtree(debs)


def _extract(archive: subprocess.Popen[bytes], patterns: list[str], out: Path) -> None:
    """Unpack those files of a tar stream that match `patterns`."""
    # tar exits with 2 when a pattern matches nothing: a module may have no debug file; what we need is checked after
    subprocess.run(["tar", "-x", "-C", str(out), "--wildcards", *patterns], stdin=archive.stdout, capture_output=True)
    if archive.stdout:
        archive.stdout.close()
    if archive.wait():
        raise LabError("dpkg-deb --fsys-tarfile failed: is the disk full?")
