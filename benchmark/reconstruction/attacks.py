"""All attacks by name, with their papers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmark.reconstruction import analytic, matching
from benchmark.reconstruction.attacker import Attacker, Evidence, Floats


@dataclass(frozen=True)
class Attack:
    """One attack."""

    build: Callable[[Attacker, Evidence], Floats | None]
    """Returns candidate images float64 (M,3,S,S) in [0,1]; None where the evidence does not have what it needs."""
    paper: str


ATTACKS: Mapping[str, Attack] = {
    "embedding rows": Attack(analytic.embedding_rows, "Zhu and Blaschko 2021; Fowl et al. 2022"),
    "embedding positions": Attack(analytic.embedding_positions, "Lu et al. 2022"),
    "embedding sources": Attack(analytic.embedding_sources, "Kariyappa et al. 2023"),
    "gradient matching": Attack(matching.gradient_matching, "Geiping et al. 2020"),
    "head features": Attack(matching.head_features, "Fowl et al. 2022; inversion as Geiping et al. 2020"),
    "LoRA input span": Attack(matching.lora_input_span, "after Zhu and Blaschko 2021"),
}
