"""kvm_dbg: kernel memory images, in the debugger that you already use.

The public doors: `kvm_dbg.open` (one image, with everything that kvm(3) can ask), `kvm_dbg.image.open_image`
(bytes only), and `kvm_dbg.kvm` (the manual's own names).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_dbg.kvm.descriptor import open_kvm as open

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:
    """Import `open` when it is first asked for: programs that do not need it start faster."""
    if name == "open":
        from kvm_dbg.kvm.descriptor import open_kvm

        return open_kvm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
