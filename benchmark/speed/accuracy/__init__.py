"""Seconds and bytes until a federation reaches an accuracy, for a plain loop, stock FLARE and this project."""
