"""Result files of version 1 keep their runs, their figures and what these were run on."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_result_file import SUITE, one_of_each, write

from benchmark.__main__ import main
from benchmark.sweep.result_file import read
from benchmark.sweep.upgrade import upgrade
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import Columns, SiteData
from pt_peft.presets import demo

SECTION: dict[str, Any] = demo("lora")[0].data.model_dump(mode="json")
COLUMNS = {"file": "file", "label": "label", "split": "split", "group": None, "site": None}


def as_version_1(path: Path, data: dict) -> None:
    """Makes of a file what the code of version 1 has written, its experiments with these fields of ``data``."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["version"] = 1
    for record in records:
        record.pop("site_data", None)
        if "experiment" in record:
            record["experiment"]["data"] |= data
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "small.jsonl"
    write(path, *one_of_each())
    return path


def test_runs_on_generated_images_are_what_they_were(path, capsys):
    before = read(path)
    as_version_1(path, {"columns": COLUMNS, "no_finding": None})
    with pytest.raises(
        UserError, match=r"is of version 1 .*'python -m benchmark upgrade' makes version 2 of version 1"
    ):
        read(path)
    assert main(["upgrade", str(path)]) == 0
    assert "small.jsonl: 7 records" in capsys.readouterr().out
    after = read(path)
    assert after.suite == SUITE
    assert after.choices == before.choices
    assert {name: run.model_dump_json() for name, run in after.runs.items()} == {
        name: run.model_dump_json() for name, run in before.runs.items()
    }


def test_runs_on_own_images_keep_their_columns(path):
    columns = {**COLUMNS, "label": "dx", "group": "lesion_id", "site": "site"}
    as_version_1(path, {"source": "csv", "task": "multilabel", "columns": columns, "no_finding": "none"})
    assert upgrade(path) == 7
    columns = Columns(label="dx", group="lesion_id", site="site")
    for run in read(path).runs.values():
        assert run.site_data == SiteData(columns=columns, no_finding="none", pooled=True).meaning()
        assert run.experiment["data"] == {**SECTION, "source": "site", "task": "multilabel"}


def test_the_suite_is_one_of_today(path):
    lines = path.read_text().splitlines(keepends=True)
    task = {"data": {"source": "csv", "classes": ["a", "b"], "columns": {"label": "dx"}}, "site": {"table": "t.csv"}}
    pretraining = {"data": {"source": "npz", "classes": ["a", "b"]}, "site": {"npz": "x.npz"}}
    backbones = {"further": {"pretraining": pretraining}, "embedded": {"pretraining": None}}
    suite = {**json.loads(lines[0]), "version": 1, "suite": {"data": {"x": task}, "backbones": backbones}}
    path.write_text(json.dumps(suite) + "\n")
    upgrade(path)
    found: dict[str, Any] = read(path).suite.suite
    assert found["data"]["x"] == {
        "data": {"source": "site", "classes": ["a", "b"]},
        "site": {"table": "t.csv", "source": "csv", "columns": {"label": "dx"}},
    }
    assert found["backbones"]["further"]["pretraining"]["site"] == {"npz": "x.npz", "source": "npz"}


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (
            0,
            '{"kind": "suite", "version": 2, "name": "small", "suite": {}}',
            "line 1: has the kind 'suite' and version 2",
        ),
        (3, '{"kind": "cell", "na', "line 4: is no record of a result file"),
        (3, '{"kind": "cell", "experiment": {}}', "line 4: field 'name' is missing"),
    ],
)
def test_what_is_no_such_file_is_left_as_it_is(path, number, line, message):
    as_version_1(path, {"columns": COLUMNS})
    lines = path.read_text().splitlines()
    lines[number] = line
    path.write_text("\n".join(lines) + "\n")
    content = path.read_bytes()
    with pytest.raises(UserError, match=message):
        upgrade(path)
    assert path.read_bytes() == content
