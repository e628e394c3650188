"""Components of FLARE's parent processes, which outlive jobs: named in ``local/resources.json``, written there by `kits`."""
