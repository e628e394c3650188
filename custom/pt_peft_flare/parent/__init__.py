"""Components of FLARE's parent processes, which outlive jobs; `kits` names them in ``local/resources.json``."""
