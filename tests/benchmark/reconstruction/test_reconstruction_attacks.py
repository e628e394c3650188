"""What each attack builds from what really leaves a site, and that it has no more than that."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmark.oracle.reference import load_sites, make_trainer
from benchmark.reconstruction import analytic, matching
from benchmark.reconstruction.attacker import Attacker, evidence
from benchmark.reconstruction.optimisation import Budget, search
from benchmark.reconstruction.seen import seen_by_all, seen_by_server
from benchmark.reconstruction.similarity import nearness
from pt_peft.federation.local_round import local_round
from pt_peft.federation.server import FederationServer
from pt_peft.model.planned_exchange import CONTROL, initial_exchanged
from pt_peft.presets import override, preset

VARIATES = "training.control_variates=true"
WHOLE = "backbone.kwargs.patch_size=32"
SMALL = ("backbone.image_size=32", "data.augment=[]")


class Case:
    """A site's first round of the demo of `method` on small images."""

    def __init__(self, method: str, images: int, *changes: str):
        counts = f'data.images_per_site={{"train":{images},"val":8,"test":32}}'
        experiment, site = preset(method)
        self.experiment = override(experiment, [*SMALL, counts, f"training.batch_size={images}", *changes])
        self.trainer = make_trainer(self.experiment, site)
        self.sites = load_sites(self.experiment, site, ["site-1", "site-2"])
        self.data = self.sites["site-1"]
        self.seen = seen_by_server(self.trainer, "site-1", self.data.train)

    def attacker(self, iterations: int = 1) -> Attacker:
        return Attacker(self.trainer, self.seen, Budget(iterations, 60), seed=0)

    def built(self, attack, kind: str = "control variate"):
        (piece,) = [one for one in evidence(self.seen) if one.kind == kind]
        return attack(self.attacker(), piece)

    def psnr(self, candidates, split=None) -> np.ndarray:
        return nearness(candidates, (split or self.data.train).images, turned=False).psnr

    def distances(self, attack) -> tuple[float, float]:
        """What `attack` minimises on the control variate: at the image itself, and its least at other images."""
        taken: list[float] = []
        backbone, attacker = self.experiment.backbone, self.attacker()
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (backbone.mean, backbone.std))
        images = np.concatenate([self.data.train.images, self.data.test.images[:8]])

        def search(loss_of: Callable[[torch.Tensor], torch.Tensor], count: int) -> np.ndarray:
            taken.extend(loss_of((torch.tensor(image[None]) / 255 - mean) / std).item() for image in images)
            return images

        attacker.search = search
        attack(attacker, evidence(self.seen)[0])
        return taken[0], min(taken[1:])


@pytest.fixture(scope="module")
def hole() -> Case:
    return Case("full", 1, WHOLE, VARIATES)


def test_one_image_in_one_patch_is_rebuilt_exactly(hole):
    for attack in (analytic.embedding_rows, analytic.embedding_positions):
        near = nearness(hole.built(attack), hole.data.train.images, turned=False)
        assert near.psnr[0] > 120, attack
        assert near.error[0] < 1e-3, attack
        assert hole.psnr(hole.built(attack), hole.data.test).max() < 30, attack


def test_a_control_variate_of_several_steps_gives_the_image_too():
    case = Case("full", 1, VARIATES, "training.local_epochs=4")
    assert case.psnr(case.built(analytic.embedding_positions))[0] > 80


def test_positions_give_all_patches_of_one_image_in_their_places():
    case = Case("full", 1, VARIATES)
    assert case.psnr(case.built(analytic.embedding_positions))[0] > 100
    assert case.psnr(case.built(analytic.embedding_rows))[0] < 30  # which knows one patch


def test_sources_give_every_image_of_a_batch():
    case = Case("full", 4, WHOLE, VARIATES)
    assert case.psnr(case.built(analytic.embedding_sources)).min() > 30
    assert case.psnr(case.built(analytic.embedding_sources), case.data.test).max() < 30


def test_an_update_of_adamw_gives_one_bit_a_pixel(hole):
    image = hole.built(analytic.embedding_rows, "update")[0]
    for channel in image:
        _, counts = np.unique(channel.round(2), return_counts=True)
        assert np.sort(counts)[-2:].sum() > 0.95 * channel.size


def test_what_is_not_in_the_evidence_is_not_attacked():
    case = Case("lora", 1, VARIATES)
    for attack in (analytic.embedding_rows, analytic.embedding_positions, analytic.embedding_sources):
        assert case.built(attack) is None
    assert case.built(matching.lora_input_span) is None  # B is zero at the only step, and so is A's gradient
    probe = Case("linear_probe", 1, VARIATES, 'method.head="exchanged"')
    assert probe.built(matching.lora_input_span) is None
    assert probe.built(matching.head_features) is not None


def test_the_label_of_one_image_is_read_from_the_head():
    for number, method in enumerate(("lora", "linear_probe", "vpt_deep")):
        case = Case(method, 1, VARIATES, f"seed={number}")
        for piece in evidence(case.seen):
            assert matching.labels(case.attacker(), piece).tolist() == case.data.train.labels.tolist()
    several = Case("linear_probe", 4, VARIATES)
    found = matching.labels(several.attacker(), evidence(several.seen)[0])
    assert sorted(found) == sorted(several.data.train.labels)


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "linear_probe", "full"])
def test_matching_is_best_at_the_image_itself(method):
    case = Case(method, 1, VARIATES)
    own, others = case.distances(matching.gradient_matching)
    assert own < 1e-4 < 0.02 < others


def test_the_features_of_the_head_are_those_of_the_image():
    own, others = Case("linear_probe", 1, VARIATES).distances(matching.head_features)
    assert own < 1e-5 < 1e-3 < others


def test_rows_of_loras_a_are_combinations_of_the_images_tokens():
    own, others = Case("lora", 1, VARIATES, "training.local_epochs=4").distances(matching.lora_input_span)
    assert own < others / 2


def test_the_server_sees_what_it_aggregates_and_nothing_else():
    for changes in ((), ('payload.up={"name":"float16"}',), ('federation.lora_ranks={"site-1": 2}',)):
        case = Case("lora_vpt", 4, VARIATES, "federation.min_sites=1", *changes)
        trainer, exchange = case.trainer, case.trainer.exchange
        server = FederationServer(
            case.experiment, exchange, initial_exchanged(trainer.experiment, exchange, trainer.initial)
        )
        opened = server.start_round(0)
        received = {key: server.tensors[key] for key in exchange.down(0, 0)}
        result = local_round(trainer, "site-1", case.data.train, received, {}, 0)
        opened.add("site-1", result.payload, result.num_samples)
        server.finish_round(opened, 1)
        assert case.seen.num_samples == 4
        assert case.seen.change.keys() == case.seen.control.keys() == exchange.trained(0).keys()
        for key, change in case.seen.change.items():
            assert case.seen.before[key] + change == pytest.approx(server.tensors[key], abs=1e-6), key
            assert case.seen.control[key] == pytest.approx(server.tensors[CONTROL + key], abs=1e-6), key


def test_an_adapter_is_the_change_of_all_rounds_without_variates():
    case = Case("lora", 4, VARIATES)
    seen = seen_by_all(case.trainer, case.sites)
    assert (seen.control, seen.num_samples, seen.steps) == ({}, None, None)
    assert seen.change.keys() == case.seen.change.keys()
    (piece,) = evidence(seen)
    assert (piece.kind, piece.exact) == ("update", False)


def test_a_search_ends_by_iterations_or_by_time():
    goal, box = torch.full((1, 3, 8, 8), 0.3), (torch.full((1, 3, 1, 1), -1.0), torch.full((1, 3, 1, 1), 1.0))

    def loss(images: torch.Tensor) -> torch.Tensor:
        return (images - goal).square().mean()

    found, done = search(loss, torch.zeros(1, 3, 8, 8), box, Budget(200, 60))
    assert done == 200
    assert (found - goal).abs().max() < 0.05
    outside, _ = search(lambda images: (images - 5).square().mean(), torch.zeros(1, 3, 8, 8), box, Budget(200, 60))
    assert outside.max() <= 1
    _, none = search(loss, torch.zeros(1, 3, 8, 8), box, Budget(200, 0))
    assert none == 0
