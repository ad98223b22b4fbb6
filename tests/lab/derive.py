"""The dump files that makedumpfile writes: on the host from QEMU's ELF file, in the crash kernel from /proc/vmcore."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.guest import find_program
from tests.lab.qemu import copy_sparse, dig_holes

_HOST_DUMPS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("zlib-d31", "kdump", 31, ("-c",)),
    ("lzo-d31", "kdump", 31, ("-l",)),
    ("snappy-flag-d31", "kdump", 31, ("-p",)),
    ("zstd-flag-d31", "kdump", 31, ("-z",)),
    ("raw-d31", "kdump", 31, ()),
    ("zlib-d0", "kdump", 0, ("-c",)),
    ("lzo-d0", "kdump", 0, ("-l",)),
    ("raw-d0", "kdump", 0, ()),
    ("elf-d31", "elf", 31, ("-E",)),
)
"""Kind, form, dump level and options of makedumpfile on the host.

Debian builds makedumpfile without snappy and zstd: asked for them it leaves all pages uncompressed and still says so in
the header.  Such files are kept, under names that do not promise compression.
"""
_HOST_STREAMS = (("flattened-lzo-d31", "flattened-kdump", "-l"), ("flattened-elf-d31", "flattened-elf", "-E"))
"""Kind, form and option of those that makedumpfile writes to a pipe, level 31."""
_SPLIT = ("--split", "--splitblock-size", "16384")
"""Blocks of 16 MiB: with the usual 1 GiB the first part would hold everything."""
_CUT = ("elf", "lzo-d31", "zlib-d0", "flattened-lzo-d31", "qemu-kdump-zlib")
_CUT_PERCENT = 60
_GUEST_DUMPS: dict[str, tuple[str, int | None, str]] = {
    "vmcore": ("elf", None, ""),
    "zlib-d31": ("kdump", 31, ""),
    "lzo-d31": ("kdump", 31, ""),
    "lzo-d0": ("kdump", 0, ""),
    "zstd-d31": ("kdump", 31, ""),
    "raw-d31": ("kdump", 31, ""),
    "elf-d31": ("elf", 31, ""),
    "split-lzo-d1": ("kdump", 1, ""),
    "flattened-zlib-d31": ("flattened-kdump", 31, ""),
    "incomplete-lzo-d31": ("kdump", 31, "the disk was full"),
}
"""Form, dump level and damage of what guest/crash.sh writes."""


class FileList:
    """The dump files of a scenario as they come to be, and those that did not."""

    def __init__(self, work: Path, report: Callable[[str], None]) -> None:
        """Start an empty list of files in the directory `work`."""
        self.work = work
        self.entries: list[dict[str, object]] = []
        """As in manifest.json: kind, names, form, level, damage."""
        self.refused: dict[str, str] = {}
        """Kind to the words of the program that did not make it."""
        self._report = report

    def add(self, kind: str, form: str, level: int | None = None, damage: str = "", names: Sequence[str] = ()) -> None:
        """Note a file, or the files `names` if it has parts."""
        self.entries.append({"kind": kind, "names": names or [kind], "form": form, "level": level, "damage": damage})

    def refuse(self, kind: str, why: str) -> None:
        """Note that a file could not be made."""
        lines = why.strip().splitlines() or ["no reason given"]
        self.refused[kind] = "\n".join(lines[-4:])
        self._report(f"no {kind}: {lines[-1]}")

    def cut(self, kinds: Sequence[str], percent: int) -> None:
        """Add cut copies of the `kinds` that there are: their first `percent` percent."""
        for entry in [entry for entry in self.entries if entry["kind"] in kinds]:
            whole = self.work / str(entry["kind"])
            cut = self.work / f"cut-{whole.name}"
            shutil.copy(whole, cut)
            with cut.open("r+b") as file:
                file.truncate(whole.stat().st_size * percent // 100)
            dig_holes(cut)
            self.entries.append({**entry, "kind": cut.name, "names": [cut.name], "damage": f"cut at {percent} percent"})


def derive_on_host(files: FileList, scratch: Path) -> None:
    """Let makedumpfile make its formats from the file "elf", and cut some."""
    work = files.work
    source = scratch / "plain-elf"
    shutil.copy(work / "elf", source)
    move_program_headers(source)
    for kind, form, level, options in _HOST_DUMPS:
        if _makedumpfile(files, kind, [*options, "-d", str(level), str(source), str(work / kind)]):
            files.add(kind, form, level)
    parts = [f"split-zlib-d1.{number}" for number in (1, 2, 3)]
    targets = [str(work / part) for part in parts]
    if _makedumpfile(files, "split-zlib-d1", ["-c", "-d", "1", *_SPLIT, str(source), *targets]):
        files.add("split-zlib-d1", "kdump", 1, names=parts)
    for kind, form, option in _HOST_STREAMS:
        with (work / kind).open("wb") as out:
            if _makedumpfile(files, kind, [option, "-F", "-d", "31", str(source)], out.fileno()):
                files.add(kind, form, 31)
    files.cut(_CUT, _CUT_PERCENT)


def collect_from_guest(files: FileList, out: Path, too_new: bool) -> None:
    """Take what guest/crash.sh wrote from the directory `out`, the contents of its disk.

    `too_new` says that makedumpfile does not know the kernel (Kernel.too_new).
    """
    shutil.copy(out / "steps", files.work / "steps")
    if (out / "dmesg").exists():
        shutil.copy(out / "dmesg", files.work / "makedumpfile-dmesg")
    for line in (out / "steps").read_text().splitlines():
        kind, status = line.split()[:2]
        log = out / f"{kind}.log"
        words = log.read_text(errors="replace") if log.exists() else f"status {status}"
        if kind in _GUEST_DUMPS and (status == "0" or _GUEST_DUMPS[kind][2]):
            form, level, damage = _GUEST_DUMPS[kind]
            if level == 31 and too_new:
                damage = "makedumpfile does not know this kernel and left out pages that it had to keep"
            pattern = re.compile(re.escape(kind) + r"(\.\d)?")
            names = sorted(path.name for path in out.iterdir() if pattern.fullmatch(path.name))
            for name in names:
                with (out / name).open("rb") as source, (files.work / name).open("wb") as target:
                    copy_sparse(source, target)
            files.add(kind, form, level, damage, names)
        elif status != "0":
            files.refuse(kind, words)


def move_program_headers(path: Path) -> None:
    """Rewrite the head of one of QEMU's ELF files in place so that makedumpfile accepts it.

    QEMU puts the section headers between the ELF header and the program headers and gives the ELF header 8 bytes;
    makedumpfile looks for the program headers right after the ELF header.  Everything else stays at its offset.
    """
    with path.open("r+b") as file:
        head = bytearray(file.read(64))
        (start,) = struct.unpack_from("<Q", head, 32)
        entry_size, count = struct.unpack_from("<HH", head, 54)
        file.seek(start)
        headers = file.read(entry_size * count)
        struct.pack_into("<QQ", head, 32, 64, 0)
        struct.pack_into("<HHHHHH", head, 52, 64, entry_size, count, 0, 0, 0)
        file.seek(0)
        file.write(bytes(head) + headers)


def _makedumpfile(files: FileList, kind: str, arguments: list[str], out: int | None = None) -> bool:
    """Run makedumpfile; if it fails, note why and remove what it left."""
    command = [str(find_program("makedumpfile")), "--message-level", "4", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE if out is None else out, stderr=subprocess.PIPE)
    made = list(files.work.glob(f"{kind}*"))
    if result.returncode == 0:
        for path in made:
            path.chmod(0o644)
            dig_holes(path)
        return True
    files.refuse(kind, ((result.stdout or b"") + result.stderr).decode(errors="replace"))
    for path in made:
        path.unlink()
    return False
