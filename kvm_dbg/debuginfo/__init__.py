"""Types, from BTF or DWARF."""
