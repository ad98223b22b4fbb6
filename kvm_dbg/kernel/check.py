"""How independent structures of an image are compared, command by command; each system has SUBJECTS of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kvm_dbg.errors import CorruptError, FormatError, KvmDbgError
from kvm_dbg.kernel.base import Check, Kernel

Finding = tuple[str, str]
"""(grade, text), see `kernel.base.Check`."""


class Subject(NamedTuple):
    """One comparison, and the commands whose data it is about."""

    title: str
    commands: tuple[str, ...]
    look: Callable[[Kernel], Iterator[Finding]]


def check_subjects(subjects: Sequence[Subject], kernel: Kernel, command: str | None) -> Iterator[Check]:
    """Yield the findings for every command, or for one; a look that several commands share is taken once."""
    for subject in subjects:
        commands = subject.commands if command is None else tuple(name for name in subject.commands if name == command)
        if not commands:
            continue
        for grade, text in _look(kernel, subject):
            for name in commands:
                yield Check(name, subject.title, grade, text)


def _look(kernel: Kernel, subject: Subject) -> list[Finding]:
    findings: list[Finding] = []
    try:
        for finding in subject.look(kernel):
            findings.append(finding)  # one by one: those before an error count
    except (CorruptError, FormatError) as error:
        findings.append(("suspect", str(error)))
    except KvmDbgError as error:  # missing pages, symbols, types: it cannot be looked at
        findings.append(("partial", str(error)))
    return findings
