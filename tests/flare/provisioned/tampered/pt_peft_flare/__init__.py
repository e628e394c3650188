"""Stands before the installed package on a site's path, in the place of two of its modules: a site that was tampered with."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[5] / "custom" / "pt_peft_flare"))
