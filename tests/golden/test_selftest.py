"""What `selftest` says of whole dumps, of filtered ones, and of dumps in which one fact was changed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.kernel.base import Check
from kvm_dbg.kernel.layout import read_pointer
from kvm_dbg.kernel.linux.module import for_each_module_record, module_layout
from kvm_dbg.kernel.linux.task import for_each_leader
from kvm_dbg.kernel.write import write_memory
from tests.golden.subject import NAMES, Subject, find_subject

FILTERED = ("args", "env")  # the memory of processes, which a dump level leaves out


def open_session(subject: Subject, *, kind: str | None = None, vmlinux: str | None = None) -> Session:
    paths = subject.dump.files[kind or subject.kind].paths
    session = Session()
    request = OpenRequest(tuple(map(str, paths)), vmlinux or str(subject.dump.vmlinux), force=vmlinux is not None)
    session.open(request)
    return session


def look(session: Session, command: str | None = None) -> list[Check]:
    return list(session.system.for_each_check(session.kernel, command))


def not_ok(checks: list[Check]) -> set[tuple[str, str]]:
    return {(check.command, check.grade) for check in checks if check.grade != "ok"}


def test_a_whole_dump_is_ok(subject: Subject) -> None:
    session = open_session(subject)
    checks = look(session)
    assert len(checks) > 60
    # In kdump's, the CPU that jumped into the crash kernel stopped in code that has no rules.
    assert not_ok(checks) == ({("bt", "partial")} if "zlib-d31" in subject.dump.files and subject.crashed else set())
    session.close()


@pytest.mark.parametrize("name", ["deb11-kdump", "deb12-kdump", "deb13-kdump"])
def test_a_filtered_dump_is_partial_where_it_was_filtered(name: str) -> None:
    session = open_session(find_subject(name), kind="zlib-d31")
    assert not_ok(look(session)) == {(command, "partial") for command in (*FILTERED, "bt")}
    session.close()


def test_a_dump_without_needed_pages_is_partial() -> None:
    """Tested because makedumpfile 1.7.6 takes pages of 7.3 for user data that are the kernel's."""
    session = open_session(find_subject("bpo13-kdump"), kind="zlib-d31")
    bad = not_ok(look(session))
    assert {grade for _, grade in bad} == {"partial"}
    assert {"procs", "lwps", "args", "env"} <= {command for command, _ in bad}
    session.close()


@pytest.fixture
def healthy() -> Session:
    return open_session(find_subject("deb12-4level"))


def put(session: Session, vaddr: int, value: int, size: int = 8) -> None:
    kernel = session.kernel
    write_memory(kernel, session.system.kernel_space(kernel), vaddr, value.to_bytes(size, "little"))
    kernel.memo.clear()  # type: ignore[attr-defined]
    kernel.observed.clear()  # type: ignore[attr-defined]


def unlink_a_task(session: Session) -> None:
    kernel = session.kernel
    offset = kernel.types.offset_of("struct task_struct", "tasks")
    first, second, third = list(for_each_leader(kernel))[3:6]
    put(session, first.address + offset, third.address + offset)
    assert second.address != first.address


def count_one_more(session: Session) -> None:
    address = session.kernel.symbols.address("nr_threads")
    put(session, address, int.from_bytes(session.kernel.read(address, 4), "little") + 1, 4)


def change_the_release(session: Session) -> None:
    kernel = session.kernel
    offset = kernel.types.offset_of("struct uts_namespace", "name.release")
    put(session, kernel.symbols.address("init_uts_ns") + offset, ord("9"), 1)


def enlarge_a_slab(session: Session) -> None:
    kernel = session.kernel
    layout = kernel.types.struct("struct kmem_cache")
    link, size = layout.member("list").offset, layout.member("object_size").offset
    head = node = kernel.symbols.address("slab_caches")
    while (node := read_pointer(kernel, node)) != head:
        put(session, node - link + size, 100_000, 4)


def move_a_module(session: Session) -> None:
    kernel = session.kernel
    module = next(for_each_module_record(kernel))
    place = module.address + module_layout(kernel).offsets["core_base"]
    put(session, place, read_pointer(kernel, place) - (1 << 30))


def skip_records(session: Session) -> None:
    """Wipe a descriptor in the middle of the ring: its state becomes "miss"."""
    kernel = session.kernel
    types = kernel.types
    ring = read_pointer(kernel, kernel.symbols.address("prb"))
    descriptors = ring + types.offset_of("struct printk_ringbuffer", "desc_ring")
    infos = read_pointer(kernel, descriptors + types.offset_of("struct prb_desc_ring", "infos"))
    size = types.size_of("struct printk_info")
    put(session, infos + 20 * size + types.offset_of("struct printk_info", "seq"), 12345)


def overfill_the_load(session: Session) -> None:
    put(session, session.kernel.symbols.address("avenrun"), 1 << 60)


@pytest.mark.parametrize(
    ("damage", "command"),
    [
        (unlink_a_task, "procs"),
        (count_one_more, "lwps"),
        (change_the_release, "sys"),
        (enlarge_a_slab, "procs"),
        (move_a_module, "mods"),
        (skip_records, "log"),
        (overfill_the_load, "loadavg"),
    ],
)
def test_one_changed_fact_is_suspect(healthy: Session, damage: Callable[[Session], None], command: str) -> None:
    assert not not_ok(look(healthy, command))
    damage(healthy)
    grades = {check.grade for check in look(healthy, command)}
    assert "suspect" in grades
    healthy.close()


def test_the_kernel_file_of_another_build_is_suspect() -> None:
    """Opened by force: symbols and types are then another kernel's."""
    other = find_subject("deb13-4level")
    session = open_session(find_subject("deb12-4level"), vmlinux=str(other.dump.vmlinux))
    suspects = {check.command for check in look(session) if check.grade == "suspect"}
    assert {"procs", "bt", "nlist", "mods", "log"} <= suspects
    session.close()


def test_every_scenario_is_looked_at() -> None:
    assert len(NAMES) >= 17
