"""The reference work with FLARE's documented parts alone."""
