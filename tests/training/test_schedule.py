"""How step sizes change over training."""

import itertools

import pytest
import torch

from benchmark.oracle.reference import load_sites, make_trainer
from helpers import changed
from pt_peft.experiment.site import Site
from pt_peft.training.schedule import share_of_peak


def test_a_rise_and_a_cosine():
    rates = [share_of_peak(step, 100, 5) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert 0 < rates[-1] < 0.01
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert (share_of_peak(0, 1, 1), share_of_peak(0, 1, 0)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        ({"schedule": "constant", "warmup_rounds": 0.5}, [[0.5, 1, 1, 1], [1, 1, 1, 1]]),
        ({"schedule": "cosine", "warmup_rounds": 1}, [[0.25, 0.5, 0.75, 1], [1, 0.854, 0.5, 0.146]]),
        ({"schedule": "cosine"}, [[1, 0.962, 0.854, 0.691], [0.5, 0.309, 0.146, 0.038]]),
    ],
)  # fmt: skip
def test_rounds_continue_the_schedule(fields, shares, tiny, tiny_weights, monkeypatch):
    """Each round has an optimizer of its own."""
    fields = {"batch_size": 4, "local_epochs": 1, "learning_rate": 0.01, "head_learning_rate": 0.1, **fields}
    experiment = changed(tiny, training=fields, federation={"rounds": 2}, data={"images_per_site": {"train": 16}})
    site = Site(backbone=str(tiny_weights))
    trainer = make_trainer(experiment, site)
    data = load_sites(experiment, site, ["site-1"])["site-1"].train
    used: list[set[float]] = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments):
        used.append({group["lr"] for group in self.param_groups})
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for number, expected in enumerate(shares):
        used.clear()
        trainer.train("site-1", data, trainer.initial, number)
        assert [sorted(one) for one in used] == [pytest.approx([0.01 * one, 0.1 * one], abs=1e-4) for one in expected]
