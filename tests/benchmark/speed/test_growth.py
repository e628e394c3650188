"""How costs grow with the number of sites: what is measured, and what it has led to."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from benchmark.speed import growth
from benchmark.speed.aggregation_cost import MIXED, NAMES, Shapes, cost, exchange, experiment
from benchmark.speed.contenders import HOOKS, simulator
from benchmark.speed.growth import aggregations, exponent, federation
from benchmark.speed.marks import VARIABLE
from benchmark.speed.measure import Mark, Server, _server, python_path
from helpers import changed
from pt_peft.model.adapted_model import build_model
from pt_peft.model.planned_exchange import planned_exchange

SMALL = Shapes(width=16, blocks=2, prompts=1)


def interval(costs):
    found = exponent(costs)
    assert found
    return found.value, found.low, found.high


def test_the_exponent():
    assert interval({4: 16.0, 16: 128.0, 64: 1024.0}) == pytest.approx((1.5, 1.5, 1.5))
    costs = {4: 1.0, 16: 3.0, 64: 21.0, 256: 60.0}
    line: Any = linregress(np.log([*costs]), np.log([*costs.values()]))
    half = t.ppf(0.975, 2) * line.stderr
    assert interval(costs) == pytest.approx((line.slope, line.slope - half, line.slope + half))
    assert interval({4: 1.0, 16: 4.0}) == (pytest.approx(1), None, None)
    assert exponent({4: 1.0}) is exponent({4: 1.0, 16: 0.0}) is None


@pytest.mark.parametrize("rule", NAMES)
def test_each_rule(rule):
    if rule == "encrypted mean":
        pytest.importorskip("tenseal")
    found = cost(rule, 5, SMALL)
    assert found.cpu_s == found.arrival_s + found.finish_s
    assert min(found.arrival_s, found.finish_s) > 0
    assert 0 <= found.peak_mb < 100


@pytest.mark.parametrize("rule", ["mean", "FFA-LoRA", "FedEx-LoRA", "mean with control variates", "mean" + MIXED])
def test_what_travels_is_what_a_model_exchanges(rule):
    shapes = Shapes(width=192, blocks=12, prompts=10)
    asked = changed(experiment(rule, 4, shapes), backbone={"name": "vit_tiny_patch16_224", "image_size": 32})
    planned, made = planned_exchange(build_model(asked.model, None), asked), exchange(asked, shapes)
    for kind in ("specs", "always", "computed", "control", "head"):
        assert getattr(made, kind) == getattr(planned, kind), kind


def test_too_few_results_for_a_rule_are_left_out():
    found = aggregations((2, 5), 0, ["multi-Krum"])["multi-Krum"]
    assert [*found["sites"]] == [5]
    assert set(found["exponents"].values()) == {None}
    assert found["sites"][5]["cpu_s"] > 0


def test_what_a_server_has_used(tmp_path):
    """The hook marks when its rounds begin and end, also if they fail."""
    code = (
        "from pt_peft_flare.federated_run import FederatedRun\n"
        "try: FederatedRun.complete(None)\n"
        "except AttributeError: pass"
    )
    marks = tmp_path / "marks"
    environment = {**os.environ, **python_path(HOOKS), VARIABLE: str(marks)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    noted = [json.loads(line) for line in marks.read_text().splitlines()]
    assert [one["what"] for one in noted] == ["serves", "served"]
    assert noted[0]["pss"] > 10_000_000
    begun, ended = (
        Mark(what=what, site="", at=0, pid=7, cpu_s=cpu, pss=10**9) for what, cpu in (("serves", 2), ("served", 5))
    )
    assert _server([begun, ended], {7: 3 * 10**9}) == Server(cpu_s=3, start_pss_gb=1, end_pss_gb=1, pss_gb=3)
    assert _server([begun], {7: 1}) is None


def test_more_sites_than_flare_takes_by_itself():
    assert simulator("job", threads=4, sites=256)[-4:] == ["-t", "4", "-m", "256"]


def test_options_that_make_no_sense(tmp_path, capsys):
    for arguments, message in (
        (["--sites", "16", "4"], "--sites: 16 4; rising numbers"),
        (["--results", "1"], "--results: 1; rising numbers"),
        (["--threads", "0"], "--threads: 0; 1 or more"),
        (["--out", str(tmp_path)], "is a folder; the name of a file"),
    ):
        assert growth.main(arguments) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("content", "said"), [("{", "is not valid JSON"), ("[]", "is no result file")])
def test_a_file_that_is_no_result_file_is_told_before_anything_is_measured(content, said, tmp_path, capsys):
    (tmp_path / "growth.json").write_text(content)
    assert growth.main(["--sites", "--results", "--out", str(tmp_path / "growth.json")]) == 1
    assert said in capsys.readouterr().err


def test_the_result_file(tmp_path, monkeypatch):
    def federation(sites, threads, folder):
        return {"round_s": sites / threads, "server_pss_gb": 0.1}

    monkeypatch.setattr(growth, "federation", federation)
    monkeypatch.setattr(
        growth, "aggregations", lambda results, prompts: {"mean": growth.with_exponents({2: {"a": 1.0}})}
    )
    out = tmp_path / "growth.json"
    assert not growth.main(["--sites", "2", "4", "8", "--threads", "2", "--out", str(out)])
    written = json.loads(out.read_bytes())
    assert written["federations"]["sites"]["8"]["round_s"] == 4
    assert written["federations"]["exponents"]["round_s"]["value"] == pytest.approx(1)
    assert [*written["aggregations"]] == ["provenance", "LoRA", "LoRA + deep prompts"]
    assert not growth.main(["--sites", "--results", "2", "--out", str(out)])
    assert json.loads(out.read_bytes())["federations"] == written["federations"]
    assert written["federations"]["provenance"]["commit"]


@pytest.mark.slow
def test_a_simulation(tmp_path):
    found = federation(3, 2, tmp_path)
    assert found["wall_s"] > found["round_s"] > 0
    assert found["training_cpu_s"] > 0
    assert found["server_cpu_s"] > 0
    assert found["peak_pss_gb"] > found["server_pss_gb"] > found["server_start_pss_gb"] > 0.01
