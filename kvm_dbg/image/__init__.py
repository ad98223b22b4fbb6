"""Which bytes are at a physical address: readers of memory images."""
