"""Suites of runs: from a suite's file to its results."""
