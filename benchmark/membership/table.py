"""Writes an audit as Markdown."""

from benchmark.measurements.intervals import Estimate
from benchmark.membership.audit import ALL
from benchmark.report.blocks import NONE, Report, Section, Table, Value, count, in_points, text
from benchmark.report.markdown import to_markdown

_EXPLANATION = (
    "Means over targets with 95 % intervals (Student's t; targets share images, so they are approximate). Guessing has "
    "an AUC of 0.5. Balanced accuracy is at the best threshold, chosen on the same scores: guessing reaches the value "
    "under 'by chance'. A false positive rate of 1 % needs 100 others, one of 0.1 % needs 1,000 "
    f"({NONE}: there are fewer)."
)


def table(result: dict) -> str:
    """The tables of `result`, the content of a result file, see `benchmark.membership.audit.audit`."""
    design, audits = result["design"], result["audits"]
    blocks = [_EXPLANATION, _attacks(audits, design["levels"]), _accuracies(audits)]
    if result["differences"]:
        blocks.append(_differences(result["differences"]))
    title = f"{design['models']} targets, each with {design['shadows']} shadows"
    return to_markdown(Report("Membership inference", [], [Section(title, blocks)]))


def _attacks(audits: list[dict], levels: list[float]) -> Table:
    rows = []
    for audit in audits:
        for attack, by_site in audit["attacks"].items():
            for sites, found in by_site.items():
                counts = audit["counts"][sites]
                numbers = [count(counts["members"]), count(counts["others"]), _share(found["auc"])]
                numbers += [_share(found["balanced_accuracy"]), _plain(counts["balanced_accuracy_by_chance"])]
                numbers += [_share(found["tpr"][f"{level:g}"]) for level in levels]
                rows.append([text(audit["name"]), text(attack), text(_images_of(sites)), *numbers])
    header = ["experiment", "attack", "images of", "members", "others", "AUC", "balanced accuracy", "by chance"]
    return Table("Attacks", header + [f"TPR at {100 * level:g} % FPR" for level in levels], rows)


def _accuracies(audits: list[dict]) -> Table:
    rows = []
    for audit in audits:
        shares = [_share(audit["accuracy"][kind]) for kind in ("members", "others")]
        rows.append([text(audit["name"]), count(len(audit["sites"])), count(sum(audit["sites"].values())), *shares])
    return Table("Accuracy of the targets on", ["experiment", "sites", "images", "members", "others"], rows)


def _differences(differences: list[dict]) -> Table:
    rows = [
        [text(f"{one['of']} less {one['to']}"), text(attack), text(_images_of(sites)), _in_points(change)]
        for one in differences
        for attack, by_site in one["auc"].items()
        for sites, change in by_site.items()
    ]
    caption = "Difference of AUC, points, paired over targets with the same members"
    return Table(caption, ["experiments", "attack", "images of", "AUC"], rows)


def _images_of(name: str) -> str:
    return "all sites" if name == ALL else name


def _in_points(fields: dict) -> Value:
    scaled = Estimate(*(100 * fields[name] for name in ("value", "low", "high")))
    return Value(in_points(scaled), scaled.value)


def _share(fields: dict | None) -> Value:
    if fields is None:
        return Value(NONE, None)
    return Value(f"{fields['value']:.3f} ({fields['low']:.3f} to {fields['high']:.3f})", fields["value"])


def _plain(value: float) -> Value:
    return Value(f"{value:.3f}", value)
