"""Finding kernels in memory: by note, by text, by a CPU's page tables, by banner; and what must not win."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import KernelNotFoundError, UnsupportedError
from kvm_dbg.image.base import BytesImage, ImageInfo, Note
from kvm_dbg.kernel import identify_kernels
from kvm_dbg.kernel.linux.boot import Boot
from kvm_dbg.kernel.linux.discovery import choose, find_boots, for_each_banner
from tests.writers.linux_memory import BANNER, TEXT, UTS, LinuxMemory, banner, utsname


@pytest.mark.parametrize("levels", [4, 5])
def test_the_note(levels: int) -> None:
    memory = LinuxMemory(levels=levels)
    (boot,) = find_boots(memory.noted_image())
    assert boot.verified
    assert boot.source == "VMCOREINFO note"
    assert (boot.release, boot.version) == ("6.1.0-test", "#1 SMP Test")
    assert (boot.slide, boot.phys_base) == (0x3000000, 0x5000000)
    assert boot.paging is not None
    assert (boot.paging.root, boot.paging.levels) == (memory.root, levels)
    assert boot.quirks == ()


@pytest.mark.parametrize(("slide", "phys_base"), [(0, 0), (0x3E000000, -0x10000000), (0x200000, 0x1C0000000)])
def test_slides_and_bases(slide: int, phys_base: int) -> None:
    memory = LinuxMemory(slide=slide, phys_base=phys_base)
    (boot,) = find_boots(memory.noted_image())
    assert boot.verified
    assert (boot.slide, boot.phys_base) == (slide, phys_base)


@pytest.mark.parametrize(
    "key", ["KERNELOFFSET", "OFFSET(uts_namespace.name)", "NUMBER(pgtable_l5_enabled)", "BUILD-ID"]
)
def test_older_blocks_lack_keys(key: str) -> None:
    memory = LinuxMemory(info={key: None}, uts_offset=4)
    (boot,) = find_boots(memory.noted_image())
    assert boot.verified
    assert boot.version == "#1 SMP Test"


def test_encrypted_memory() -> None:
    memory = LinuxMemory(encryption_mask=1 << 47)
    (boot,) = find_boots(memory.noted_image())
    assert boot.verified
    assert boot.paging is not None
    assert boot.paging.encryption_mask == 1 << 47


def test_text_in_memory_is_found_without_a_note() -> None:
    memory = LinuxMemory()
    (boot,) = find_boots(memory.image())
    assert boot.verified
    assert "found at physical 0x7654000" in boot.source


def test_text_that_is_not_at_the_start_of_a_page_does_not_count() -> None:
    memory = LinuxMemory(info_paddr=None)
    image = memory.image(and_also={0x9000010: memory.text, 0xA000000: b"OSRELEAS" + memory.text})
    assert not any("VMCOREINFO" in boot.source for boot in find_boots(image))


def test_a_stale_block_does_not_win() -> None:
    memory = LinuxMemory(info_paddr=0x7654000)
    stale = LinuxMemory(release="5.0.0-old", slide=0x1000000, phys_base=0x2000000)
    image = memory.image(and_also={0x10000: stale.text.ljust(4096, b"\0")})
    found = find_boots(image)
    assert [(boot.release, boot.verified) for boot in found] == [("6.1.0-test", True), ("5.0.0-old", False)]
    assert choose(found, None).release == "6.1.0-test"
    assert choose(found, 2).release == "5.0.0-old"


def test_copies_of_one_block_are_one_kernel() -> None:
    memory = LinuxMemory()
    image = memory.image(and_also={0x9000000: memory.text.ljust(4096, b"\0")})
    assert len(find_boots(image)) == 1


def test_a_block_whose_kernel_says_another_release() -> None:
    memory = LinuxMemory()
    memory.write(UTS, utsname("6.1.0-other", "#1"))
    (boot,) = find_boots(memory.image())
    assert not boot.verified
    assert "6.1.0-other" in boot.quirks[0]


def test_two_kernels_must_be_chosen_from() -> None:
    first = LinuxMemory(release="6.1.0-first", info_paddr=0x7654000)
    second = LinuxMemory(
        release="6.1.0-crash", slide=0x1000000, phys_base=0x12000000, info_paddr=0x7655000, table_paddr=0x200000
    )
    found = find_boots(first.image(and_also=second.tables.segments()))
    assert [boot.verified for boot in found] == [True, True]
    with pytest.raises(KernelNotFoundError, match="--kernel N") as caught:
        choose(found, None)
    assert [line[:3] for line in caught.value.candidates] == ["1: ", "2: "]
    assert "6.1.0-first" in caught.value.candidates[0]
    assert choose(found, 2).release == "6.1.0-crash"
    for wrong in (0, 3, -1):
        with pytest.raises(KernelNotFoundError, match=f"no kernel {wrong}"):
            choose(found, wrong)


@pytest.mark.parametrize("levels", [4, 5])
def test_the_kernel_that_cpus_run_leads_to_its_block(levels: int) -> None:
    memory = LinuxMemory(levels=levels)
    (boot,) = find_boots(memory.image(memory.qemu_note()), all_of_memory=False)
    assert boot.verified
    assert "a CPU" in boot.source
    assert boot.build_id == memory.build_id.hex()
    assert boot.slide == memory.slide


def test_the_kernel_that_cpus_run_without_any_block() -> None:
    memory = LinuxMemory(info_paddr=None)
    (boot,) = find_boots(memory.image(memory.qemu_note()))
    assert boot.verified
    assert (boot.release, boot.version) == ("6.1.0-test", "#1 SMP Test")
    assert boot.banner_vaddr == BANNER + memory.slide
    assert boot.phys_base == memory.phys_base
    assert boot.slide is None


def test_user_half_of_a_pair_of_page_tables() -> None:
    # With page-table isolation CR3 points to the odd page of a pair while user code runs: it maps no kernel.
    memory = LinuxMemory(info_paddr=None)
    (boot,) = find_boots(memory.image(memory.qemu_note(memory.root | 0x1000)))
    assert boot.paging is not None
    assert boot.paging.root == memory.root


def test_banners() -> None:
    memory = LinuxMemory(info_paddr=None)
    copy = banner(memory.release, "#1 SMP Test")
    dead = copy.replace(b"#1 SMP", b"# SMP")  # the banner without a build number that 6.1 and later keep
    image = memory.image(and_also={0x9000123: copy, 0x9800000: dead, 0x9900000: b"Linux version 1.0 nothing"})
    assert [paddr for paddr, _ in for_each_banner(image)] == [0x9000123, memory.paddr_of(BANNER)]
    (boot,) = find_boots(image)
    assert not boot.verified
    assert boot.banner_paddrs == (0x9000123, memory.paddr_of(BANNER))


def test_banners_across_chunks() -> None:
    text = banner("6.1.0", "#1")
    for cut in range(len(text) + 1):
        image = BytesImage({0: bytes((1 << 20) - cut) + text})
        assert list(for_each_banner(image)) == [((1 << 20) - cut, "6.1.0")]


def test_no_kernel_at_all() -> None:
    with pytest.raises(KernelNotFoundError, match="no Linux kernel found"):
        find_boots(BytesImage({0: bytes(1 << 16)}))
    with pytest.raises(KernelNotFoundError, match="no Linux kernel found"):
        find_boots(BytesImage({}))


def test_another_architecture_says_so() -> None:
    memory = LinuxMemory(info={"NUMBER(phys_base)": None, "NUMBER(kimage_voffset)": "0xffff800000000000"})
    image = memory.image(Note("VMCOREINFO", 0, memory.text), info=ImageInfo("bytes", machine="aarch64"))
    with pytest.raises(UnsupportedError, match="aarch64"):
        find_boots(image)


@pytest.mark.parametrize(
    "changes",
    [
        {"SYMBOL(swapper_pg_dir)": "10", "SYMBOL(init_top_pgt)": None},
        {"SYMBOL(swapper_pg_dir)": None, "SYMBOL(init_top_pgt)": None},
        {"SYMBOL(swapper_pg_dir)": "ffffffff84000123", "SYMBOL(init_top_pgt)": None},
        {"SYMBOL(init_uts_ns)": None},
        {"SYMBOL(init_uts_ns)": "0"},
        {"SYMBOL(init_uts_ns)": "8000000000000000"},
        {"NUMBER(phys_base)": "9223372036854775807"},
        {"NUMBER(phys_base)": "-9223372036854775808"},
        {"NUMBER(phys_base)": "1"},
        {"NUMBER(pgtable_l5_enabled)": "1"},
        {"NUMBER(sme_mask)": "1"},
        {"NUMBER(sme_mask)": "0xffffffffffffffff"},
        {"OFFSET(uts_namespace.name)": "9223372036854775807"},
        {"OFFSET(uts_namespace.name)": "-4"},
    ],
)
def test_garbage_in_the_block_is_survived(changes: dict[str, str | None]) -> None:
    memory = LinuxMemory(info=changes)
    image = memory.image(Note("VMCOREINFO", 0, memory.text), info=ImageInfo("bytes", machine="x86_64"))
    (boot,) = find_boots(image)
    offset_only = "OFFSET(uts_namespace.name)" in changes  # what it says cannot be, so the name is looked for
    assert boot.verified == offset_only
    assert offset_only or "could not be verified" in boot.quirks[0]


def test_page_tables_that_loop() -> None:
    memory = LinuxMemory()
    for index in range(512):
        memory.tables.put(memory.root + 8 * index, memory.root | 0x67)
    (boot,) = find_boots(memory.noted_image())
    assert not boot.verified


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.kernel.linux.discovery.PROGRESS_STEP", 1)
    lines: list[str] = []
    find_boots(LinuxMemory().image(), lines.append)
    assert lines
    assert "MiB" in lines[0]


def test_identities() -> None:
    memory = LinuxMemory()
    (identity,) = identify_kernels(memory.noted_image())
    assert (identity.system, identity.arch, identity.release) == ("Linux", "x86_64", "6.1.0-test")
    assert identity.paging is not None
    assert identity.build_id == memory.build_id.hex()
    text = identity.describe()
    assert "slide 0x3000000" in text
    assert "verified" in text
    assert f"{memory.root:#x}" in text


def test_describing_little() -> None:
    boot = Boot("x86_64", None, None, None, None, None, None, None, "somewhere", False)
    assert boot.describe() == "Linux of unknown release, x86_64, somewhere, not verified"
    assert TEXT == 0xFFFFFFFF81000000
