"""Runs in the live guest: processes that are worth looking at, until it is killed. Prints READY once all are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

SLEEP = ["sleep", "1000000"]


def child(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and then sleeps for good."""
    pid = os.fork()
    if pid == 0:
        work()
        while True:
            signal.pause()
    return pid


def zombie() -> None:
    """Leave a child that nobody waits for."""
    if os.fork() == 0:
        os._exit(0)


def threads() -> None:
    """Start three threads that sleep."""
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(1000000,), daemon=True).start()


child(zombie)
child(threads)
child(os.setsid)
child(lambda: os.nice(5))
stopped = child(lambda: None)
subprocess.Popen(SLEEP, env={"WORD": "a b", "EMPTY": "", "UMLAUT": "\xe4\xf6\xfc"})
subprocess.Popen(["a name with spaces", "0", "0"], executable="/live/crowd", env={}, stdout=subprocess.DEVNULL)
subprocess.Popen(SLEEP, user=1000, group=1000, extra_groups=[1000, 4711])
time.sleep(1)
os.kill(stopped, signal.SIGSTOP)
time.sleep(0.5)
sys.stdout.write("READY\n")
sys.stdout.flush()
while True:
    signal.pause()
