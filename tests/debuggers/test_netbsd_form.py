"""gdb on the real memory of a NetBSD guest as QEMU dumps it, without any kernel file: CPUs, threads, stacks, symbols.

Everything is in the memory and the notes but types, which a layout file has.
"""

from __future__ import annotations

import re
from pathlib import Path

from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel
from tests.debuggers.conftest import SOURCE
from tests.debuggers.driver import Gdb
from tests.debuggers.test_netbsd import LWPS, STACK
from tests.golden.rewrap import Memory, write_qemu_elf
from tests.golden.test_netbsd_form import notes
from tests.shared import shared_data, unpack


def test_gdb_shows_cpus_threads_and_stacks(real: Gdb, tmp_path: Path) -> None:
    data = shared_data("netbsd")
    layout = data / "layout.json"
    core, names = unpack(data / "netbsd.0.core.zst", tmp_path), unpack(data / "netbsd.0.zst", tmp_path)
    (tmp_path / "guest").mkdir()  # no name list is beside the dump
    with open_image(core) as image:
        kernel = open_kernel(image, str(names), layout=str(layout))
        allproc, idle = kernel.symbols.address("allproc"), kernel.symbols.address("x86_cpu_idle_halt")
        path = write_qemu_elf(Memory(image), tmp_path / "guest" / "guest.elf", notes(kernel, "qemu-elf-cr3"))
    choose = "python next(t for t in gdb.selected_inferior().threads() if t.ptid[1] == {}).switch()"
    result = real.run(
        [
            SOURCE, f"kvm open {path} --layout {layout}", "info threads", "bt", choose.format(19), "bt", "echo ---\\n",
            "p/x (long) &allproc", choose.format(1500000), "p/x $pc", "kvm sys",
        ]
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "no vmlinux was found" in result.stderr + result.stdout
    assert len(re.findall(r"^[* ] +\d+ +Thread \d+ ", result.stdout, re.M)) == LWPS
    assert re.search(r'^\* 1 +Thread 99 "reboot/99\.1" \(.*on CPU 0.*in cpu_reboot \(\)', result.stdout, re.M)
    assert re.search(r'^  2 +Thread 1500000 "idle/1/0\.15" \(.*on CPU 1.*in x86_cpu_idle_halt', result.stdout, re.M)
    stacks, values = result.stdout.split("---")
    frames = re.findall(r"^#\d+ .* in (\w+) \(\)", stacks, re.M)
    assert frames == ["cpu_reboot", "sys_reboot", "syscall", "do_syscall", "mi_switch", *STACK, "do_syscall"]
    assert re.findall(r"= (0x\w+)", values) == [hex(allproc), hex(idle)]
    assert re.search(r"release: 6\.99\.16", values)
