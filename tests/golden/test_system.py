"""The log, the load averages, the modules and the summary equal what the guest said."""

from __future__ import annotations

import re

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import LogRecord
from kvm_dbg.kernel.linux.module import for_each_module_record
from kvm_dbg.kernel.linux.symbolize import read_module_symbols
from tests.golden.subject import Subject


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


def format_record(record: LogRecord, *, caller: bool) -> str:
    r"""Return a record as /dev/kmsg has it, without its flag for continued lines.

    Bytes that are no UTF-8 are "\\xff" in our text already, as kmsg writes them: their backslash stays.
    """
    assert record.facility is not None
    assert record.level is not None
    assert record.seconds is not None
    head = f"{record.facility << 3 | record.level},{record.sequence},{int(record.seconds * 1e6 + 1e-4)},-"
    if caller:
        head += f",caller={record.caller}"
    text = "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in record.text.encode())
    text = re.sub(r"\\x5c(x[89a-f][0-9a-f])", r"\\\1", text)
    return "\n".join([f"{head};{text}", *(f" {key}={value}" for key, value in record.dictionary)]) + "\n"


def test_log_equals_kmsg(subject: Subject) -> None:
    records = list(system_of(subject.kernel).for_each_log_record(subject.kernel))
    truth = [re.sub(r"^(\d+,\d+,\d+),c", r"\1,-", record.decode()) for record in subject.truth.records]
    caller = any(",caller=" in record.partition(";")[0] for record in truth)
    ours = [format_record(record, caller=caller) for record in records]
    assert not any(record.unread for record in records)
    sequences = [record.sequence for record in records]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    if subject.crashed:  # it said more, and the oldest may have gone for that
        gone = sequences[0] - int(truth[0].split(",")[1])
        assert gone == 0 or len(records) > 1000
        assert ours[: len(truth) - gone] == truth[gone:]
        panic = f"Kernel panic - not syncing: {subject.dump.manifest['panic']['message']}"
        assert any(record.text == panic for record in records)
    else:
        assert ours == truth
    assert len(records) > 200


def test_load_average_equals_proc(subject: Subject) -> None:
    load = system_of(subject.kernel).read_load_average(subject.kernel)
    ours = tuple(f"{average:.2f}" for average in (load.one, load.five, load.fifteen))
    if not subject.crashed:
        assert ours == subject.truth.loadavg
    running, threads = subject.truth.text("proc/loadavg").split()[3].split("/")
    assert load.running is not None
    assert abs(load.running - int(running)) <= 2
    assert load.threads is not None
    assert abs(load.threads - int(threads)) <= 4
    assert load.last_pid is not None
    assert load.last_pid >= int(subject.truth.text("proc/loadavg").split()[4]) - 1


def test_modules_equal_proc(subject: Subject) -> None:
    lines = []
    for module in system_of(subject.kernel).for_each_module(subject.kernel):
        users = "".join(f"{user}," for user in module.users) or "-"
        taints = f" ({module.taints})" if module.taints else ""
        state = {"live": "Live", "loading": "Loading", "unloading": "Unloading"}[module.state]
        lines.append(
            f"{module.name} {module.size} {module.reference_count} {users} {state} {module.address:#018x}{taints}"
        )
    assert lines == subject.truth.text("proc/modules").splitlines()
    assert len(lines) > 5


def test_sections_and_build_ids_of_modules_equal_sysfs(subject: Subject) -> None:
    contents = subject.truth.contents
    checked = 0
    for module in system_of(subject.kernel).for_each_module(subject.kernel):
        home = f"sys/module/{module.name}"
        truth = {
            name.rpartition("/")[2]: int(data, 16)
            for name, data in contents.items()
            if name.startswith(f"{home}/sections/")
        }
        ours = {name: address for name, address in module.sections.items() if name != ".data..percpu" or name in truth}
        assert ours == truth
        assert module.build_id == contents[f"{home}/notes/.note.gnu.build-id"][16:].hex()
        checked += len(truth)
    assert checked > 100


def test_symbols_of_modules_equal_kallsyms(subject: Subject) -> None:
    """/proc/kallsyms shows exported symbols in upper case, which is not in the module's own table."""
    ours = set()
    for module in for_each_module_record(subject.kernel):
        for symbol in read_module_symbols(subject.kernel, module):
            ours.add((symbol.module, symbol.name, symbol.address, symbol.kind.lower()))
    truth = set()
    for line in subject.truth.text("proc/kallsyms").splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[3].startswith("[") and fields[3] not in ("[bpf]", "[__builtin__kprobes]"):
            truth.add((fields[3][1:-1], fields[2], int(fields[0], 16), fields[1].lower()))
    assert {entry for entry in truth if not entry[1].startswith("__builtin__")} == ours
    assert len(ours) > 1000


def test_names_of_addresses(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    symbols = subject.truth.symbols
    assert system.symbolize(kernel, symbols["schedule"] + 1) == "schedule+0x1"
    module = next(iter(system.for_each_module(kernel)))
    place = next(
        line.split()
        for line in subject.truth.text("proc/kallsyms").splitlines()
        if line.endswith(f"[{module.name}]") and line.split()[1] in "tT" and not line.split()[2].startswith("__pfx")
    )
    name = system.symbolize(kernel, int(place[0], 16))
    assert name is not None
    assert name.endswith(f" [{module.name}]")


def test_summary(subject: Subject) -> None:
    kernel, truth = subject.kernel, subject.truth
    summary = system_of(kernel).read_summary(kernel)
    assert summary.release == subject.dump.release
    assert (
        f"{summary.system} {summary.nodename} {summary.release} {summary.version} {summary.machine} "
        in truth.text("uname").strip().replace("GNU/Linux", " ") + " "
    )
    total = int(re.findall(r"MemTotal:\s+(\d+) kB", truth.text("proc/meminfo"))[0])
    assert summary.memory == total * 1024
    assert summary.cpus == len(re.findall(r"^processor\s*:", truth.text("proc/cpuinfo"), re.M))
    assert summary.command_line == truth.text("proc/cmdline").rstrip("\n")
    assert summary.slide == subject.dump.slide
    assert summary.uptime is not None
    assert summary.date is not None
    assert truth.uptime - 0.02 <= summary.uptime < truth.uptime + 60
    boot = int(re.findall(r"^btime (\d+)", truth.text("proc/stat"), re.M)[0])
    assert abs(summary.date - summary.uptime - boot) < 1.5
    after = subject.dump.truth_after
    if after is not None:
        assert summary.uptime <= after.uptime
        assert (summary.panic_message, summary.panic_cpu, summary.panic_task) == (None, None, None)


def test_summary_of_a_panic(subject: Subject) -> None:
    kernel = subject.kernel
    summary = system_of(kernel).read_summary(kernel)
    if not subject.crashed:
        assert summary.panic_message is None
        return
    said = subject.dump.manifest["panic"]
    assert summary.panic_message == f"Kernel panic - not syncing: {said['message']}"
    assert summary.panic_task is not None
    assert summary.panic_task.command == said["comm"]
    assert summary.panic_lid == summary.panic_task.pid
    first = next(system_of(kernel).for_each_thread(kernel))
    assert (first.name, first.on_cpu, first.cpu) == (said["comm"], True, said["cpu"])
    assert summary.panic_cpu == said["cpu"]
    assert {"rip", "rsp", "rbp"} <= set(first.registers)
