"""Runs a provisioned federation on one machine."""
