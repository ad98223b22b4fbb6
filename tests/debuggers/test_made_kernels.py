"""Every debugger on the lab's kernels without their kernel files, whose place a file made from the image takes.

The same tests as those of whole kernels that ask for symbols, types and stacks, against the same truth.
"""

from __future__ import annotations

import pytest

from tests.debuggers.asked import Asked, ask
from tests.debuggers.case import HIDDEN, find_case
from tests.debuggers.debugger import Found
from tests.debuggers.neutral import Subject
from tests.debuggers.plugin import CACHE
from tests.debuggers.test_kernels import (  # noqa: F401 - they run here with this module's `asked`
    test_code_is_disassembled_as_by_objdump,
    test_data_are_the_dumps_and_not_the_kernel_files,
    test_it_opens,
    test_stacks_of_sleeping_threads_end_where_they_called_from,
    test_stacks_of_sleeping_threads_equal_proc,
    test_symbols_lie_where_the_guest_had_them,
    test_the_backtrace_of_the_panic_is_the_guests_call_trace,
    test_the_panics_stack_ends_where_it_called_from,
    test_threads_are_the_guests_tasks,
    test_types_are_those_of_the_kernel_file,
)


@pytest.fixture(params=HIDDEN, scope="session")
def asked(
    request: pytest.FixtureRequest,
    debugger: Found,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Asked:
    """Return what a debugger says of a dump whose kernel file it does not get."""
    case = find_case(request.param, hidden=True)
    with Subject(debugger, tmp_path_factory.mktemp("made"), pytestconfig.stash[CACHE]) as subject:
        return ask(subject, case)


def test_no_kernel_file_is_used(asked: Asked) -> None:
    said = asked.answers["open"] + asked.answers.result.stdout + asked.answers.result.stderr
    assert "no vmlinux was found: symbols" in said


def test_types_of_modules_are_those_of_their_files(asked: Asked) -> None:
    types = asked.case.module_types
    assert len(types) == 3
    for name, known in types.items():
        if not asked.case.has_module_types:
            assert name.split()[1] in asked.answers.error(f"size {name}")
            continue
        assert asked.answers[f"size {name}"] == known.size, name
        assert known.offsets
        for member, offset in known.offsets.items():
            assert asked.answers[f"offset {name}.{member}"] == offset, (name, member)


def test_every_kernel_is_among_the_cases() -> None:
    assert len({find_case(name, hidden=True).dump.release for name in HIDDEN}) == 4
