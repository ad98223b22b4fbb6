"""The types that a kernel keeps of its modules are those in the modules' files, byte by byte."""

from __future__ import annotations

import pytest

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel import system_of
from tests.golden.subject import find_subject

KERNELS = ("deb12-4level", "deb13-4level", "bpo13-4level")  # with CONFIG_DEBUG_INFO_BTF_MODULES
FILES = {"xfs": "fs/xfs/xfs.ko", "tun": "drivers/net/tun.ko", "loop": "drivers/block/loop.ko"}


@pytest.mark.parametrize("name", [name + "-without-vmlinux" for name in KERNELS])
def test_every_byte_is_that_of_the_file(name: str) -> None:
    subject = find_subject(name)
    kernel = subject.kernel
    assert isinstance(kernel.types, BtfTypes)
    found = dict(system_of(kernel).for_each_module_types(kernel, kernel.types))
    assert set(found) == {line.split()[0] for line in subject.truth.text("proc/modules").splitlines()}
    folder = subject.dump.debug / "lib" / "modules" / subject.dump.release / "kernel"
    for module, path in FILES.items():
        with open_elf(folder / path) as file:
            section = file.find_section(".BTF")
            assert section is not None
            theirs = BtfTypes(bytes(file.section_data(section)), base=kernel.types)
        assert bytes(found[module].data.words) == bytes(theirs.data.words)
        assert found[module].data.strings == theirs.data.strings
