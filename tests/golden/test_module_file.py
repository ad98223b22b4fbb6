"""Files of every loaded module are found, placed where the guest's own kallsyms has them, and refused if wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvm_dbg.commands.module_file import Plan, plan_modules
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel import system_of
from kvm_dbg.symbols.elf_data import SymbolData
from tests.golden.subject import Subject, find_subject

STT_FUNC = 2
KERNELS = ("deb11-4level", "deb12-4level", "deb13-4level", "bpo13-4level")
COMPRESSED = ("deb13-4level", "bpo13-4level")


def plan(subject: Subject, folder: Path, cache: Path) -> list[Plan]:
    kernel = subject.kernel
    session: Any = SimpleNamespace(kernel=kernel, system=system_of(kernel), index_directory=str(cache), request=None)
    return [found for _, found in plan_modules(session, str(folder))]


def addresses_of_modules(subject: Subject) -> dict[str, dict[str, set[int]]]:
    """Return module -> symbol -> addresses, as the guest's /proc/kallsyms says."""
    found: dict[str, dict[str, set[int]]] = {}
    for line in subject.truth.text("proc/kallsyms").splitlines():
        fields = line.split()
        if len(fields) == 4:
            found.setdefault(fields[3].strip("[]"), {}).setdefault(fields[2], set()).add(int(fields[0], 16))
    return found


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("tree", ["debug", "modules"])
def test_every_module_has_its_file_at_its_place(name: str, tree: str, tmp_path: Path) -> None:
    subject = find_subject(name)
    folder = subject.dump.debug if tree == "debug" else subject.dump.modules
    plans = plan(subject, folder, tmp_path)
    loaded = [line.split()[0] for line in subject.truth.text("proc/modules").splitlines()]
    assert [(one.name, one.problem) for one in plans] == [(name, None) for name in loaded]
    truth = addresses_of_modules(subject)
    compared = 0
    for one in plans:
        assert one.file is not None
        assert Path(one.file).is_relative_to(tmp_path) == (tree == "modules" and name in COMPRESSED)
        with open_elf(one.file) as file:
            table = file.find_section(".symtab")
            if table is None:
                continue
            names = {section.number: section.name for section in file.sections}
            data = SymbolData(file, table)
            for number in range(data.count):
                row = data.row(number)
                place = one.sections.get(names.get(row.section, ""))
                known = truth.get(one.name, {}).get(data.name(row.name).decode())
                if row.type == STT_FUNC and place is not None and known:
                    assert place + row.value in known, (one.name, data.name(row.name))
                    compared += 1
            del data
    assert compared > 1000


def test_files_of_another_kernel_are_refused(tmp_path: Path) -> None:
    subject, other = find_subject("deb12-4level"), find_subject("deb11-4level")
    plans = plan(subject, other.dump.debug, tmp_path)
    assert [one.file for one in plans] == [None] * len(plans)
    assert sum("is another build" in (one.problem or "") for one in plans) > 10
