"""What a federation costs beside its training: the same work by a bare PyTorch loop, stock FLARE, Flower and this project."""
