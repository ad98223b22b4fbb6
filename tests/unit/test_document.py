"""The documentation is that of the program as it is."""

from __future__ import annotations

import re
from pathlib import Path

from kvm_dbg.commands import COMMANDS
from kvm_dbg.commands.document import document
from kvm_dbg.image import FORMATS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
LINK = re.compile(r"\]\(([^)#]*)(?:#[^)]*)?\)")


def test_commands_page_is_fresh() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert page == "".join(f"{line}\n" for line in document()), (
        "run python -m kvm_dbg.commands.document > docs/commands.md"
    )


def test_commands_page_has_every_command_and_column() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        section = page.split(f"\n## {command.name}\n")[1].split("\n## ")[0]
        assert command.summary in section
        assert all(f"`{column.name}`" in section for column in command.columns)


def test_formats_page_has_every_format() -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert all(entry.title in page and f"`{entry.name}`" in page for entry in FORMATS)


def test_links_lead_somewhere() -> None:
    count = 0
    for page in DOCS.rglob("*.md"):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                count += 1
    assert count > 10
