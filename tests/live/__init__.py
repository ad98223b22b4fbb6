"""Live kernels: a guest that runs the project inside itself, and whose memory is a file that the host reads."""
