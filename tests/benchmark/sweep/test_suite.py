"""Suites and the cells that they are made of, without running any."""

from pathlib import Path

import pytest
import yaml

from benchmark.sweep import suite as suites
from benchmark.sweep.cells import Cell, Grid, located
from benchmark.sweep.records import ChoiceAxes, ChoiceRecord, TriedSettings, without_federation
from benchmark.sweep.suite import Images, Suite
from benchmark.sweep.trials import Settings, Tuning, best, further
from helpers import ROOT
from pt_peft.data.delimited import read_rows
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Fold

SMOKE = yaml.safe_load((ROOT / "benchmark" / "suites" / "smoke.yaml").read_text())


def choice(axes: ChoiceAxes, tried: list[Settings], chosen: int | None) -> ChoiceRecord:
    trials = [
        TriedSettings(learning_rate=one.learning_rate, head_learning_rate=None, options=one.options, val=0.5)
        for one in tried
    ]
    return ChoiceRecord(axes=axes, trials=trials, chosen=chosen)


def chosen_first(grid: Grid) -> list[ChoiceRecord]:
    return [choice(axes, tried, 0) for axes, tried in grid.tuning()]


@pytest.fixture
def write(tmp_path):
    def write(**fields) -> str:
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({**SMOKE, **fields}))
        return str(path)

    return write


@pytest.mark.parametrize("name", [path.stem for path in sorted(suites.SUITES.glob("*.yaml"))])
def test_every_cell_of_every_suite_is_a_valid_experiment(name, shared, tmp_path):
    suite = Suite.read(name)
    # Any file stands for weights that would have to be trained first.
    weights = {backbone: (ROOT / "README.md" if model.weights else None) for backbone, model in suite.backbones.items()}
    grid = Grid(suite, weights, tmp_path)
    chosen = chosen_first(grid)
    cells = list(grid.runs(chosen))
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    runs = [cell for cell in cells if cell.kind == "cell"]
    assert len(runs) == len(list(suite.places())) * len(suite.methods) * len(suite.seeds)
    budgets = {len(one.trials) for one in chosen}
    assert len(budgets) <= 1  # the same for every method
    for cell in runs:
        assert cell.experiment.seed == cell.axes.seed
        assert cell.experiment.method.name == cell.axes.method
        assert suite.tuning is None or cell.experiment.seed != suite.tuning.seed


def test_the_chosen_trial_is_what_runs(write):
    suite = Suite.read(write(tuning={"factors": [0.5, 1], "options": {"lora": {"rank": [2, 8]}}, "seed": 9}))
    grid = Grid(suite, {"embedded": None}, Path())
    (lora_axes, lora), (probe_axes, probe), (pooled_axes, pooled), (_, local) = grid.tuning()
    lora_cells, pooled_cells = grid.trials(lora_axes, lora), grid.trials(pooled_axes, pooled)
    assert [(trial.learning_rate, trial.options) for trial in lora] == [
        (rate, {"lora": {"rank": rank}}) for rate in (0.0015, 0.003) for rank in (2, 8)
    ]
    assert [cell.experiment.seed for cell in lora_cells] == [9] * 4
    assert len(probe) == 2
    assert pooled == local == lora
    assert pooled_cells[0].baseline == "pooled"
    assert pooled_cells[0].experiment.method == lora_cells[0].experiment.method
    choices = [choice(lora_axes, lora, 3), choice(probe_axes, probe, None), choice(pooled_axes, lora, 1)]
    cells = list(grid.runs(choices))
    assert {cell.axes.method for cell in cells} == {"lora", "pooled"}  # of the others no trial finished
    assert (cells[1].kind, cells[1].experiment.training.learning_rate) == ("baseline", 0.0015)
    experiment = cells[0].experiment
    assert experiment.method.options == {"lora": {"rank": 8}}
    assert experiment.training.learning_rate == 0.003
    assert experiment.training.head_learning_rate == 0.005  # the suite's, as the method's is smaller
    assert [cell.kind for cell in cells] == ["cell", "baseline"]


def all_cells(name: str) -> list[Cell]:
    suite = Suite.read(name)
    grid = Grid(suite, dict.fromkeys(suite.backbones), Path())
    return list(grid.runs(chosen_first(grid)))


def test_cells_compute_as_the_device_does_best_unless_the_suite_says_otherwise(write):
    def precisions(**fields) -> set[str]:
        grid = Grid(Suite.read(write(tuning=None, **fields)), {"embedded": None}, Path())
        return {cell.experiment.training.precision for cell in grid.runs([])}

    assert precisions() == {"float32"}, "the embedded images, which end alike on all machines"
    assert precisions(defaults={}) == {"auto"}
    assert precisions(variants={"a": {"training": {"precision": "bfloat16"}}}) == {"bfloat16"}


def test_best():
    assert best([None, 0.5, 0.7, 0.7]) == 2
    assert best([None]) is None


def test_further_rates_are_tried_while_the_best_lies_at_an_end():
    tuning = Tuning(factors=(0.5, 1, 3), widen=2, seed=9)
    first = [Settings(rate, {}) for rate in (1.0, 2.0, 6.0)]
    assert further(tuning, first, first, [0.1, 0.3, 0.2]) is None, "inside"
    assert further(tuning, first, first, [None, None, None]) is None
    assert further(tuning, first, first, [0.3, 0.2, 0.1]) == Settings(0.5, {})
    up = further(tuning, first, first, [0.1, 0.2, 0.3])
    assert up
    assert up == Settings(18.0, {})
    assert further(tuning, first, [*first, up], [0.1, 0.2, 0.3, 0.2]) is None
    assert further(tuning, first, [*first, up], [0.1, 0.2, 0.3, 0.4]) == Settings(54.0, {})
    assert further(tuning, first, [*first, up, Settings(54.0, {})], [0.1, 0.2, 0.3, 0.4, 0.5]) is None, "two at most"
    ranks = [Settings(rate, {"lora": {"rank": rank}}) for rank in (2, 4) for rate in (1.0, 2.0, 6.0)]
    assert further(tuning, ranks, ranks, [0.1, 0.2, 0.3, 0.4, 0.1, 0.1]) == Settings(0.5, {"lora": {"rank": 4}})
    assert further(tuning.model_copy(update={"widen": 0}), first, first, [0.3, 0.2, 0.1]) is None


def test_settings_are_chosen_on_the_first_partition_of_a_task_or_on_each(write):
    tasks = {"lesions": {**SMOKE["data"]["lesions"], "partitions": ["other", "none"]}}
    fields = {"data": tasks, "partitions": {"none": {"kind": "none"}, "other": {"kind": "none"}}}

    def tuned_on(**tuning) -> set[str]:
        suite = Suite.read(write(**fields, tuning={"factors": [1], "seed": 9, **tuning}))
        grid = Grid(suite, {"embedded": None}, Path())
        assert {cell.axes.partition for cell in grid.runs(chosen_first(grid))} == {"none", "other"}
        return {axes.partition for axes, _ in grid.tuning()}

    assert tuned_on() == {"other"}
    assert tuned_on(each_partition=True) == {"none", "other"}


def test_a_task_of_some_backbones(write, tmp_path):
    tasks = {"all": SMOKE["data"]["lesions"], "one": {**SMOKE["data"]["lesions"], "backbones": ["second"]}}
    suite = Suite.read(write(data=tasks, backbones={"first": {}, "second": {}}, tuning=None))
    cells = Grid(suite, {"first": None, "second": None}, tmp_path).runs([])
    assert {(cell.axes.data, cell.axes.backbone) for cell in cells} == {
        ("all", "first"), ("all", "second"), ("one", "second"),
    }  # fmt: skip


def test_places_whose_names_are_the_same_are_refused(write):
    """Dots alone are no fault, as in a Dirichlet partition's name."""
    task = {"domain": "generated", "sites": ["a"], "data": {"source": "lesions", "classes": ["x", "y"]}}
    partitions = {name: {"kind": "none"} for name in ("b.c", "c", "dirichlet-0.1")}
    suite = Suite.read(write(data={name: task for name in ("a", "a.b")}, partitions=partitions))
    said = "data 'a.b', partition 'c', .* and data 'a', partition 'b.c', .* would give their cells the same names"
    with pytest.raises(UserError, match=said):
        Grid(suite, {"embedded": None}, Path())
    partitions = {name: one for name, one in suite.partitions.items() if name != "c"}
    Grid(suite.model_copy(update={"partitions": partitions}), {"embedded": None}, Path())


def test_variants_are_an_axis_and_have_their_own_baselines_where_a_site_alone_would_differ(write):
    int8 = {"payload": {"up": {"name": "int8"}}}
    variants = {"default": {}, "int8": int8, "longer": {"training": {"local_epochs": 2}, **int8}}
    suite = Suite.read(write(tuning=None, variants=variants))
    cells = list(Grid(suite, {"embedded": None}, Path()).runs([]))
    assert {
        (cell.axes.variant, cell.experiment.training.local_epochs, cell.experiment.payload.changes)
        for cell in cells
        if cell.kind == "cell"
    } == {("default", 1, False), ("int8", 1, True), ("longer", 2, True)}
    assert [
        (cell.axes.variant, cell.axes.method, cell.experiment.training.local_epochs, cell.experiment.payload.changes)
        for cell in cells
        if cell.kind == "baseline"
    ] == [
        ("default", "pooled", 1, False), ("default", "local", 1, False),
        ("longer", "pooled", 2, False), ("longer", "local", 2, False),
    ]  # fmt: skip


def test_what_baselines_depend_on():
    sections = {
        "aggregation": {"name": "median"},
        "method": {"options": {}},
        "federation": {"min_sites": 3},
        "training": {"imbalance": "none"},
    }
    assert without_federation(sections) == {"training": {"imbalance": "none"}}
    assert without_federation({"federation": {"min_sites": 3, "rounds": 2}}) == {"federation": {"rounds": 2}}


def test_a_seed_of_data_in_folds_is_the_number_of_its_fold(write, tmp_path):
    """Trials are on the suite's first fold, with a seed of their own."""
    (tmp_path / "table.csv").touch()
    files = {"table": str(tmp_path / "table.csv"), "images": str(tmp_path), "columns": {"split": None, "site": "site"}}
    data = {"domain": "d", "sites": ["a"], "data": {"source": "site", "classes": ["x", "y"]}, "site": files, "folds": 5}
    fields = {"data": {"in_folds": data, **SMOKE["data"]}, "learning_rates": {"lora": 0.5}}
    suite = Suite.read(write(**fields, seeds=[2, 5], tuning={"factors": [2], "seed": 100}))
    grid = Grid(suite, {"embedded": None}, Path())
    of_trials = {
        (cell.axes.data, cell.experiment.seed, fold and fold.number)
        for axes, tried in grid.tuning()
        for cell in grid.trials(axes, tried)
        for fold in [cell.experiment.data.fold]
    }
    assert of_trials == {("in_folds", 100, 2), ("lesions", 100, None)}
    cells = [cell for cell in grid.runs(chosen_first(grid)) if cell.axes.method == "lora"]
    assert {cell.experiment.training.learning_rate for cell in cells} == {1.0}, "twice the suite's"
    assert [(cell.axes.data, cell.axes.seed, cell.experiment.data.fold) for cell in cells] == [
        ("in_folds", 2, Fold(number=2, of=5)), ("in_folds", 5, Fold(number=5, of=5)),
        ("lesions", 2, None), ("lesions", 5, None),
    ]  # fmt: skip


def test_a_suite_over_another(tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("extends: smoke\nname: more\nseeds: [5]\ndefaults: {federation: {rounds: 7}}\n")
    suite = Suite.read(str(path))
    assert suite.seeds == (5,)
    assert suite.methods == ("lora", "linear_probe")
    assert suite.defaults == {"training": SMOKE["defaults"]["training"], "federation": {"rounds": 7}}


def test_a_suite_of_some_values_of_another_ones_axes(tmp_path):
    path = tmp_path / "less.yaml"
    path.write_text("extends: paper\nname: less\ndata: [ham10000]\npartitions: [natural, iid]\n")
    suite = Suite.read(str(path))
    assert list(suite.data) == ["ham10000"]
    assert list(suite.partitions) == ["natural", "iid"]
    assert len(suite.backbones) == 2
    path.write_text("extends: paper\nname: less\ndata: [ham1000]\n")
    with pytest.raises(UserError, match="'paper' has no 'ham1000'; it has cifar10, ham10000, chest_xray"):
        Suite.read(str(path))


def test_parts_share_no_group_and_leave_nothing_out(tmp_path):
    table = tmp_path / "table.csv"
    rows = [f'{index}.png,a,"patient, {index // 3}"' for index in range(90)]
    table.write_text("\n".join(["file,label,patient", *rows]) + "\n")
    images = {"data": {}, "site": {"table": str(table), "columns": {"group": "patient"}}}
    parts = []
    for take in range(2):
        site = located(Images.model_validate({**images, "part": {"of": 2, "take": take}}), tmp_path)
        parts.append([row for _, row in read_rows(Path(site.table or ""), {"file": ""})])
    groups = [{row["patient"] for row in part} for part in parts]
    assert not groups[0] & groups[1]
    assert sum(map(len, parts)) == 90
    assert min(map(len, groups)) > 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seeds": []}, "field 'seeds' is []"),
        ({"sedes": [1]}, "did you mean 'seeds'?"),
        ({"methods": ["lorra"]}, "any of them joined by '+'."),
        (
            {"data": {"lesions": {**SMOKE["data"]["lesions"], "folds": 5}}},
            "field 'data.lesions.folds' is 5: with data.source 'lesions' each site draws images of its own",
        ),
        ({"partitions": {"iid": {"kind": "iid"}}}, "field 'partition.kind' must be 'none' with data.source 'lesions'"),
        ({"tuning": {"factors": [1, 0.5], "seed": 1}}, "1, 0.5 are not in ascending order"),
        ({"tuning": {"factors": [1], "widen": 2, "seed": 1}}, "'widen' needs two factors or more"),
        ({"tuning": {"factors": [], "seed": 1}}, "field 'tuning.factors' is []"),
        ({"defaults": {"federation": {"ruonds": 1}}}, "did you mean 'rounds'?"),
        ({"backbones": {"a b": {}}}, "field 'backbones.a b"),
        ({"backbones": {"a": {"weights": "a.safetensors"}}}, "'backbone' and 'weights' go together"),
        ({"extends": "paper", "data": [["ham10000"]]}, "'paper' has no ['ham10000']"),
        ({"options": {"lora": {"rank": 0}}}, "rank"),
        ({"extends": "smoke2"}, "field 'extends' is 'smoke2'"),
        ({"methods": ["lora+norm", "norm+lora"]}, "lora+norm, norm+lora are the same"),
        ({"seeds": [1, 2, 1]}, "1, 1 are the same"),
        ({"variants": {}}, "field 'variants' is {}"),
        ({"baselines": "lorra"}, "field 'baselines' is \"lorra\""),
        ({"tuning": {"factors": [1], "seed": SMOKE["seeds"][0]}}, "is one of the suite's own"),
        (
            {"tuning": {"factors": [1], "seed": 9, "options": {"lora": {"rank": []}}}},
            "field 'tuning.options.lora.rank' is []",
        ),
        (
            {"tuning": {"factors": [1], "seed": 9, "options": {"dvpt": {"rank": [1]}}}},
            "'dvpt' is no part of the suite's methods",
        ),
        (
            {"options": {"lra": {"rank": 2}}},
            "'lra' is no part of the suite's methods; the parts are linear_probe, lora",
        ),
        ({"defaults": {"training": {"learning_rate": 0.1}}}, "'training.learning_rate' is not for this field to set"),
        (
            {"data": {"lesions": {**SMOKE["data"]["lesions"], "data": {"source": "site"}, "folds": 5}}},
            "field 'seeds' is [0]: of 'lesions', numbers of folds from 1 to 5 would be right",
        ),
        ({"learning_rates": {"full": 0.1}}, "'full' is none of the suite's methods (lora, linear_probe)"),
        ({"defaults": {"partition": {"kind": "iid"}}}, "'partition' is not for this field to set"),
        ({"variants": {"x": {"method": {"name": "full"}}}}, "'method.name' is not for this field to set"),
        (
            {"data": {"lesions": {**SMOKE["data"]["lesions"], "partitions": ["none", "nope"]}}},
            "'lesions' has partition 'nope'",
        ),
        (
            {"data": {"lesions": {**SMOKE["data"]["lesions"], "backbones": ["nope"]}}},
            "'lesions' has backbone 'nope', which is none of the suite's (embedded)",
        ),
    ],
)
def test_a_wrong_suite_is_refused(write, fields, said):
    with pytest.raises(UserError) as error:
        all_cells(write(**fields))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- 1", "holds no fields"),
        ("", "holds no fields"),
        ("extend: smoke\nname: a", r"field 'extend' is unknown; did you mean 'extends'\? \(and 5 more\)"),
        ("name: a\nseeds: [1]\nseeds: [2]", "field 'seeds' is there twice"),
    ],
)
def test_a_damaged_suite_is_refused(tmp_path, text, said):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        Suite.read(str(path))


def test_an_unknown_suite_names_those_there_are():
    with pytest.raises(UserError, match=r"the suites here are .*smoke"):
        Suite.read("smok")
