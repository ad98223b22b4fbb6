"""Numbers of kvm(3) and sysctl(3).

Source: NetBSD sys/sys/sysctl.h (KERN_PROC_*, KERN_FILE_*), sys/sys/proc.h and sys/sys/lwp.h (states), sys/sys/fcntl.h,
include/kvm.h (KVM_NO_FILES), include/nlist.h (N_*), sys/sys/param.h (NODEV).
"""

from __future__ import annotations

from typing import Final

KERN_PROC_ALL: Final = 0  # everything
KERN_PROC_PID: Final = 1  # by process id
KERN_PROC_PGRP: Final = 2  # by process group id
KERN_PROC_SESSION: Final = 3  # by session id
KERN_PROC_TTY: Final = 4  # by controlling terminal (dev_t)
KERN_PROC_UID: Final = 5  # by effective user id
KERN_PROC_RUID: Final = 6  # by real user id
KERN_PROC_GID: Final = 7  # by effective group id
KERN_PROC_RGID: Final = 8  # by real group id

KERN_PROC_TTY_NODEV: Final = 0xFFFFFFFF  # processes without a controlling terminal
KERN_PROC_TTY_REVOKE: Final = 0xFFFFFFFE  # processes whose terminal was revoked: Linux has none

KERN_FILE_BYFILE: Final = 1  # by file
KERN_FILE_BYPID: Final = 2  # by process id

O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2
KVM_NO_FILES: Final = 0x80000000  # no memory access at all

N_UNDF: Final = 0
N_EXT: Final = 1
N_ABS: Final = 2
N_TEXT: Final = 4
N_DATA: Final = 6
N_BSS: Final = 8

LSIDL: Final = 1  # being created
LSRUN: Final = 2  # runnable
LSSLEEP: Final = 3  # sleeping
LSSTOP: Final = 4  # stopped or traced
LSZOMB: Final = 5  # awaiting collection by its parent
LSONPROC: Final = 7  # on a CPU

P_SYSTEM: Final = 0x00000200  # p_flag: a kernel thread
EPROC_CTTY: Final = 1  # p_eflag: has a controlling terminal
EPROC_SLEADER: Final = 2  # p_eflag: session leader

STATES: Final = {
    "R": LSRUN,
    "S": LSSLEEP,
    "D": LSSLEEP,
    "I": LSSLEEP,
    "P": LSSLEEP,
    "T": LSSTOP,
    "t": LSSTOP,
    "Z": LSZOMB,
    "X": LSZOMB,
    "W": LSSLEEP,
}
"""The state letter of ps(1) on Linux -> l_stat."""
