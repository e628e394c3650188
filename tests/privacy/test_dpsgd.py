"""Gradients of single images, and what becomes of them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers import changed
from pt_peft.data.site_data import load_site_data
from pt_peft.experiment.privacy import SamplePrivacy
from pt_peft.experiment.site import Site
from pt_peft.model.method import method_names
from pt_peft.privacy.dpsgd import PrivateGradients, poisson_batches
from pt_peft.privacy.draws import Draws, PublicDraws
from pt_peft.training.trainer import LocalTrainer

CPU = torch.device("cpu")
SAMPLE = SamplePrivacy(noise_multiplier=1.0, max_grad_norm=0.5, delta=1e-5)


@pytest.fixture(scope="module")
def train(tiny):
    return load_site_data(tiny, Site(), "site-1", ["site-1"]).train


def trainer_of(tiny, tiny_weights, name, **fields) -> LocalTrainer:
    trainer = LocalTrainer(changed(tiny, method={"name": name, "options": {}}, **fields), tiny_weights, CPU)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, at which many gradients are zero
        for parameter in trainer.model.trained.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return trainer


def private(trainer, parameters=None, sample=SAMPLE, draws=None) -> PrivateGradients:
    return PrivateGradients(
        trainer.model.module, parameters or trainer.model.trained, sample, 4, draws or PublicDraws(0)
    )


@pytest.mark.parametrize("name", [*method_names(), "lora+bitfit"])
def test_equal_to_one_image_at_a_time(name, tiny, tiny_weights, train):
    """By ordinary autograd, for every method and whatever it makes of the model: hooks, prompts, tuners."""
    trainer = trainer_of(tiny, tiny_weights, name)
    keys = trainer.exchange.trained(0).keys()
    trainer.model.activate(keys)
    trained = {key: trainer.model.trained[key] for key in keys}
    images, labels = torch.tensor(train.images[:3]).float() / 255, torch.from_numpy(train.labels[:3])
    names = {id(value): name for name, value in trainer.model.module.named_parameters()}
    found = private(trainer, trained).per_image(trainer._logits, functional.cross_entropy, images, labels)
    assert found.keys() == {names[id(value)] for value in trained.values()}
    for index in range(3):
        one = slice(index, index + 1)
        loss = functional.cross_entropy(trainer._logits(images[one], trainer.model.module), labels[one])
        wanted = torch.autograd.grad(loss, list(trained.values()))
        for parameter, value in zip(trained.values(), wanted, strict=True):
            scale = max(1e-3, float(value.abs().max()))
            torch.testing.assert_close(found[names[id(parameter)]][index], value, rtol=1e-4, atol=2e-5 * scale)
    assert all(parameter.grad is None for parameter in trainer.model.module.parameters())


def test_clipping_takes_all_tensors_together_and_chunks_change_nothing(tiny, tiny_weights, train, monkeypatch):
    trainer = trainer_of(tiny, tiny_weights, "lora_vpt")
    images, labels = torch.tensor(train.images[:7]).float() / 255, torch.from_numpy(train.labels[:7])
    gradients = private(trainer)
    each = gradients.per_image(trainer._logits, functional.cross_entropy, images, labels)
    norms = [sum(float(value[index].square().sum()) for value in each.values()) ** 0.5 for index in range(7)]
    bound = sorted(norms)[3] * 1.001  # some are clipped, and some not
    quiet = SAMPLE.model_copy(update={"max_grad_norm": bound, "noise_multiplier": 0.0})
    wanted = {
        name: sum(value[index] * min(1.0, bound / norms[index]) for index in range(7)) / 4
        for name, value in each.items()
    }
    for limit in (256 * 2**20, 1):  # bytes: at once, as far as a batch goes, or one image at a time
        monkeypatch.setattr("pt_peft.privacy.dpsgd.GRADIENT_BYTES", limit)
        gradients = private(trainer, sample=quiet)
        assert gradients._chunk == (4 if limit > 1 else 1)
        gradients(trainer._logits, functional.cross_entropy, images, labels)
        for name, parameter in trainer.model.module.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_an_image_without_a_finite_gradient_counts_as_none(tiny, tiny_weights, train):
    trainer = trainer_of(tiny, tiny_weights, "lora")
    images, labels = torch.tensor(train.images[:3]).float() / 255, torch.from_numpy(train.labels[:3])
    gradients = private(trainer)
    wanted = gradients.clipped_sum(trainer._logits, functional.cross_entropy, images[:2], labels[:2])
    images[2] = torch.nan
    found = gradients.clipped_sum(trainer._logits, functional.cross_entropy, images, labels)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_noise_is_there_without_any_image_and_as_great_as_it_should_be(tiny, tiny_weights):
    trainer = trainer_of(tiny, tiny_weights, "full")
    private(trainer, draws=Draws())(
        trainer._logits, functional.cross_entropy, torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)
    )
    gradients = [parameter.grad for parameter in trainer.model.trained.values()]
    noise = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    assert len(noise) > 20_000
    assert float(noise.std()) == pytest.approx(SAMPLE.noise_multiplier * SAMPLE.max_grad_norm / 4, rel=0.03)
    assert abs(float(noise.mean())) < 5 * float(noise.std()) / len(noise) ** 0.5


def test_draws():
    for draws in (Draws(), PublicDraws(3)):
        values = draws.normal(200_001)
        assert len(values) == 200_001
        assert abs(values.mean()) < 0.012
        assert values.std() == pytest.approx(1, abs=0.01)
        # The share beyond 1, 2 and 3 deviations.
        for bound, share in ((1, 0.31731), (2, 0.04550), (3, 0.00270)):
            assert (np.abs(values) > bound).mean() == pytest.approx(share, abs=6 * (share / 200_001) ** 0.5)
        uniform = draws.uniform(100_000)
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert uniform.mean() == pytest.approx(0.5, abs=0.006)
        assert abs(np.corrcoef(values[:100_000], values[100_001:])[0, 1]) < 0.02
    assert not np.array_equal(Draws().normal(10), Draws().normal(10))
    assert np.array_equal(PublicDraws(3).normal(10), PublicDraws(3).normal(10))


def test_poisson_batches(train):
    sizes = [len(labels) for _, labels in poisson_batches(train, 0.25, 400, ("flip",), PublicDraws(0))]
    assert np.mean(sizes) == pytest.approx(10, abs=0.7)
    assert np.var(sizes) == pytest.approx(7.5, rel=0.3)
    [(images, labels)] = poisson_batches(train, 0.0, 1, ("flip",), PublicDraws(0))
    assert images.shape == (0, 3, 32, 32)
    assert len(labels) == 0
    [(images, labels)] = poisson_batches(train, 1.0, 1, (), PublicDraws(0))
    assert np.array_equal(labels, train.labels)
    assert np.allclose(images * 255, train.images)


@pytest.mark.parametrize(
    "fields", [{}, {"schedule": "constant", "weight_decay": 0.1, "proximal": 0.1}], ids=["plain", "proximal"]
)
def test_rounds(fields, tiny, tiny_weights, train):
    """Equal only where that is asked for, by name; no loss comes out."""
    privacy = {"sample": SAMPLE.model_dump()}

    def trained(randomness):
        experiment = {"privacy": {**privacy, "randomness": randomness}, "training": fields}
        trainer = LocalTrainer(changed(tiny, **experiment), tiny_weights, CPU)
        result = trainer.train("site-1", train, trainer.initial, 0)
        assert result.loss is None
        assert result.num_samples == len(train)
        return result.tensors

    one, other = (trained("insecure_from_public_seed") for _ in range(2))
    assert all(np.array_equal(value, other[key]) for key, value in one.items())
    one, other = (trained("secret") for _ in range(2))
    assert all(not np.array_equal(value, other[key]) for key, value in one.items())


def test_with_little_noise_and_all_images_it_is_descent_as_ever(tiny, tiny_weights, train):
    """Every image in every batch, no clipping, no noise: the plain gradient of all images, but for AdamW's start."""
    fields = {"training": {"batch_size": 40, "local_epochs": 3}, "data": {"augment": []}}
    plain = LocalTrainer(changed(tiny, **fields), tiny_weights, CPU)
    sample = SamplePrivacy(noise_multiplier=0.1, max_grad_norm=1e-6, delta=1e-5)
    privacy = {"sample": sample.model_dump(mode="json"), "randomness": "insecure_from_public_seed"}
    private_one = changed(tiny, **fields, privacy=privacy)
    settings = sample.model_copy(update={"noise_multiplier": 0.0, "max_grad_norm": 1e6})
    private_one = private_one.model_copy(
        update={"privacy": private_one.privacy.model_copy(update={"sample": settings})}
    )
    wanted = plain.train("site-1", train, plain.initial, 0).tensors
    trainer = LocalTrainer(private_one, tiny_weights, CPU)
    found = trainer.train("site-1", train, trainer.initial, 0).tensors
    moved = np.concatenate([(wanted[key] - plain.initial[key]).ravel() for key in wanted])
    apart = np.concatenate([(wanted[key] - found[key]).ravel() for key in wanted])
    assert np.linalg.norm(apart) < 0.02 * np.linalg.norm(moved)
