"""The file of a suite's results: round trips, crashes, writers at once, full disks, and what is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.oracle.predictions import Predictions
from benchmark.sweep.cells import Cell
from benchmark.sweep.records import (
    Axes,
    BaselineRecord,
    BaselineRow,
    CellRecord,
    ChoiceAxes,
    ChoiceRecord,
    FailureRecord,
    Final,
    FinalTest,
    Record,
    Round,
    RunProvenance,
    Scalars,
    SiteRound,
    SuiteRecord,
    TrialRecord,
    TriedSettings,
    Validation,
    Verification,
    with_defaults,
)
from benchmark.sweep.result_file import ResultFile, read
from benchmark.sweep.suite import Suite
from benchmark.sweep.sweep import _Pass
from helpers import ROOT
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import Columns, SiteData
from pt_peft.experiment.site import Site
from pt_peft.federation.reports import SplitMetrics
from pt_peft.presets import demo

SUITE = SuiteRecord(name="small", suite={"name": "small", "seeds": [0, 1]})
PLACE = {"domain": "d", "data": "x", "partition": "iid", "backbone": "b", "variant": "default", "method": "lora"}
KNOWN = {
    "engine": "reference",
    "experiment": demo("lora")[0].model_dump(mode="json"),
    "site_data": SiteData(pooled=True).meaning(),
    "seconds": {"total": 1.5},
    "peak_memory_bytes": 10,
    "provenance": RunProvenance(commit="c", dirty=False, versions={"torch": "2"}, machine={"cores": 2}, time="t"),
}
SCALARS = Scalars(count=3, loss=0.1 + 0.2, accuracy=2 / 3, balanced_accuracy=0.5)
VALIDATION = Validation(mean=SCALARS.model_copy(update={"count": None}), sites={"a": SCALARS})


def cell(name: str = "cell", images: int = 40, commit: str = "c") -> CellRecord:
    generator = np.random.default_rng(images)
    labels = generator.integers(3, size=images)
    predictions = Predictions(
        ["a", "b"], generator.normal(size=(images, 3)).astype(np.float16), labels, (labels % 2).astype(np.uint16)
    )
    metrics = SplitMetrics.model_validate(predictions.metrics("multiclass")["pooled"])
    report = SiteRound(num_samples=9, train_loss=None, seconds=0.5, val=SCALARS)
    return CellRecord(
        **KNOWN | {"provenance": KNOWN["provenance"].model_copy(update={"commit": commit})},
        name=name,
        axes=Axes(**PLACE, seed=0),
        exchanged_parameters=7,
        rounds=[Round(round=0, seconds=1.0, bytes_in=28, bytes_out=56, sites={"a": report}, val=None)],
        final=Final(val=VALIDATION, test=FinalTest(pooled=metrics, sites={"a": SCALARS})),
        verification=Verification(engine="flare", max_difference=3e-8),
        predictions=predictions,
    )


def failed(name: str) -> FailureRecord:
    reason = 'out of memory: "é\n{'
    return FailureRecord(**KNOWN, name=name, axes=Axes(**PLACE, seed=1), run_kind="cell", reason=reason)


def choice(chosen: int | None = 0, **place: str) -> ChoiceRecord:
    tried = TriedSettings(learning_rate=1e-3, head_learning_rate=None, options={"lora": {"rank": 4}}, val=0.5)
    return ChoiceRecord(axes=ChoiceAxes(**{**PLACE, **place}), trials=[tried], chosen=chosen)


def one_of_each() -> list[Record]:
    pooled = cell().final.test
    return [
        choice(),
        choice(None, method="norm"),
        TrialRecord(**KNOWN, name="trial", axes=Axes(**PLACE, seed=9), val=VALIDATION),
        BaselineRecord(
            **KNOWN, name="baseline", axes=Axes(**PLACE, seed=0), rows=[BaselineRow(name="pooled", test=pooled)]
        ),
        cell(),
        failed("failed"),
    ]


def write(path: Path, *records: Record) -> None:
    with ResultFile.open(path, SUITE) as results:
        for record in records:
            results.append(record)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "small.jsonl"


def test_what_is_written_is_read(path):
    written = one_of_each()
    write(path, *written)
    contents = read(path)
    assert contents.suite == SUITE
    found = [*contents.choices.values(), *contents.runs.values()]
    assert sorted(one.model_dump_json() for one in found) == sorted(one.model_dump_json() for one in written)
    kept, given_ = contents.runs["cell"], cell()
    assert isinstance(kept, CellRecord)
    for name in ("logits", "labels", "site"):
        before, after = getattr(given_.predictions, name), getattr(kept.predictions, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert (kept.bytes_in, kept.bytes_out, kept.wire_bytes) == (28, 56, 84)


def test_going_on_with_a_file_changes_none_of_it(path):
    write(path, *one_of_each())
    before = path.read_bytes()
    write(path)
    assert path.read_bytes() == before
    assert before.splitlines() == [line for _, line in sorted(read_lines(path).items())]


def read_lines(path: Path) -> dict[tuple[int, str], bytes]:
    return {key: line.rstrip(b"\n") for key, line in read(path).lines.items()}


def test_the_last_record_of_a_run_counts_and_the_others_go(path):
    with ResultFile.open(path, SUITE) as results:
        for record in (cell("b", commit="old"), cell("a"), choice(None), failed("c"), cell("b", commit="new")):
            results.append(record)
        results.append(cell("c"))
        results.append(choice(0))
        assert len(path.read_bytes().splitlines()) == 8
        during = read(path)
    contents = read(path)
    for one in (during, contents):
        assert {name: (run.kind, run.provenance.commit) for name, run in one.runs.items()} == {
            "a": ("cell", "c"),
            "b": ("cell", "new"),
            "c": ("cell", "c"),
        }
        assert [found.chosen for found in one.choices.values()] == [0]
    kinds = [json.loads(line)["kind"] for line in path.read_bytes().splitlines()]
    assert kinds == ["suite", "choice", "cell", "cell", "cell"]


def test_lines_put_there_by_hand_meanwhile_stay(path, tmp_path):
    """As results of another machine are."""
    other = tmp_path / "other.jsonl"
    write(other, cell("elsewhere"))
    with ResultFile.open(path, SUITE) as results:
        results.append(cell("here"))
        with path.open("ab") as file:
            file.write(other.read_bytes().splitlines(keepends=True)[1])
        results.append(failed("last"))
    assert sorted(read(path).runs) == ["elsewhere", "here", "last"]


def test_a_suite_that_has_changed_is_in_the_first_line(path):
    write(path, cell())
    with ResultFile.open(path, SuiteRecord(name="small", suite={"seeds": [5]})):
        pass
    assert read(path).suite.suite == {"seeds": [5]}
    assert list(read(path).runs) == ["cell"]


def test_fields_that_experiments_have_gained_since_have_their_defaults(path):
    write(path, cell())
    line = path.read_text().splitlines()[1]
    record = json.loads(line)
    del record["experiment"]["training"]["proximal"]
    del record["site_data"]["classes"]
    path.write_text(path.read_text().replace(line, json.dumps(record)))
    assert read(path).runs["cell"].experiment == KNOWN["experiment"]
    assert read(path).runs["cell"].site_data == KNOWN["site_data"]


@pytest.mark.parametrize(("source", "meant"), [("site", "crop"), ("lesions", "pad")])
def test_files_were_cropped_before_there_was_a_field_that_says_so(source, meant):
    fields = demo("lora")[0].model_dump(mode="json")
    del fields["data"]["fit"]
    found = with_defaults({**fields, "data": {**fields["data"], "source": source}})
    assert isinstance(found, dict)
    assert found["data"]["fit"] == meant
    said = {**fields, "data": {**fields["data"], "source": source, "fit": "squash"}}
    assert with_defaults(said) == said
    assert with_defaults({"data": 3}) == {"data": 3}


def test_a_run_on_images_of_another_meaning_is_not_finished(path):
    write(path, cell("lora"))
    suite = Suite.read("smoke")
    with ResultFile.open(path, SUITE) as results:
        sweep = _Pass(suite, results, "reference", 0, lambda: pytest.fail("nothing is to be started"))

        def finished(**data) -> bool:
            site = Site(data=SiteData(pooled=True, **data))
            return sweep._is_finished(Cell("cell", Axes(**PLACE, seed=0), demo("lora")[0], site), verified=False)

        assert finished(images="elsewhere.zip")
        assert not finished(columns=Columns(label="subtype"))
        assert not finished(classes={"melanoma": ("mel",)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10**6))
def test_a_crash_in_the_middle_of_a_write_costs_that_line_alone(tmp_path, capsys, cut):
    path = tmp_path / "cut.jsonl"
    path.unlink(missing_ok=True)
    write(path, *(cell(name, 5) for name in "abc"))
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    kept = whole[: header + cut % (len(whole) - header)]
    path.write_bytes(kept)
    names, rest = "abc"[: kept.count(b"\n") - 1], kept.rpartition(b"\n")[2]
    if rest + b"\n" in whole.splitlines(keepends=True):  # it lacks nothing but its end
        names, rest = "abc"[: len(names) + 1], b""
    capsys.readouterr()
    assert list(read(path).runs) == list(names)
    said = f"warning: {path}, line {len(names) + 2}: is cut off, and left out.\n"
    assert capsys.readouterr().err == (said if rest else "")
    aside = path.with_suffix(".broken")
    aside.unlink(missing_ok=True)
    write(path, cell("d", 5))
    assert list(read(path).runs) == [*names, "d"]
    assert (aside.read_bytes() if aside.exists() else b"") == rest


LOOP = """
import sys
from test_result_file import SUITE, cell
from benchmark.sweep.result_file import ResultFile
from pathlib import Path
with ResultFile.open(Path(sys.argv[1]), SUITE) as results:
    print("open", flush=True)
    for number in range(10**6):
        results.append(cell(f"cell-{number:06}", 2000))
        print(number, flush=True)
"""


def child(path: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            (str(ROOT), str(ROOT / "custom"), str(ROOT / "tests"), str(Path(__file__).parent))
        ),
    }
    return subprocess.Popen([sys.executable, "-c", LOOP, str(path)], env=environment, stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_nothing_that_was_written_and_two_writers_are_refused(path):
    with child(path) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another process is writing its results there"):
            write(path)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split()]
    last = said[-1] if said else 2
    found = read(path).runs
    assert sorted(found)[: last + 1] == [f"cell-{number:06}" for number in range(last + 1)]
    write(path, cell("more"))
    assert "more" in read(path).runs
    assert len(read(path).runs) == len(found) + 1


def test_a_full_disk_leaves_the_file_as_it_was(path):
    """A limit on the size of files stands for the disk: a write ends in its middle, with an error."""
    write(path, cell("a"))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = (
        "small.jsonl: cannot be written \\(File too large\\); the results so far are whole, and the same command goes "
        "on with them"
    )
    with ResultFile.open(path, SUITE) as results:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            with pytest.raises(UserError, match=said):
                results.append(cell("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert list(results.contents.runs) == ["a"]
        results.append(cell("b"))
    assert list(read(path).runs) == ["a", "b"]


def test_a_full_disk_at_the_start(path):
    write(path, cell("b"), cell("a"))
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + rest * 2)  # to be compacted
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.glob(".small*")) == []


def altered(**fields: object) -> str:
    return json.dumps({**json.loads(cell().model_dump_json()), **fields})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty; a suite's results begin with a line of kind 'suite'"),
        (["{"], "line 1: is not valid JSON; it held the suite, so put it back from a copy of the file"),
        (
            [SUITE.model_dump_json(), altered(), SUITE.model_dump_json().replace("small", "other")],
            "line 3: begins the results of a suite ('other'), as line 1 does ('small'); a file for each would be right",
        ),
        ([cell().model_dump_json()], "line 1: has the kind 'cell'; a suite's results begin with one of kind 'suite'"),
        (
            [SUITE.model_dump_json().replace('"version":3', '"version":4')],
            "line 1: is of version 4 of the file's schema, and this code reads version 3",
        ),
        ([SUITE.model_dump_json(), "{", altered()], "line 2: is not valid JSON ("),
        ([SUITE.model_dump_json(), "", altered()], "line 2: is not valid JSON ("),
        ([SUITE.model_dump_json(), "[1]"], "line 2: has the kind None; suite, choice, cell, "),
        ([SUITE.model_dump_json(), altered(kind="cel")], "line 2: has the kind 'cel'; suite, choice, cell, "),
        ([SUITE.model_dump_json(), altered(kind=["cell"])], "line 2: has the kind ['cell']; suite, choice, "),
        ([SUITE.model_dump_json(), altered(exchanged=1)], "line 2: field 'exchanged' is unknown; did you mean"),
        ([SUITE.model_dump_json(), altered(exchanged_parameters=-1)], "line 2: field 'exchanged_parameters' is -1: "),
        ([SUITE.model_dump_json(), altered(seconds={"total": "1"})], "line 2: field 'seconds.total' is \"1\": "),
        ([SUITE.model_dump_json(), altered(seconds={"total": float("nan")})], "line 2: field 'seconds.total' is NaN"),
        ([SUITE.model_dump_json(), altered(engine="plain")], "line 2: field 'engine' is \"plain\": "),
        ([SUITE.model_dump_json(), altered(axes={**PLACE})], "line 2: field 'axes.seed' is missing"),
        (
            [SUITE.model_dump_json(), altered(predictions=3)],
            "line 2: field 'predictions' is 3: cannot be read as an .npz",
        ),
    ],
)
def test_a_file_that_is_not_right_is_refused_in_one_sentence(path, lines, said):
    path.write_text("".join(line + "\n" for line in lines))
    before = path.read_bytes()
    for reading in (read, write):
        with pytest.raises(UserError) as error:
            reading(path)
        assert str(error.value).startswith(f"{path}")
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_results_of_another_suite_are_not_touched(path):
    write(path, cell())
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds results of the suite 'small', not of 'other'"):
        ResultFile.open(path, SuiteRecord(name="other", suite={})).__enter__()
    assert path.read_bytes() == before


def test_a_line_is_small():
    """A hundred cells of a thousand images and ten classes are to fit into a few megabytes."""
    labels = np.random.default_rng(0).integers(10, size=1000)
    logits = np.random.default_rng(1).normal(size=(1000, 10)).astype(np.float16)
    assert len(Predictions(["a"], logits, labels, np.zeros(1000, np.uint16)).pack()) < 30_000
