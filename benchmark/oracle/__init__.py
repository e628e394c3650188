"""The plain loop: what a federation must equal, without FLARE."""
