"""The commands, one list for the command line, gdb and lldb."""
