"""Measures what a federation costs beside its training.

The contenders, a bare PyTorch loop, stock FLARE, Flower and this project, do the same work.
"""
