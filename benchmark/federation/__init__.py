"""A provisioned federation on one machine."""
