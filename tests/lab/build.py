"""Make a scenario's dump: build the guest, boot it, take the dump, keep the truth, write the manifest."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.lab import cache
from tests.lab.derive import FileList, collect_from_guest, derive_on_host
from tests.lab.dump import Dump, Truth
from tests.lab.gdbstub import Gdbstub
from tests.lab.guest import SOURCES, compile_programs, find_program, write_crash_initramfs, write_initramfs
from tests.lab.package import MODULES, KernelFiles, check_tools, kernel_key, obtain_kernel
from tests.lab.qemu import FOUR_GIB, Machine, dig_holes, split_memory
from tests.lab.scenario import (
    CATCHES,
    GuestDiedError,
    LabError,
    Scenario,
    Take,
    Trigger,
    find_catch,
    find_kernel,
    find_scenario,
)

Report = Callable[[str], None]

ATTEMPTS = 3
_TRUTH_DISK = 256 << 20
_SECOND_TRUTH = 128 << 20
_BOOT_TIMEOUT = 600
_DUMP_TIMEOUT = 1200
_CODE = ("build.py", "cpio.py", "derive.py", "gdbstub.py", "guest.py", "qemu.py")
_KERNEL_MAP = 0xFFFFFFFF80000000


def _say_nothing(_text: str) -> None:
    """Report to nobody."""


@functools.cache
def _code_key() -> str:
    """Return a digest of what makes and fills the guests, as it was when first asked."""
    here = Path(__file__).parent
    code = cache.digest_source(*(here / name for name in _CODE))
    return cache.digest(code, CATCHES, *sorted(SOURCES.iterdir()))


def _key(scenario: Scenario) -> str:
    return cache.digest(scenario, kernel_key(find_kernel(scenario.kernel)), _code_key())


def find(name: str) -> Dump | None:
    """Return the scenario's dump if the cache has it, made from the present inputs."""
    root = cache.find_root()
    path = root / "dumps" / f"{name}-{_key(find_scenario(name))}"
    if not path.is_dir():
        return None
    dump = Dump(path)
    return dump if dump.vmlinux.is_file() else None


def build(name: str, report: Report = _say_nothing) -> Dump:
    """Return the scenario's dump, making it (and fetching its kernel) if the cache has none.

    Raises LabError with what failed; nothing half-made is left behind.
    """
    scenario = find_scenario(name)
    root = cache.find_root().absolute()

    def make(work: Path) -> None:
        start = time.monotonic()
        check_tools()
        report(f"{name}: kernel {scenario.kernel}")
        kernel = obtain_kernel(root, find_kernel(scenario.kernel))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                Builder(scenario, kernel, root, work, report).run()
                break
            except GuestDiedError as error:  # QEMU's emulation now and then breaks code that the kernel patches
                if attempt == ATTEMPTS:
                    raise
                report(f"{error}; once more")
                for left in work.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        report(f"{name}: done in {time.monotonic() - start:.0f} s")

    key = _key(scenario)
    orphan = root / "dumps" / f"{name}-{key}"
    if orphan.is_dir() and find(name) is None:  # somebody has removed its kernel
        shutil.rmtree(orphan)
    return Dump(cache.obtain(root, "dumps", name, key, make))


class Builder:
    """The making of one dump in the directory `work`."""

    def __init__(self, scenario: Scenario, kernel: KernelFiles, root: Path, work: Path, report: Report) -> None:
        """Prepare; nothing happens before run()."""
        self._scenario, self._kernel, self._root, self._work, self._report = scenario, kernel, root, work, report
        self._scratch = work / "scratch"
        self._files = FileList(work, lambda text: report(f"{scenario.name}: {text}"))
        self._caught: list[dict[str, object]] = []
        self._said: list[str] = []

    def run(self) -> None:
        """Make everything."""
        self._scratch.mkdir()
        initramfs = self._scratch / "initrd"
        crash: tuple[Path, Path] | None = None
        if self._scenario.take is Take.KDUMP:
            crash = self._kernel.vmlinuz, self._scratch / "crash-initrd"
            write_crash_initramfs(crash[1], self._scratch, self._kernel.modules, self._kernel.tools)
        programs = self._work / "programs"
        compile_programs(programs)
        write_initramfs(initramfs, self._scratch, self._kernel.modules, MODULES, programs, crash)
        disks = [self._make_disk("truth.img", _TRUTH_DISK)]
        if crash:
            disks.append(self._make_disk("out.img", self._scenario.memory * 4 << 20))
            options = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0"]
            _run([str(find_program("mke2fs")), *options, str(disks[1])])
        with Machine(self._scenario, self._kernel.vmlinuz, initramfs, self._words(), disks, self._scratch) as machine:
            machine.wait_for("READY", _BOOT_TIMEOUT)
            self._report(f"{self._scenario.name}: guest ready")
            extract_tar(disks[0], 0, self._work / "truth.tar")
            self._take(machine)
            self._said = machine.said
        shutil.copy(machine.console, self._work / "console.log")
        if self._scenario.take is Take.PAUSED:
            extract_tar(disks[0], _SECOND_TRUTH, self._work / "truth-after.tar")
        if crash:
            self._collect(disks[1])
        if self._scenario.derived:
            derive_on_host(self._files, self._scratch)
        self._write_manifest()
        shutil.rmtree(self._scratch)

    def _make_disk(self, name: str, size: int) -> Path:
        disk = self._scratch / name
        with disk.open("wb") as file:
            file.truncate(size)
        return disk

    def _words(self) -> list[str]:
        scenario = self._scenario
        words = ["console=ttyS0", "ignore_loglevel", "printk.devkmsg=on"]
        if not scenario.kaslr:
            words.append("nokaslr")
        if scenario.noise:
            words.append(f"lab_noise={scenario.noise}")
        if scenario.take is Take.KDUMP:
            words += ["crashkernel=256M", "lab_kexec=1"]
        return [*words, *scenario.words]

    # ---- taking ----

    def _take(self, machine: Machine) -> None:
        if self._scenario.take is Take.PAUSED:
            machine.execute("stop")
            self._dump_from_outside(machine)
            machine.execute("cont")
            machine.send("again")
            machine.wait_for("READY", _BOOT_TIMEOUT)
            self._take_caught(machine)
        elif self._scenario.take is Take.PANIC:
            self._panic(machine)
            machine.wait_for_console(b"end Kernel panic", _BOOT_TIMEOUT)
            machine.execute("stop")
            self._dump_from_outside(machine)
        else:
            machine.send("panic")
            answer = machine.wait_for("DUMPED", _DUMP_TIMEOUT)
            if answer != "DUMPED 0":
                console = machine.console.read_text(errors="replace")[-1500:]
                raise LabError(f"{self._scenario.name}: crash.sh failed with {answer}: {console}")

    def _panic(self, machine: Machine) -> None:
        """Pull the scenario's trigger where it shall be pulled."""
        scenario, stub = self._scenario, None
        if scenario.at:
            stub = self._set_to_work(machine)
            self._run_to(machine, stub, scenario.at)
        if scenario.trigger is Trigger.PROCESS:
            machine.send("panic")
        elif scenario.trigger is Trigger.INTERRUPT:
            machine.press_sysrq("c")
        else:
            machine.execute("inject-nmi")
        if stub is not None:
            stub.leave()

    def _take_caught(self, machine: Machine) -> None:
        """Dump the guest at each of the scenario's catches."""
        if not self._scenario.catches:
            return
        stub = self._set_to_work(machine)
        for name in self._scenario.catches:
            registers = self._run_to(machine, stub, name)
            machine.dump(self._work / f"caught-{name}")
            self._caught.append({**asdict(find_catch(name)), "registers": registers})

    def _set_to_work(self, machine: Machine) -> Gdbstub:
        machine.send("toil")
        machine.wait_for("TOILING", _BOOT_TIMEOUT)
        return machine.attach()

    def _run_to(self, machine: Machine, stub: Gdbstub, name: str) -> dict[str, int]:
        catch = find_catch(name)
        if catch.nmi_at:
            self._run_to(machine, stub, catch.nmi_at)
            machine.execute("inject-nmi")
        return stub.run_to(catch, self._symbols[catch.function])

    @functools.cached_property
    def _symbols(self) -> dict[str, int]:
        return Truth(self._work / "truth.tar").symbols

    def _dump_from_outside(self, machine: Machine) -> None:
        formats = machine.find_formats()
        machine.dump(self._work / "elf")
        self._files.add("elf", "elf")
        for form in ("kdump-zlib", "kdump-lzo", "kdump-snappy"):
            if form in formats:
                machine.dump(self._work / f"qemu-{form}", form)
                self._files.add(f"qemu-{form}", "flattened-kdump")
        if self._scenario.take is Take.PANIC:
            return  # the other formats are the same whatever the kernel does
        machine.dump(self._work / "elf-paging", paging=True)
        self._files.add("elf-paging", "elf")
        low, high = split_memory(machine.memory)
        machine.save_memory(self._work / "raw", 0, low)
        self._files.add("raw", "raw")
        if high:
            self._add_memory_above(machine, low, high)

    def _add_memory_above(self, machine: Machine, low: int, high: int) -> None:
        """Make two raw files: RAM at its physical addresses, and RAM end to end as a memory-backend-file has it."""
        above = self._scratch / "above"
        machine.save_memory(above, FOUR_GIB, high)
        joined = self._work / "raw-joined"
        shutil.copy(self._work / "raw", joined)
        for path, offset in ((self._work / "raw", FOUR_GIB), (joined, low)):
            with above.open("rb") as source, path.open("r+b") as out:
                out.seek(offset)
                while block := source.read(1 << 16):
                    if block.count(0) == len(block):
                        out.seek(len(block), 1)
                    else:
                        out.write(block)
                out.truncate(offset + high)
            dig_holes(path)
        self._files.add("raw-joined", "raw")

    # ---- keeping ----

    def _collect(self, disk: Path) -> None:
        """Take what the crash kernel wrote off its disk."""
        out = self._scratch / "out"
        out.mkdir()
        _run([str(find_program("debugfs")), "-R", f"rdump / {out}", str(disk)])
        collect_from_guest(self._files, out, find_kernel(self._scenario.kernel).too_new)

    def _find_panic(self) -> dict[str, object] | None:
        """Return what the console says about the panic; None without one."""
        text = (self._work / "console.log").read_text(errors="replace")
        message = re.search(r"Kernel panic - not syncing: (.*)", text)
        place = re.search(r"CPU: (\d+) (?:UID: \d+ )?PID: (\d+) Comm: (\S+)", text)
        if self._scenario.take is Take.PAUSED or not message or not place:
            return None
        words = message[1].strip()
        return {"message": words, "cpu": int(place[1]), "pid": int(place[2]), "comm": place[3]}

    def _write_manifest(self) -> None:
        scenario, kernel = self._scenario, self._kernel
        truth = Truth(self._work / "truth.tar")
        slide = truth.symbols["_text"] - find_symbol(kernel.vmlinux, "_text")
        code = re.search(r"^ *([0-9a-f]+)-[0-9a-f]+ : Kernel code", truth.text("proc/iomem"), re.MULTILINE)
        if not code:
            raise LabError(f"{scenario.name}: /proc/iomem names no kernel code")
        kernel_root = self._root / "kernels"
        warnings = [line for line in self._said if line.startswith("WARN")]
        for line in warnings:
            self._report(f"{scenario.name}: {line}")
        manifest = {
            "name": scenario.name,
            "release": kernel.release,
            "version": kernel.version,
            "scenario": {**asdict(scenario), "take": scenario.take.value, "trigger": scenario.trigger.value},
            "levels": scenario.levels,
            "memory": scenario.memory << 20,
            "slide": slide,
            "phys_base": int(code[1], 16) - (truth.symbols["_text"] - _KERNEL_MAP),
            "command_line": truth.text("proc/cmdline").strip(),
            "panic": self._find_panic(),
            "files": self._files.entries,
            "caught": self._caught,
            "programs": "programs",
            "refused": self._files.refused,
            "warnings": warnings,
            "tools": find_versions(),
            "kernel_root": "../../kernels",
            "vmlinux": str(kernel.vmlinux.relative_to(kernel_root)),
            "modules": str(kernel.modules.relative_to(kernel_root)),
            "debug": str(kernel.debug.relative_to(kernel_root)),
        }
        (self._work / "manifest.json").write_text(json.dumps(manifest, indent=1))


def extract_tar(image: Path, offset: int, out: Path) -> None:
    """Copy the tar archive that starts at byte `offset` of a disk image to `out`.

    Raises LabError if there is no archive, or no end of it.
    """
    with image.open("rb") as file:
        file.seek(offset)
        size = 0
        while header := file.read(512):
            if header == bytes(512):
                break
            if header[257:262] != b"ustar":
                raise LabError(f"{image.name}: no tar header at offset {offset + size:#x}")
            size += 512 + (int(header[124:135], 8) + 511) // 512 * 512
            file.seek(offset + size)
        if not header or not size:
            raise LabError(f"{image.name}: the archive at offset {offset:#x} is empty or has no end")
        file.seek(offset)
        with out.open("wb") as target:
            target.write(file.read(size) + bytes(1024))


def find_symbol(vmlinux: Path, name: str) -> int:
    """Return the value of a symbol as vmlinux was linked.

    Raises LabError if it has none of that name.
    """
    for line in _run([str(find_program("nm")), str(vmlinux)]).splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == name:
            return int(fields[0], 16)
    raise LabError(f"{vmlinux}: no symbol {name}")


def find_versions() -> dict[str, str]:
    """Return the versions of the Debian packages that had a hand in the dump."""
    packages = ("qemu-system-x86", "makedumpfile", "kexec-tools", "busybox-static", "gcc", "procps", "util-linux")
    lines = _run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages]).splitlines()
    return {name: version for name, _, version in (line.partition(" ") for line in lines)}


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stderr.strip()}")
    return result.stdout
