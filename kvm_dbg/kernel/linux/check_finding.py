"""What one look at an image ends with, and how several small ones are put in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvm_dbg.kernel.check import Finding

EXAMPLES = 3  # named in a sentence; the others are counted


def enumerate_some(words: Sequence[str]) -> str:
    """Return "a, b, c and 7 more"."""
    shown = ", ".join(words[:EXAMPLES])
    return f"{shown} and {len(words) - EXAMPLES} more" if len(words) > EXAMPLES else shown


def compare(agreed: str, contradictions: Sequence[str]) -> Iterator[Finding]:
    """Yield "ok" with what was found to agree, or "suspect" with the contradictions."""
    if contradictions:
        yield "suspect", enumerate_some(contradictions)
    else:
        yield "ok", agreed


def count_unread(what: str, records: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[Finding]:
    """Count the records, each a name and the fields of it that cannot be read, as `count_lost` does."""
    found = list(records)
    yield from count_lost(what, len(found), [f"{name} ({', '.join(unread)})" for name, unread in found if unread])


def count_lost(what: str, total: int, lost: Sequence[str]) -> Iterator[Finding]:
    """Yield "ok" if nothing of `total` is lost, else "partial" with examples."""
    if lost:
        yield "partial", f"{what}: {len(lost)} of {total} cannot be read, or not whole: {enumerate_some(lost)}"
    else:
        yield "ok", f"{what}: all {total} can be read"
