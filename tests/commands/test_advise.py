"""``pt-peft advise``: counts are those by hand, and advice names its measurement or says there is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from pt_peft.__main__ import main
from pt_peft.commands.measured import PACKAGED, read_measurements
from pt_peft.presets import demo, override
from pt_peft.privacy.accounting import Steps, epsilon

CLASSES = ("naevus", "melanoma", "basal_cell_carcinoma", "dermatofibroma")
EXPERIMENT = override(demo("lora_vpt")[0], ["federation.rounds=10", 'federation.sites=["north", "south"]'])
INTERVAL = {"mean": 0.6, "low": 0.5, "high": 0.7, "runs": 3}


def report(site: str, counts: tuple[int, ...], **replaced) -> dict:
    classes = dict(zip(CLASSES, counts, strict=True))
    return {
        "site": site,
        "experiment": "lora_vpt",
        "images": {"train": {"images": sum(counts), "classes": classes}, "val": {"images": 0, "classes": {}}},
        "values": None,
        "looks": None,
        "cache": None,
        "privacy": None,
        "round": {
            "bytes_in": 200_000, "bytes_out": 300_000, "statistics_in": 0, "statistics_out": 0,
            "statistics_seconds": 0.0, "steps": 5, "seconds": 36.0, "device": "cpu", "threads": 1, "process_memory": 1,
        },
        "errors": [],
        "warnings": [],
        **replaced,
    }  # fmt: skip


def measured(method: str, value: float, size: int, imbalance="balanced_softmax", runs=3, **less) -> dict[str, Any]:
    return {
        "suite": "s", "data": "ham10000", "partition": "natural", "backbone": "imagenet", "variant": imbalance,
        "method": method, "imbalance": imbalance, "rounds": 12, "image_size": 96, "exchanged_parameters": size,
        "folds": True, "balanced_accuracy": {**INTERVAL, "mean": value, "runs": runs}, "auroc": None,
        "less": {
            name: {"mean": mean, "low": mean - 1, "high": mean + 1, "runs": runs}
            for name, mean in zip(("pooled", "variant weighted_loss"), less.values(), strict=False)
        },
        "commits": ["c"],
    }  # fmt: skip


@pytest.fixture
def advise(tmp_path, capsys, monkeypatch):
    """Runs the command on reports (dicts) and own measurements; without the packaged ones."""
    empty = tmp_path / "packaged.json"
    empty.write_text('{"measured": []}')
    monkeypatch.setattr("pt_peft.commands.measured.PACKAGED", empty)
    (tmp_path / "experiment.json").write_text(EXPERIMENT.to_json())

    def run(*reports: dict, own: list[dict] | None = None, job: Path | None = None, options: tuple[str, ...] = ()):
        paths = []
        for number, one in enumerate(reports):
            paths.append(tmp_path / f"{number}.json")
            paths[-1].write_text(json.dumps(one))
        if own is not None:
            (tmp_path / "own.json").write_text(json.dumps({"measured": own}))
            options = (*options, "--measured", str(tmp_path / "own.json"))
        code = main(["advise", str(job or tmp_path / "experiment.json"), *map(str, paths), *options])
        return code, capsys.readouterr()

    return run


NORTH, SOUTH = report("north", (80, 10, 10, 0)), report("south", (20, 20, 2, 8), round=None)


def test_what_a_site_spends_and_how_it_differs(advise):
    code, said = advise(NORTH, SOUTH, options=("--json",))
    assert code == 0
    found = json.loads(said.out)
    assert found["classes"] == dict(zip(CLASSES, (100, 30, 12, 8), strict=True))
    north, south = found["sites"]
    mix = [100 / 150, 30 / 150, 12 / 150, 8 / 150]
    assert north["different"] == pytest.approx(
        sum(abs(a - b) for a, b in zip((0.8, 0.1, 0.1, 0), mix, strict=True)) / 2
    )
    assert (north["megabytes"], north["hours"]) == (5.0, 0.1)
    assert (north["absent"], north["small_cells"]) == (["dermatofibroma"], {})
    assert (south["megabytes"], south["hours"], south["small_cells"]) == (None, None, {"basal_cell_carcinoma": 2})
    assert (south["images"], found["delta"]) == (50, 1e-5)


def test_statistics_count_in_what_a_site_spends(advise, tmp_path):
    cost = {**NORTH["round"], "statistics_in": 1_600_000, "statistics_out": 400_000, "statistics_seconds": 360.0}
    north = {**NORTH, "round": cost}
    (one,) = json.loads(advise(north, options=("--json",))[1].out)["sites"]
    assert (one["megabytes"], one["hours"]) == (5.0 + 2.0, 0.1 + 0.1)
    alone = tmp_path / "alone.json"
    alone.write_text(override(EXPERIMENT, ["federation.rounds=0", "head.start=ridge"]).to_json())
    found = json.loads(advise(north, job=alone, options=("--json",))[1].out)
    assert (found["sites"][0]["megabytes"], found["sites"][0]["hours"]) == (2.0, 0.1)
    assert [one["field"] for one in found["advised"]] == ["federation.rounds"]
    assert {one["sample"] for one in found["privacy"]} == {None}
    text = advise(north, job=alone)[1].out
    assert "because nothing is trained: the classifier is solved from sums of features" in text
    assert "DP-SGD" not in text


def test_privacy_is_that_of_the_smallest_site(advise):
    found = json.loads(advise(NORTH, SOUTH, options=("--json",))[1].out)
    (one,) = [one for one in found["privacy"] if one["noise_multiplier"] == 2]
    steps = 10 * -(-50 // 8)
    assert one["sample"] == pytest.approx(epsilon([Steps(rate=8 / 50, noise_multiplier=2, count=steps)], 1e-5))
    assert one["release"] == pytest.approx(epsilon([Steps(rate=1, noise_multiplier=2, count=1)], 1e-5))
    assert [one["sample"] for one in found["privacy"]] == sorted(
        (one["sample"] for one in found["privacy"]), reverse=True
    )


def test_without_a_measurement_it_says_so(advise):
    code, said = advise(NORTH, SOUTH)
    assert code == 0
    assert "training.imbalance: balanced_softmax (the job has none)" in said.out
    assert "method.name: lora_vpt (as it is)" in said.out
    assert said.out.count("no measurement of ours bears it") == 4
    assert "the largest class has 12.5 times the images of the smallest" in said.out
    assert "slowest site: north; each round waits for it, 0.10 hours in all" in said.out
    assert "not timed, so that hours are not known: south" in said.out
    assert "smallest site: south, 50 images; largest: north, 100" in said.out


def test_with_measurements_it_names_them(advise):
    own = [
        measured("lora_vpt", 0.66, 61_255, pooled=-1.5, weighted_loss=5.0),
        measured("full", 0.667, 5_495_047, pooled=-1.0),
        measured("norm", 0.60, 5_000),
        measured("lora_vpt", 0.61, 61_255, "weighted_loss", runs=1),
    ]
    out = advise(NORTH, SOUTH, own=own)[1].out
    assert "method.name: lora_vpt (as it is)" in out, "within a point of full, and norm is not"
    assert (
        "measured: ham10000, natural, imagenet, 12 rounds, 3 folds: lora_vpt with balanced_softmax 0.660 "
        "[0.500, 0.700] of balanced accuracy; weighted_loss 0.610 [0.500, 0.700], a difference of +5.0 "
        "[+4.0, +6.0] points" in out
    )
    assert "61,255 numbers a round; less pooled training -1.5 [-2.5, -0.5] points" in out
    assert "federation.rounds: 12 (the job has 10)" in out
    own[2] = measured("norm", 0.66, 5_000, runs=2)
    assert "method.name: norm (the job has lora_vpt)" in advise(NORTH, SOUTH, own=own)[1].out
    assert "2 folds (a lead, not a finding): norm" in advise(NORTH, SOUTH, own=own)[1].out


def test_a_variant_that_differs_in_more_than_the_objective_bears_none(advise):
    own = [
        measured("lora_vpt", 0.66, 61_255),
        measured("lora_vpt", 0.70, 61_255) | {"variant": "ridge_finish"},
        measured("lora_vpt", 0.61, 61_255, "weighted_loss"),
        measured("lora_vpt", 0.62, 61_255, "federation_weights") | {"variant": "federation_weights-rows"},
    ]
    objective = advise(NORTH, SOUTH, own=own)[1].out.partition("method.name")[0]
    assert "balanced_softmax 0.660" in objective
    assert "weighted_loss 0.610" in objective
    assert "balanced_softmax 0.700" not in objective
    assert "federation_weights" not in objective


def test_balanced_and_alike_sites_need_no_other_objective(advise):
    out = advise(report("north", (20, 20, 20, 20)), report("south", (20, 20, 20, 20)))[1].out
    assert "training.imbalance: none (as it is)" in out
    assert "too little to matter" in out


def test_an_objective_that_the_job_cannot_have_is_not_advised(advise, tmp_path):
    private = tmp_path / "private.json"
    sample = '{"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}'
    private.write_text(override(EXPERIMENT, [f"privacy.sample={sample}"]).to_json())
    out = advise(NORTH, SOUTH, job=private)[1].out
    assert "training.imbalance: none (as it is)" in out
    assert "balanced_softmax is refused: --set: field 'training.imbalance' must be 'none' with privacy.sample" in out


def test_a_site_that_cannot_join_ends_in_exit_code_1(advise):
    error = {"level": "error", "kind": "limits\x1b[2J", "count": 1, "examples": []}
    code, said = advise(NORTH, report("south", (0, 0, 0, 0), images=None, errors=[error]))
    assert code == 1
    assert "south: cannot join as it is (limits [2J)" in said.out
    assert "south: cannot join 'lora_vpt' as it is; check-site there says what to mend" in said.err


def test_reports_that_do_not_fit_are_refused(advise, tmp_path):
    def refusal(*reports: dict) -> str:
        code, said = advise(*reports)
        assert (code, said.out) == (1, "")
        return said.err

    assert "1.json: is a second report of the site 'north'" in refusal(NORTH, NORTH)
    assert "0.json: is a report on the experiment 'other', not on 'lora_vpt'" in refusal(
        {**NORTH, "experiment": "other"}
    )
    assert """0.json: field 'site' is "a\\u001b[2J\"""" in refusal(report("a\x1b[2J", (1, 1, 1, 1)))
    for counts in ((-5, 5, 0, 0), (10**400, 1, 1, 1)):
        assert "0.json: field 'images.train." in refusal(report("north", counts))
    assert "field 'round.bytes_in' is 1" in refusal({**NORTH, "round": {**NORTH["round"], "bytes_in": 10**400}})
    assert "0.json: field 'site' is missing" in refusal({"experiment": "lora_vpt"})
    other = {**NORTH, "images": {"train": {"images": 3, "classes": {"eye": 3}}}}
    assert "counts images of 'eye', which is none of the experiment's classes" in refusal(other)


def test_the_packaged_measurements_are_read():
    assert isinstance(read_measurements([]), list)
    assert PACKAGED.is_file()


def test_a_report_of_check_site_is_one(advise, tmp_path, capsys):
    """That the two commands fit together."""
    small = override(EXPERIMENT, ['data.images_per_site={"train": 12, "val": 4, "test": 4}'])
    (tmp_path / "job.json").write_text(small.to_json())
    (tmp_path / "site.json").write_text('{"limits": null}')
    main(
        [
            "check-site",
            str(tmp_path / "site.json"),
            str(tmp_path / "job.json"),
            "--name",
            "north",
            "--no-timing",
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    code, said = advise(found, job=tmp_path / "job.json")
    assert code == 0, said.err
    assert "north" in said.out
    assert "12 training images" in said.out
    parameters = found["round"]["bytes_in"] + found["round"]["bytes_out"]
    assert parameters > 0
    assert "not timed, so that hours are not known: north" in said.out
    assert f"{small.federation.rounds * parameters / 1e6:,.1f}" in said.out
