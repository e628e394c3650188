"""Federated parameter-efficient fine-tuning of Vision Transformers. Imports no FLARE."""

__version__ = "0.2.0"
