"""Ways of making one state of the sites' results. Numpy only; no FLARE, no torch."""
