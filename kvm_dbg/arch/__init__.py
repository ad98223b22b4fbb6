"""What a CPU means: page tables, registers, word size."""
