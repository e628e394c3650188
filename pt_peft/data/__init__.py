"""A site's images: sources and tables, partitions and splits, decoding, augmentation and the cache."""
