"""Which kernel is in each file of the lab: slide, phys_base and levels against the guest's own tables and iomem."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import identify_kernels
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from tests.golden.subject import Subject


def whole(subject: Subject) -> list[str]:
    """Return the kinds of files that hold all of the kernel."""
    return [kind for kind, file in subject.dump.files.items() if not file.damage]


def levels_of(subject: Subject) -> int:
    """Return the levels that the guest's kernel used: it hides the processor's la57 where it runs with 4."""
    return 5 if "la57" in subject.truth.text("proc/cpuinfo").split() else 4


def test_every_file_leads_to_the_kernel(subject: Subject) -> None:
    dump = subject.dump
    for kind in whole(subject):
        kernel = subject.open(kind)
        assert isinstance(kernel, LinuxKernel)
        found = (kernel.release, kernel.slide, kernel.phys_base, kernel.levels, kernel.boot.verified)
        assert found == (dump.release, dump.slide, dump.phys_base, levels_of(subject), True), kind
        banner = kernel.read(kernel.symbols.address("linux_banner"), 400).partition(b"\n")[0].decode()
        assert banner == dump.truth.text("proc/version").strip(), kind
        kernel.image.close()


def test_raw_memory_needs_no_file_to_be_identified(subject: Subject) -> None:
    dump = subject.dump
    for kind in ("raw", "raw-joined"):
        if kind not in dump.files:
            continue
        with open_image(dump.files[kind].paths[0]) as image:
            found = [identity for identity in identify_kernels(image) if identity.verified]
            assert [(identity.release, identity.slide) for identity in found] == [(dump.release, dump.slide)], kind
            paging = found[0].paging
            assert paging is not None
            assert paging.levels == levels_of(subject)


def test_a_damaged_file_opens_and_says_what_is_missing(subject: Subject) -> None:
    for kind, file in subject.dump.files.items():
        if not file.damage:
            continue
        kernel = subject.open(kind)
        assert isinstance(kernel, LinuxKernel)
        assert kernel.release == subject.dump.release
        if not kernel.boot.verified:
            assert any("could not be verified" in quirk for quirk in kernel.quirks), kind
            with pytest.raises(NotInImageError) as caught:
                kernel.read(kernel.symbols.address("init_uts_ns"), 390)
            assert caught.value.reason == "truncated"
        kernel.image.close()
