"""kvm_dbg: kernel memory images, in the debugger that you already use.

The public doors: `kvm_dbg.open` (one image, with everything that kvm(3) can ask), `kvm_dbg.image.open_image`
(bytes only), and the module `kvm_dbg.kvm` (the manual's own names).
"""

from __future__ import annotations

__version__ = "0.1.0"
