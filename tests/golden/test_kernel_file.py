"""Files made from images against the distribution's own vmlinux: every symbol, every row of unwind rules.

binutils reads both: what they do not understand, or understand otherwise, is found here as well.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from kvm_dbg.kernel_file import MadeFile, make_kernel_file
from tests.golden.subject import Subject, find_subject

KERNELS = ("deb11-4level", "deb12-4level", "deb13-4level", "bpo13-4level")  # one scenario of each kernel
ADDRESS = re.compile(r"[0-9a-f]{16} ")
RANGE = re.compile(r"pc=([0-9a-f]+)\.\.([0-9a-f]+)")
AT_CALL = ("rsp+8", "s", "c-8")  # CFA, the caller's rbp, its return address: before the first instruction
NOBODY_RETURNS = ("rsp+8", "s", "u")


class Entry(NamedTuple):
    """A symbol as readelf prints it, without name and address."""

    size: int
    type: str
    binding: str


Rule = tuple[str, str, str]


class Pair(NamedTuple):
    """A kernel file made from an image, and the distribution's."""

    subject: Subject
    made: MadeFile
    made_path: Path
    vmlinux: Path


@pytest.fixture(scope="module", params=KERNELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed: apt-get install binutils")
    subject = find_subject(request.param)
    kernel = open_kernel(open_image(list(subject.dump.files[subject.kind].paths)))
    assert isinstance(kernel, LinuxKernel)
    assert kernel.vmlinux_path is None
    made = make_kernel_file(kernel, system_of(kernel), slide=kernel.slide, modules=False)
    path = tmp_path_factory.mktemp("made") / "made"
    with path.open("wb") as file:
        file.writelines(made.pieces)
    kernel.image.close()
    return Pair(subject, made, path, subject.dump.vmlinux)


def readelf(option: str, path: Path) -> list[str]:
    done = subprocess.run(["readelf", option, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@functools.cache
def symbols_of(path: Path) -> dict[tuple[int, str], Entry]:
    rows = (line.split() for line in readelf("-sW", path))
    return {
        (int(row[1], 16), row[7]): Entry(int(row[2], 0), row[3], row[4])
        for row in rows
        if len(row) >= 8 and row[0].rstrip(":").isdigit() and row[3] not in ("SECTION", "FILE")
    }


def test_nothing_is_missing(pair: Pair) -> None:
    assert pair.made.problems == ()


def test_build_id(pair: Pair) -> None:
    ids = [line for path in (pair.made_path, pair.vmlinux) for line in readelf("-n", path) if "Build ID" in line]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_every_symbol_is_where_the_linker_put_it(pair: Pair) -> None:
    made, linked = symbols_of(pair.made_path), symbols_of(pair.vmlinux)
    assert len(made) > 80_000
    assert made.keys() - linked.keys() == set()
    # Without a type: labels of assembly, constants, checksums and names of exported symbols, which kallsyms leaves out.
    assert Counter(linked[key].type for key in linked.keys() - made.keys()).keys() == {"NOTYPE"}


def test_every_symbol_is_what_the_linker_said(pair: Pair) -> None:
    made, linked = symbols_of(pair.made_path), symbols_of(pair.vmlinux)
    types = Counter((linked[key].type, made[key].type) for key in made)
    assert types["OBJECT", "FUNC"] == 0
    # Functions of sections that no symbol tells of: .exit.text, .altinstr_aux.
    assert types["FUNC", "OBJECT"] < 400
    assert types["FUNC", "FUNC"] > 40_000
    assert types["OBJECT", "OBJECT"] > 25_000
    others = {kinds for kinds in types if "NOTYPE" not in kinds}
    assert others <= {("FUNC", "FUNC"), ("OBJECT", "OBJECT"), ("FUNC", "OBJECT")}
    bindings = Counter((linked[key].binding, made[key].binding) for key in made)
    # Per-CPU variables linked at 0 are global to kallsyms, all of them.
    assert bindings.pop(("LOCAL", "GLOBAL"), 0) < 400
    assert set(bindings) == {("LOCAL", "LOCAL"), ("GLOBAL", "GLOBAL"), ("WEAK", "WEAK")}


def test_a_function_reaches_at_least_as_far_as_the_linker_said(pair: Pair) -> None:
    """Sizes are to the next symbol: they include padding, and end at a label within a function of assembly."""
    made, linked = symbols_of(pair.made_path), symbols_of(pair.vmlinux)
    functions = [key for key in made if linked[key].type == "FUNC" and linked[key].size and made[key].size]
    assert len(functions) > 40_000
    assert sum(made[key].size < linked[key].size for key in functions) < 20
    named = {address for address, _ in functions}
    nameless = {address for (address, _), entry in made.items() if entry.type == "FUNC" and not entry.size} - named
    assert len(nameless) < 300  # end marks


def rules_of(path: Path) -> tuple[list[int], list[Rule | None]]:
    """Return where each rule begins, ascending, and the rules; None where there are none."""
    found: dict[int, Rule | None] = {}
    ends: set[int] = set()
    columns: list[str] = []
    for line in readelf("-wF", path):
        if " FDE " in line:
            match = RANGE.search(line)
            assert match is not None
            start, end = int(match[1], 16), int(match[2], 16)
            found[start] = AT_CALL  # an entry without instructions has no rows
            ends.add(end)
        elif line.startswith("   LOC"):
            columns = line.split()
        elif ADDRESS.match(line) and (words := line.split())[0] != "0" * 16:
            row = dict(zip(columns, words, strict=True))
            frame = row.get("rbp", "s").replace("u", "s")  # no rule: nobody has touched it
            found[int(words[0], 16)] = (row["CFA"], frame, row["ra"])
    for end in ends:
        found.setdefault(end, None)
    places = sorted(found)
    return places, [found[place] for place in places]


def test_unwind_rules_are_those_of_the_compiler(pair: Pair) -> None:
    starts, rules = rules_of(pair.made_path)
    theirs, their_rules = rules_of(pair.vmlinux)
    cold = {address for address, name in symbols_of(pair.vmlinux) if name.endswith(".cold")}
    seen: Counter[str] = Counter()
    for place, expected in zip(theirs, their_rules, strict=True):
        if expected is None:
            continue
        rule = rules[bisect_right(starts, place) - 1]
        if rule is None:
            seen["outside"] += 1
        elif rule == expected:
            seen["same"] += 1
        elif rule == NOBODY_RETURNS:
            seen["nobody returns"] += 1
        elif expected == AT_CALL and place in cold:
            seen["cold"] += 1
        else:
            seen["other"] += 1
    total = sum(seen.values())
    assert seen["same"] > 250_000
    assert seen["same"] > 0.985 * total
    # The kernel's tool says that control never comes back to here; the compiler did not know.
    assert seen["nobody returns"] < 0.012 * total
    # gcc 10 wrote no instructions for the cold parts of functions, which start with their function's frame.
    assert seen["cold"] < 0.006 * total
    # What the compiler cannot know: pushes in inline assembly, stacks that are switched, aligned ones in a prologue.
    assert seen["other"] < 0.005 * total
    # .exit.text and the replacements of alternatives, which are gone once the kernel runs.
    assert seen["outside"] < 200
