"""The embedded backbone: weights and their description, see `benchmark.embedded`."""
