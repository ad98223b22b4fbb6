"""What the kernels of the BSDs share: queues, the message buffer, load averages, and how a kernel file is opened."""
