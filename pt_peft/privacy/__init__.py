"""Differential privacy: what adds the noise that ``privacy`` of `experiment.json` asks for, and what that costs."""
