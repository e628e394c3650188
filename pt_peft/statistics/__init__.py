"""What a federation's sums of features say: the head that all images in one place would give. Numpy alone."""
