"""Runs suites: from a suite's file to its result file."""
