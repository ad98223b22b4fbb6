"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kvm_dbg.adapter import FILES

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_LINES = 600
TEXT = (".py", ".sh", ".md", ".toml", ".c", ".h", ".txt", ".yml", ".yaml")
ADAPTERS = sorted(path for folder in FILES for path in (ROOT / folder).glob("*.py"))
FORBIDDEN_MARKS = {"skip", "skipif", "xfail"}


def tracked_files() -> list[Path]:
    """Return the files of the repository: what git knows, else (in an unpacked archive) what lies there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    folders = ("kvm_dbg", "tests", "gdb", "lldb", "scripts", "docs", "benchmarks", "sample")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]


def is_text(path: Path) -> bool:
    return path.suffix in TEXT or (path.suffix == "" and path.read_bytes()[:2] == b"#!")


def imported_names(tree: ast.AST) -> set[str]:
    """Return the top-level names of all modules that a source file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or "").partition(".")[0])
    return found


def test_no_file_is_longer_than_a_person_reads() -> None:
    files = [path for path in tracked_files() if is_text(path)]
    assert len(files) > 20
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in files}
    del lengths["docs/commands.md"]  # generated, and looked up more than read
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_test_is_skipped_by_decorator() -> None:
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or node.attr not in FORBIDDEN_MARKS:
                continue
            if ast.unparse(node.value).endswith("mark"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("folder", FILES)
def test_an_adapters_folder_is_no_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    assert not (ROOT / folder / "kvm_dbg.py").exists(), "it would shadow the package inside the debugger"


def test_the_adapters_run_in_an_old_embedded_python() -> None:
    assert ADAPTERS
    for adapter in ADAPTERS:
        tree = ast.parse(adapter.read_text(encoding="utf-8"), feature_version=(3, 8))
        own = {path.stem for path in ADAPTERS}  # the client of the server serves both
        assert imported_names(tree) - set(sys.stdlib_module_names) <= {adapter.parent.name} | own, adapter


def test_the_core_names_no_debugger() -> None:
    for path in (ROOT / "kvm_dbg").rglob("*.py"):
        imported = imported_names(ast.parse(path.read_text(encoding="utf-8")))
        assert not imported & {"gdb", "lldb"}, path
