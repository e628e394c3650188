"""``python -m benchmark report``: what it writes."""

import csv
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from report_suites import (
    PARAMETERS,
    change,
    fail_cell,
    finished_cell,
    known,
    lines_of,
    of_one_class,
    write_records,
    write_suite,
)

from benchmark.__main__ import main
from benchmark.report.blocks import NONE
from benchmark.report.figures import _slug
from benchmark.report.panels import panels
from benchmark.report.results import read_results
from benchmark.report.tables import pareto_front
from benchmark.sweep.records import Record, SuiteRecord

SVG = "{http://www.w3.org/2000/svg}"


def report(suite, out, *arguments: str) -> str:
    """The Markdown of a report on `suite`."""
    assert main(["report", str(suite), "--out", str(out), *arguments]) == 0
    return (out / "report.md").read_text()


def slopes(out) -> list[dict]:
    return json.loads((out / "slopes.json").read_text())


def rows_of(markdown: str, caption: str) -> dict[str, list[str]]:
    """A table's rows by their first column, from Markdown."""
    table = known(re.search(rf"\*\*[^\n]*{caption}[^\n]*\*\*\n\n((?:\|.*\n)+)", markdown))
    rows = [[cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]
    return {row[0]: row[1:] for row in (rows[0], *rows[2:])}


def test_slopes_json(written, suite_panels):
    entries = slopes(written)
    assert len(entries) == 2 * 2 * 3
    (entry,) = [e for e in entries if (e["data"], e["backbone"], e["metric"]) == ("ham10000", "lesions", "accuracy")]
    assert set(entry) == {
        *("suite", "domain", "data", "partition", "backbone", "metric", "slope_points_per_decade", "slope_by_seed"),
        *("interval_over_seeds", "interval_over_seeds_and_methods", "interval_over_seeds_and_images"),
        *("methods", "seeds"),
    }
    low, high = entry["interval_over_seeds"]
    assert low < 6 < high
    assert entry["interval_over_seeds_and_methods"][0] <= low
    assert entry["interval_over_seeds_and_images"] is None, "three seeds"
    assert entry["slope_points_per_decade"] == pytest.approx(np.mean(entry["slope_by_seed"]))
    assert (entry["domain"], entry["partition"], entry["seeds"]) == ("out-of-domain", "natural", [0, 1, 2])
    assert sorted(entry["methods"]) == sorted(PARAMETERS)


def test_a_suite_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmark.commands.report.RESULTS", tmp_path)
    monkeypatch.setattr("benchmark.commands.report.REPORTS", tmp_path / "reports")
    write_suite(tmp_path / "small.jsonl", methods=("lora", "full"), seeds=(0,), images=60, name="small")
    assert main(["report", "small"]) == 0
    assert (tmp_path / "reports" / "small" / "report.html").is_file()
    assert main(["report", "smal"]) == 1
    assert "suite 'smal' has no results" in (said := capsys.readouterr().err)
    assert "those there are: small" in said


def test_markdown_says_what_the_cells_say(suite, written, suite_panels):
    markdown = (written / "report.md").read_text()
    table = rows_of(markdown, r"ham10000 \(out-of-domain\), natural, default, lesions: test metrics")
    assert list(table) == ["method", *PARAMETERS, "pooled", "local north", "local south", "majority class"]
    name = "ham10000.natural.lesions.default.lora."
    cells = [line for line in lines_of(suite) if line["kind"] == "cell" and line["name"].startswith(name)]
    values = [100 * cell["final"]["test"]["pooled"]["accuracy"] for cell in cells]
    worst = [100 * min(site["balanced_accuracy"] for site in cell["final"]["test"]["sites"].values()) for cell in cells]
    lora = dict(zip(table["method"], table["lora"], strict=True))
    assert lora["accuracy (%)"] == f"{np.mean(values):.1f} ± {4.302653 * np.std(values, ddof=1) / 3**0.5:.1f}"
    calibration = [100 * cell["final"]["test"]["pooled"]["ece"] for cell in cells]
    assert lora["ECE (%)"].startswith(f"{np.mean(calibration):.1f} ± ")
    assert lora["worst site (%)"].startswith(f"{np.mean(worst):.1f} ± ")
    assert (lora["exchanged parameters"], lora["wire (MB)"], lora["seeds"]) == ("30,000", "1.44", "3")
    assert {row[-2] for row in list(table.values())[1:6]} <= {"yes", "no"}
    assert table["linear_probe"][-2] == "yes"
    assert "Run by another engine too (flare): 20 cells" in markdown
    assert "3.0e-08" in markdown
    assert "Nothing was chosen on test data" in markdown
    assert "0123456789ab" in markdown
    assert "60 cells finished, 0 failed. " in markdown
    assert "1,440 seconds" in markdown
    search = rows_of(markdown, "What was chosen on validation data")
    assert search["lora"][:5] == ["3", "0", "0.0001 0.001 0.01", "learning rate 0.001", "no"]
    assert "Mind" not in markdown, "three seeds, tuned and finished: nothing to warn of"
    for file in re.findall(r"\]\(([^)]*)\)", markdown):
        assert (written / file).is_file()


def test_five_seeds_on_the_same_images_have_intervals_over_images(tmp_path):
    suite = write_suite(
        tmp_path / "suite.jsonl",
        methods=("lora", "full", "bitfit"),
        seeds=range(5),
        images=60,
        baselines=False,
        same_images=True,
        backbones=(("imagenet", 0.55), ("lesions", 0.65)),
    )
    markdown = report(suite, tmp_path / "out")
    table = rows_of(markdown, "lesions: test metrics, mean ± 95 % interval over seeds and test images")
    assert list(table) == ["method", "bitfit", "lora", "full"]
    assert all("±" in entry for row in list(table.values())[1:] for entry in row[:3])
    assert "10,000 bootstrap draws of clusters" in markdown
    slope = rows_of(markdown, "Slopes against exchanged parameters")["cifar10"]
    assert re.fullmatch(r"[+-][\d.]+ \[[^]]+\]", slope[5])
    assert all(re.fullmatch(r"\[[+-][\d.]+, [+-][\d.]+\]", entry) for entry in slope[6:8])
    assert len(known(slopes(tmp_path / "out")[0]["interval_over_seeds_and_images"])) == 2
    compared = known(re.search(r"differences between initial models.*\n\n((?:\|.*\n)+)", markdown))[1]
    assert compared.count("\n") == 2 + 3 * 4, "three metrics of three methods, and of all"


def test_csv_has_a_row_a_cell(written):
    with open(written / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    (row,) = [row for row in rows if row["name"] == "cifar10.iid.imagenet.default.full.2"]
    assert (row["data"], row["backbone"], row["method"], row["seed"]) == ("cifar10", "imagenet", "full", "2")
    assert (row["status"], row["exchanged_parameters"], row["wire_bytes"]) == ("finished", "1000000", "48000000")
    assert 0 < float(row["test_balanced_accuracy"]) == float(row["validation"]) < 1


def test_html_needs_nothing_else(written):
    page = (written / "report.html").read_text()
    references = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|(@import\b.*)""", page)
    assert references
    assert all((link or url or other).strip("'\"").startswith(("#", "data:,")) for link, url, other in references)


def test_points_say_what_they_are(written):
    root = ElementTree.parse(written / "slopes.svg").getroot()
    points = [element for element in root.iter(f"{SVG}g") if element.get("class") == "point"]
    assert len(points) == 2 * 2 * (len(PARAMETERS) + 2), "pooled and the best site alone are lines"
    titles = {point[0].text or "" for point in points if point[0].tag == f"{SVG}title"}
    assert len(titles) == len(points)
    wanted = r"lora, lesions: [\d.]+ ± [\d.]+ % balanced accuracy, 30,000 parameters"
    assert any(re.fullmatch(wanted, title) for title in titles)
    assert any(re.fullmatch(r"pooled, lesions: [\d.]+ % balanced accuracy", title) for title in titles)
    text = "".join(root.itertext())
    assert "exchanged parameters per site and round" in text
    assert "points/decade" in text
    identifiers = re.findall(r'\bid="([^"]*)"', (written / "report.html").read_text())
    assert len(identifiers) == len(set(identifiers))


def test_captions_name_what_is_drawn(written, tmp_path):
    one = write_suite(tmp_path / "one.jsonl", methods=("lora",), seeds=(0,), images=60, baselines=False)
    report(one, tmp_path / "one")
    for of, there in ((tmp_path / "one", False), (written, True)):
        (caption,) = re.findall(r"Balanced accuracy of each method[^\]]*", (of / "report.md").read_text())
        assert [words in caption for words in ("Bars: ", "Dashed: ", "Which site alone")] == [there] * 3


def test_bars_of_two_seeds_are_inside_the_axes(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", seeds=(0, 1), images=60, baselines=False)
    report(suite, tmp_path / "out")
    root = ElementTree.parse(tmp_path / "out" / "slopes.svg").getroot()
    lines = [(one.get("d", ""), one.get("style", "")) for one in root.iter(f"{SVG}path")]

    def ends(words: str) -> list[tuple[float, ...]]:
        return [tuple(map(float, place.split()[2::3])) for place, style in lines if words in style]

    (top, bottom), *_ = (sorted(one) for one in ends("stroke: #dddddd"))  # a guide line spans the axes
    bars = ends("stroke-opacity: 0.6")
    assert len(bars) == len(PARAMETERS)
    assert all(top < end < bottom for bar in bars for end in bar)


def test_the_same_results_give_the_same_files(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"), seeds=(0,), images=60)
    report(suite, tmp_path / "once")
    report(suite, tmp_path / "again")
    files = [path for path in (tmp_path / "once").rglob("*") if path.is_file()]
    assert len(files) == 4 + 5
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "once")).read_bytes(), path


def test_failures_one_seed_and_no_tuning_are_said(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", seeds=(0,), images=60, baselines=False, tuning=False)
    reason = 'site-1: "out | of" <script>alert(1)</script> <b>memory'
    fail_cell(suite, "cifar10.iid.imagenet.default.lora.0", reason)
    markdown = report(suite, tmp_path / "out")
    assert "1 cell of 5 failed" in markdown
    assert "rest on one seed" in markdown
    assert "No learning rate was tuned" in markdown
    assert r'site-1: "out \| of" \<script\>' in markdown
    assert "±" not in rows_of(markdown, "test metrics")["full"][1]
    assert "lora" not in rows_of(markdown, "test metrics")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page


def test_a_missing_seed_is_said_and_left_out_of_the_slope(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", images=60, seeds=(0, 1, 2))
    fail_cell(suite, "cifar10.iid.imagenet.default.lora.1", "lost")
    assert "the slope uses the 2 seeds that all of them have, of 3" in report(suite, tmp_path / "out")
    assert {str(entry["seeds"]) for entry in slopes(tmp_path / "out")} == {"[0, 2]"}


def test_one_method_has_no_slope(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", methods=("linear_probe",), seeds=(0, 1), images=60)
    assert "No slope is defined" in report(suite, tmp_path / "out")
    assert slopes(tmp_path / "out") == []


def test_a_method_that_sends_nothing_and_an_undefined_auroc(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", methods=("linear_probe", "full"), seeds=(0,), images=60)

    change(suite, lambda cell: cell.update(exchanged_parameters=0), only="linear_probe")
    change(suite, of_one_class)
    table = rows_of(report(suite, tmp_path / "out"), "test metrics")
    assert table["linear_probe"][0] == "0"
    assert table["linear_probe"][3] == NONE
    change(suite, lambda cell: True, only="full")
    report(suite, tmp_path / "out")


def test_when_all_cells_failed(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", methods=("lora",), seeds=(0,), images=60)
    fail_cell(suite, "cifar10.iid.imagenet.default.lora.0", "no memory")
    markdown = report(suite, tmp_path / "out")
    assert "0 cells finished, 1 failed. " in markdown
    assert "no memory" in markdown


def test_no_validation_and_an_own_target(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"), seeds=(0, 1), images=60)
    markdown = report(suite, tmp_path / "out", "--target", "0.3")
    reached = rows_of(markdown, "what it takes until the validation balanced accuracy reaches 30.0 %")
    assert reached["method"] == ["rounds", "wire (MB)", "seconds"]
    assert reached["lora"] == ["1.0", "0.48", "1.5"], "after the first of three rounds"
    assert "as simulated on a processor, beside other runs" in markdown
    missed = rows_of(report(suite, tmp_path / "out", "--target", "1"), "what it takes until")
    assert missed["lora"] == [NONE, "not reached", NONE]

    def alter(cell: dict) -> None:
        cell["final"]["val"] = None
        for one in cell["rounds"]:
            one["val"] = None

    change(suite, alter)
    assert "what it takes until" not in report(suite, tmp_path / "out")


def test_many_labels(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=(80, 3)).astype(np.uint8)
    axes = {
        "domain": "out-of-domain",
        "data": "chest",
        "partition": "iid",
        "backbone": "imagenet",
        "variant": "default",
    }
    records: list[Record] = [SuiteRecord(name="many", suite={})]
    for method in ("linear_probe", "lora", "full"):
        logits = generator.normal(labels, 1.0).astype(np.float16)
        records.append(finished_cell({**axes, "method": method, "seed": 0}, logits, labels, "multilabel"))
    write_records(tmp_path / "suite.jsonl", records)
    report(tmp_path / "suite.jsonl", tmp_path / "out")
    assert len(slopes(tmp_path / "out")) == 3


def test_the_default_variant_stands_in_slopes_json(tmp_path):
    suite = write_suite(
        tmp_path / "suite.jsonl",
        methods=("linear_probe", "lora", "full"),
        seeds=(0,),
        images=60,
        variants=("a", "default"),
    )
    markdown = report(suite, tmp_path / "out")
    assert "iid, a, imagenet: test metrics" in markdown
    entries = {entry["metric"]: entry for entry in slopes(tmp_path / "out")}
    (default,) = [panel for panel in panels(read_results(suite), 10) if panel.key.variant == "default"]
    found = [100 * known(default.estimate(model, "accuracy")).value for model in default.models("imagenet")]
    slope, _ = np.polyfit(np.log10([1_000, 30_000, 1_000_000]), found, 1)
    assert entries["accuracy"]["slope_points_per_decade"] == pytest.approx(slope)


def test_two_methods_have_no_slope(tmp_path):
    """They are on a line whatever they are."""
    suite = write_suite(tmp_path / "suite.jsonl", methods=("lora", "full"), images=60)
    report(suite, tmp_path / "out")
    assert "no slope" in (tmp_path / "out" / "slopes.svg").read_text()
    assert slopes(tmp_path / "out") == []


def test_labels_that_differ_in_punctuation_have_figures_of_their_own():
    names = [_slug(*parts) for parts in (("a_b", "c"), ("a-b", "c"), ("a+b", "c"), ("A_b", "c"))]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[a-z0-9._-]+", name) for name in names)


def test_pareto_front(suite_panels):
    panel = suite_panels[1]
    models = panel.models("lesions")
    front = pareto_front(panel, models)
    best = -1.0
    for model in models:  # from small to large
        value = known(panel.estimate(model, "balanced_accuracy")).value
        assert (model in front) == (value > best)
        best = max(best, value)
