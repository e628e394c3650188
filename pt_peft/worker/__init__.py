"""Trains in a process of its own, which its user can stop at any time."""
