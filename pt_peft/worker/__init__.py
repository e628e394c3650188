"""Training in a process of its own, which whoever asked for it can stop at any time."""
