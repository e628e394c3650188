"""A site that was tampered with: this package hides two modules of the installed one, which comes later on its path."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[5] / "custom" / "pt_peft_flare"))
