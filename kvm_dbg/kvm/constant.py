"""Numbers of kvm(3) and sysctl(3).

Source: NetBSD sys/sys/sysctl.h (KERN_PROC_*, KERN_FILE_*, P_*, L_*, EPROC_*), sys/sys/proc.h and lwp.h there (states),
sys/sys/file.h (DTYPE_*), sys/sys/vnode.h (enum vtype), sys/sys/fcntl.h, include/kvm.h (KVM_NO_FILES), include/nlist.h
(N_*), sys/sys/param.h (NODEV).
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

NODEV: Final = 0xFFFFFFFF  # (dev_t)-1
KERN_PROC_TTY_NODEV: Final = NODEV  # processes without a controlling terminal
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

SIDL: Final = 1  # p_realstat: being created
SACTIVE: Final = 2  # not stopped
SDYING: Final = 3  # about to die
SSTOP: Final = 4  # stopped or traced
SZOMB: Final = 5  # awaiting collection by its parent

LSIDL: Final = 1  # l_stat: being created
LSRUN: Final = 2  # runnable
LSSLEEP: Final = 3  # sleeping
LSSTOP: Final = 4  # stopped or traced
LSZOMB: Final = 5  # awaiting collection by its parent
LSONPROC: Final = 7  # on a CPU
LSSUSPENDED: Final = 8  # not to run until it is told to

P_CONTROLT: Final = 0x00000002  # p_flag: has a controlling terminal
P_SYSTEM: Final = 0x00000200  # a kernel thread
P_TRACED: Final = 0x00000800  # being debugged
L_SYSTEM: Final = 0x00000200  # l_flag: a kernel thread
EPROC_CTTY: Final = 1  # p_eflag: has a controlling terminal
EPROC_SLEADER: Final = 2  # session leader

DTYPE_VNODE: Final = 1  # ki_ftype: a file
DTYPE_SOCKET: Final = 2
DTYPE_PIPE: Final = 3
DTYPE_MISC: Final = 5
VNON: Final = 0  # ki_vtype: no file
VREG: Final = 1
VDIR: Final = 2
VBLK: Final = 3
VCHR: Final = 4
VLNK: Final = 5
VSOCK: Final = 6
VFIFO: Final = 7

THREAD_STATES: Final = {
    "R": LSRUN,
    "S": LSSLEEP,
    "D": LSSLEEP,
    "I": LSSLEEP,
    "P": LSSLEEP,
    "W": LSSLEEP,
    "T": LSSTOP,
    "t": LSSTOP,
    "Z": LSZOMB,
    "X": LSZOMB,
    "L": LSSLEEP,
    "O": LSONPROC,
    "U": LSSUSPENDED,
}
"""The state letter of ps(1), of any system -> l_stat; who waits for a lock (L) sleeps."""

PROCESS_STATES: Final = {"T": SSTOP, "t": SSTOP, "Z": SZOMB, "X": SZOMB}
"""The state letter of ps(1) on Linux -> p_realstat, SACTIVE for all others."""

FILE_TYPES: Final = {
    "reg": (DTYPE_VNODE, VREG),
    "dir": (DTYPE_VNODE, VDIR),
    "chr": (DTYPE_VNODE, VCHR),
    "blk": (DTYPE_VNODE, VBLK),
    "fifo": (DTYPE_VNODE, VFIFO),
    "sock": (DTYPE_SOCKET, VNON),
}
"""`OpenFile.kind` -> (ki_ftype, ki_vtype)."""

NM_TYPES: Final = {"T": N_TEXT, "W": N_TEXT, "D": N_DATA, "R": N_DATA, "B": N_DATA, "V": N_DATA, "A": N_ABS}
"""nm(1)'s letter in upper case -> n_type; N_UNDF for symbols without a type."""

ELF_TYPES: Final = {1: N_DATA, 2: N_TEXT, 5: N_DATA}
"""STT_OBJECT, STT_FUNC and STT_COMMON -> n_type as NetBSD's libc has it (lib/libc/gen/nlist_elf32.c), else N_UNDF."""
