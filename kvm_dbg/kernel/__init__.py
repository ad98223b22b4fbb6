"""What an operating system means: the only place that joins image, arch, symbols and debuginfo."""
