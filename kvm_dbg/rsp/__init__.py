"""The gdb remote serial protocol: a kernel image as a target."""
