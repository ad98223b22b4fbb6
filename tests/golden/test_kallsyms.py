"""Kernels without any kernel file: the symbols of their own memory, against the guest's /proc/kallsyms."""

from __future__ import annotations

from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from tests.golden.subject import Subject


def test_symbols_equal_those_of_the_guest(subject: Subject) -> None:
    kernel = open_kernel(open_image(list(subject.dump.files[subject.kind].paths)))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.vmlinux_path is None
    ours = sorted((symbol.address, symbol.kind, symbol.name) for symbol in kernel.symbols.for_each())
    lines = (line.split() for line in subject.truth.text("proc/kallsyms").splitlines())
    # modules' lines have a fourth word; those of BPF programs and ftrace's trampolines too
    theirs = sorted((int(line[0], 16), line[1], line[2]) for line in lines if len(line) == 3)
    assert len(theirs) > 50_000
    assert ours == theirs
    assert kernel.types.source == "BTF in the image"
    with_file = subject.kernel
    processes = list(system_of(kernel).for_each_process(kernel))
    assert processes == list(system_of(with_file).for_each_process(with_file))
    kernel.image.close()
