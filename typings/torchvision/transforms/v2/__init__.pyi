# torchvision has no types: this is what we use, as of 0.29.
