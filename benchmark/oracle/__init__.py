"""The plain loop, without FLARE: a federation must end with the same adapter."""
