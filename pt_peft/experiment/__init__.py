"""What a run is: `experiment.json`, `site.json`, a site's limits, and the rules of what does not go together.

Imports no torch and no FLARE.
"""
