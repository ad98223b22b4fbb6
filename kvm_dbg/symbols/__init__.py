"""Name to address, and back."""
