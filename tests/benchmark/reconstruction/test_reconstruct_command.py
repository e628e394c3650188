"""``python -m benchmark reconstruct``: it finds the hole and nothing in a shipped job, and what is a mistake."""

import json

import pytest

from benchmark.__main__ import main
from benchmark.reconstruction.attacks import ATTACKS
from benchmark.reconstruction.ladder import LADDER
from pt_peft.errors import OutsideLimits
from pt_peft.experiment.limits import Limits
from pt_peft.model.backbone import EMBEDDED
from pt_peft.presets import override, preset
from pt_peft.training.footprint import check_model

HOLE = (
    'data.images_per_site={"train":1,"val":8,"test":64}',
    "data.augment=[]",
    "training.control_variates=true",
    "backbone.image_size=32",
    "backbone.kwargs.patch_size=32",
)
"""One image of one hospital rebuilt exactly: one image a site, in one patch, `full`, control variates."""
FOUND = {
    *("one patch", "one patch in 8 steps", "one patch of 4 images", "one patch of 32 images"),
    *("one patch without variates", "16 patches without variates"),
    *("16 patches", "16 patches in 8 steps", "16 patches of 4 images"),
}
"""Rungs of the ladder that closed forms climb, with the fewest iterations."""


@pytest.fixture
def reconstruct(tmp_path, capsys):
    """Runs the command on an experiment, and gives its exit code, result, and what it said on standard error."""

    def run(method: str, *changes: str, options: tuple[str, ...] = ()) -> tuple[int, dict, str]:
        file, out = tmp_path / "experiment.json", tmp_path / "result.json"
        file.write_text(override(preset(method)[0], list(changes)).to_json())
        code = main(["reconstruct", str(file), "--iterations", "20", "--out", str(out), *options])
        said = capsys.readouterr().err
        return code, json.loads(out.read_text()) if out.exists() else {}, said

    return run


def test_the_hole_is_found(reconstruct):
    code, result, said = reconstruct("full", *HOLE, options=("--views", "payload", "--fail-if-found"))
    (audit,) = result["audits"]
    best = audit["best"]
    assert code == 1
    assert said.startswith("error: full: FOUND: 'embedding ")
    assert audit["verdict"] in said
    assert audit["found"]
    assert best["evidence"] == "control variate"
    assert best["psnr"] > 120
    assert best["error"] < 1e-3
    assert best["p"] < 1e-6
    # The same attack on another image's round is no nearer to this one than chance.
    assert best["swapped"]["psnr"] < best["chance"]["psnr"]["high"] + 3
    searched = {one["attack"]: one for one in audit["findings"] if one["evidence"] == "control variate"}
    assert searched["gradient matching"]["iterations"] == 20
    assert searched["embedding rows"]["iterations"] == 0


@pytest.mark.parametrize(
    "field", ["methods", "control_variates", "min_train_images", "min_steps", "min_patches", "pinned_backbone"]
)
def test_the_hole_is_refused_by_each_default_limit_alone(field):
    experiment = override(preset("full")[0], list(HOLE))
    limits = Limits.open().model_copy(update={field: getattr(Limits(), field)})

    def ask(limits: Limits) -> None:
        limits.check(experiment)
        check_model(experiment, limits, lambda: EMBEDDED, trains=True)
        limits.check_images(experiment, 1)

    with pytest.raises(OutsideLimits) as refused:
        ask(limits)
    assert refused.value.field == field
    ask(Limits.open())


def test_a_default_job_is_within_the_default_limits():
    experiment = preset("lora_vpt")[0]
    Limits().check(experiment)
    check_model(experiment, Limits(), lambda: EMBEDDED, trains=True)
    Limits().check_images(experiment, 384)


def test_a_default_job_shows_nothing(reconstruct):
    smaller = ('data.images_per_site={"train":64,"val":32,"test":64}', "federation.rounds=1")
    code, result, said = reconstruct("lora_vpt", *smaller, options=("--fail-if-found",))
    (audit,) = result["audits"]
    assert (code, said, audit["found"]) == (0, "", False)
    assert audit["verdict"].startswith("lora_vpt: nothing beyond chance in 4 attacks; the nearest, '")
    assert {(one["view"], one["members"]) for one in audit["findings"]} == {("payload", 64), ("adapter", 128)}
    assert {one["attack"] for one in audit["findings"]} == {"gradient matching", "head features"}
    assert all(one["p"] >= 0.01 for one in audit["findings"])
    assert (audit["site"], audit["sites"]) == ("site-1", {"site-1": 64, "site-2": 64})
    assert result["provenance"]["versions"]["torch"]
    assert result["design"] == {"iterations": 20, "seconds": 120, "seed": 0, "alpha": 0.01}


def test_an_encrypted_job_has_no_payload_to_attack(reconstruct):
    smaller = (
        'data.images_per_site={"train":8,"val":8,"test":16}',
        "federation.rounds=1",
        'encryption={"scheme":"ckks"}',
    )
    _, result, _ = reconstruct("linear_probe", *smaller)
    assert {one["view"] for one in result["audits"][0]["findings"]} == {"adapter"}
    code, result, _ = reconstruct("linear_probe", *smaller, options=("--views", "payload", "--fail-if-found"))
    assert code == 0
    assert result["audits"][0]["verdict"].endswith("nothing to attack: no attack finds what it needs in what leaves.")


def test_mistakes(reconstruct, capsys):
    def refusal(*options: str) -> str:
        assert main(["reconstruct", *options]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    assert "either jobs or --ladder" in refusal()
    assert "either jobs or --ladder" in refusal("lora", "--ladder")
    assert "--iterations is 0; at least 1" in refusal("lora", "--iterations", "0")
    assert "--seconds is 0; more than 0" in refusal("lora", "--seconds", "0")
    assert "--seed is -1" in refusal("lora", "--seed", "-1")
    assert "is neither a file" in refusal("lorra")
    few = ('data.images_per_site={"train":8,"val":8,"test":8}', "federation.rounds=1")
    code, _, said = reconstruct("linear_probe", *few)
    assert code == 1
    assert "has 16 validation and test images; at least 20 would be right" in said


def test_the_ladder_is_valid_and_named_once():
    names = [rung.name for rung in LADDER]
    assert len(set(names)) == len(names)
    assert set(names) >= FOUND
    for rung in LADDER:
        subject = rung.subject()
        assert subject.label == rung.name
        assert subject.experiment.data.images_per_site["train"] == (rung.images or 384)
    assert all(attack.paper for attack in ATTACKS.values())


@pytest.mark.slow
def test_the_ladder_is_found_down_to_its_middle_and_not_below(tmp_path):
    out = tmp_path / "ladder.json"
    assert main(["reconstruct", "--ladder", "--iterations", "10", "--out", str(out)]) == 0
    audits = {audit["name"]: audit for audit in json.loads(out.read_text())["audits"]}
    assert {name for name, audit in audits.items() if audit["found"]} >= FOUND
    for name, audit in audits.items():
        if name.startswith(("lora", "vpt", "linear", "demo")):
            assert not audit["found"], audit["verdict"]
