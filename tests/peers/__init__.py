"""The same question to others: each tolerated difference is a line with its reason."""
