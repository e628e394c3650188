"""Differential privacy: the section ``privacy`` of `experiment.json`, what it costs, and how it is done."""
