"""The same work with nothing but FLARE's own documented parts."""
