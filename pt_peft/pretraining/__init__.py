"""Continued pre-training of a backbone in one place, on one data set."""
