"""Times this machine: our networks, operators and data path, beside torchvision's where it is installed.

Everything timed runs in a worker process of its own; the process that asks imports no torch.
"""
