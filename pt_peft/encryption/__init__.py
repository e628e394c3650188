"""Aggregation of tensors that the server cannot read."""
