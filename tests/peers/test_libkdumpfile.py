"""Pages as libkdumpfile reads them, through its Python binding in the system's own Python, against ours.

Tolerated differences:
- libkdumpfile gives zeros for what an ELF file's segment has in memory and not in the file; we say it was excluded.
- Of a file that ends too early it reads zeros or fails; we say which pages are truncated. Such files are not asked.
- Version 0.5.1 does not know flattened streams: it is given the file that `makedumpfile -R` makes of them.
- It died of SIGSEGV on a kdump file when asked for a page that is in neither bitmap: only others are asked for.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, Presence
from tests.lab import SCENARIOS, find

PYTHON = Path("/usr/bin/python3")
PAGE = 4096
SAMPLES = 3000

# reads addresses as JSON, answers with the hash of each page, null where there is none
CHILD = """
import hashlib, json, sys
import kdumpfile
ctx = kdumpfile.kdumpfile(sys.argv[1])
answers = []
for paddr in json.load(sys.stdin):
    try:
        page = ctx.read(kdumpfile.KDUMP_MACHPHYSADDR, paddr, 4096)
        answers.append(hashlib.sha1(bytes(page)).hexdigest())
    except kdumpfile.exceptions.NoDataException:
        answers.append(None)
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module", autouse=True)
def _peer() -> None:
    done = subprocess.run([PYTHON, "-c", "import kdumpfile"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("libkdumpfile's binding is missing: apt-get install python3-libkdumpfile")


def sample(image: MemoryImage) -> list[int]:
    """Return addresses of pages: most of them present, some excluded, and in ELF files some anywhere."""
    runs = [run for run in image.coverage() if run.size >= PAGE]
    present = [run for run in runs if run.presence is Presence.PRESENT]
    chance = random.Random(3)
    picked = [chance.choice(runs) for _ in range(SAMPLES // 4)]
    picked += chance.choices(present, [run.size for run in present], k=SAMPLES // 2)
    found = [run.start + chance.randrange(run.size // PAGE) * PAGE for run in picked]
    if image.info.format == "elf":
        found += [chance.randrange(runs[-1].end // PAGE) * PAGE for _ in range(SAMPLES // 4)]
    return found


def answer(image: MemoryImage, paddr: int) -> str | None:
    try:
        return hashlib.sha1(image.read(paddr, PAGE)).hexdigest()
    except NotInImageError:
        return None


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_pages(name: str, tmp_path: Path) -> None:
    dump = find(name)
    if dump is None:
        pytest.skip(f"the lab has no dump {name}: python -m tests.lab build {name}")
    zeros = hashlib.sha1(bytes(PAGE)).hexdigest()
    for kind, file in dump.files.items():
        if file.form == "raw" or file.damage or len(file.paths) > 1:
            continue
        path = file.paths[0]
        if file.form.startswith("flattened-"):
            path = tmp_path / kind
            with file.paths[0].open("rb") as stream:
                subprocess.run(["makedumpfile", "-R", path], stdin=stream, capture_output=True, check=True)
        with open_image(file.paths[0]) as image:
            addresses = sample(image)
            mine = [answer(image, paddr) for paddr in addresses]
        done = subprocess.run(
            [PYTHON, "-c", CHILD, str(path)],
            input=json.dumps(addresses), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{kind}: {done.stderr}"
        theirs: list[str | None] = json.loads(done.stdout)
        for paddr, one, two in zip(addresses, mine, theirs, strict=True):
            if file.form.endswith("elf") and one is None and two == zeros:
                continue
            assert one == two, f"{kind}: {paddr:#x}"
        assert sum(one is not None for one in mine) >= SAMPLES // 2
        if path != file.paths[0]:
            path.unlink()
