"""The wheel: built, installed into an empty environment, and used from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import kvm_dbg
from kvm_dbg.adapter import FILES

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("kvm_dbg", "gdb", "lldb", "pyproject.toml", "README.md", "LICENSE")


def run(command: Sequence[str | Path], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def adapters() -> list[str]:
    """Return the debuggers whose adapters are in this checkout."""
    return [debugger for debugger, file in FILES.items() if (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps"]
    run([*pip, "-w", "dist", "."], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment with the wheel, which finds its dependencies in the one that runs the tests."""
    place = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", place], place)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--no-deps", "--no-index", wheel], place)
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def test_the_wheel_holds_the_package_and_nothing_else_to_import(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} <= {
        "kvm_dbg",
        f"kvm_dbg-{kvm_dbg.__version__}.dist-info",
        f"kvm_dbg-{kvm_dbg.__version__}.data",
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "kvm_dbg").rglob("*.py")}
    assert {name for name in names if name.startswith("kvm_dbg/") and name.endswith(".py")} == sources
    assert "kvm_dbg/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_package_is_used_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = "import kvm_dbg, importlib.metadata as m; print(kvm_dbg.__file__, m.version('kvm-dbg'))"
    where, version = run([installed / "bin" / "python", "-c", script], tmp_path).split()
    assert Path(where).is_relative_to(installed)
    assert version == kvm_dbg.__version__


def test_the_installed_adapters_are_found(installed: Path, tmp_path: Path) -> None:
    assert adapters(), "no adapter is in this checkout"
    for debugger in adapters():
        script = f"from kvm_dbg.adapter import find_adapter; print(find_adapter({debugger!r}))"
        found = Path(run([installed / "bin" / "python", "-c", script], tmp_path).strip())
        assert found == installed / "share" / "kvm-dbg" / FILES[debugger]
        assert found.read_bytes() == (ROOT / FILES[debugger]).read_bytes()


def test_the_installed_program_runs(installed: Path, tmp_path: Path) -> None:
    assert "identify" in run([installed / "bin" / "kvm-dbg", "--help"], tmp_path)


def test_a_checkout_prefers_its_own_adapter() -> None:
    from kvm_dbg.adapter import find_adapter

    for debugger in adapters():
        assert find_adapter(debugger) == ROOT / FILES[debugger]
