"""The model card of an exported folder: what the adapter's header and its run's record say, and nothing else.

The front matter is what the Hugging Face Hub reads; `pt_peft` uploads nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from pt_peft.environment import versions
from pt_peft.errors import UserError, one_line, unlike_expected
from pt_peft.experiment.prevalence import KnownPrevalence, LearntPrevalence
from pt_peft.experiment.sections import Backbone, ModelSpec, Task
from pt_peft.export.adapter import read_prevalence, read_spec
from pt_peft.files import sha256_of
from pt_peft.model.adapter_file import Header, load_header
from pt_peft.model.backbone import EMBEDDED
from pt_peft.schema import read_json

FILE_NAME = "README.md"
RECORD = "metrics.json"
"""The run's record, beside its adapter."""
LIBRARIES = {"peft": "peft", "timm": "timm", "monai_bundle": "monai"}
"""The formats that are folders, and the Hub's name of the library that loads each."""
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "ece": "ECE",
}
"""Metrics of the card, by their names in the record."""
_Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_TASKS: dict[Task, str] = {
    "multiclass": "one of the classes below",
    "ordinal": "one of the grades below, which have an order",
    "multilabel": "any number of the labels below",
}

_SPLITS = {"train": "training", "val": "validation"}
_MOVED = "`pt-peft predict --prior` moves them to how frequent the classes are where you are."
_UNKNOWN = "How frequent the classes are in what its probabilities are for is not known."
_PREVALENCE: dict[LearntPrevalence | None, str] = {
    "uniform": f"Its probabilities are for equally frequent classes, and labels as often there as not. {_MOVED}",
    "training": f"Its probabilities are for classes as frequent as in the sites' training images. {_MOVED}",
    "neither": _UNKNOWN,
    None: _UNKNOWN,
}


@dataclass(frozen=True)
class Told:
    """What no file says, and who exports may."""

    base_model: str | None = None
    """Id of the published backbone on the Hugging Face Hub."""
    licence: str | None = None
    """The Hub's id of the exported model's licence."""


@dataclass(frozen=True)
class _Run:
    """What is known of a run. Fields of the record are as `pt_peft_flare.run_record` writes them."""

    header: Header
    spec: ModelSpec
    prevalence: KnownPrevalence
    record: Mapping[str, Any]
    """Empty if there is none beside the adapter, or it is of another experiment."""

    @property
    def sites(self) -> Mapping[str, Mapping[str, Any]]:
        """Each site's `EvaluationReport` of this very aggregate; empty if it was another's."""
        final, said = self.record.get("final"), self.header.get("metrics", {})
        if not final or "test" not in said or any(final[split] != said[split] for split in said):
            return {}
        return final["sites"]

    @property
    def split(self) -> str:
        """The split whose metrics are shown."""
        return "test" if self.header.get("metrics", {}).get("test") else "val"

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """The `Summary` of that split over all sites."""
        return self.header.get("metrics", {}).get(self.split)

    @property
    def training_images(self) -> Mapping[str, int]:
        """Each site's number of training images, as it last said."""
        entries = [*self.record.get("statistics", ()), *self.record.get("rounds", ())]
        return {
            site: report["num_samples"]
            for entry in entries
            for site, report in entry["sites"].items()
            if "num_samples" in report
        }


def model_card(adapter: Path, name: str, told: Told) -> str:
    """The card of the folder that `adapter` was exported to.

    Args:
        adapter: the adapter file; the record of its run is looked for beside it.
        name: key of `LIBRARIES`.
        told: what no file says.

    Raises:
        UserError: if the record is not one of this version.
    """
    header = load_header(adapter)
    path = adapter.parent / RECORD
    spec = read_spec(header, adapter)
    run = _Run(header, spec, read_prevalence(header, spec, adapter), _record_of(header, path))
    try:
        sections = "\n\n".join(_sections(run, name, told))
        front = _front_matter(run, name, told)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        whose = f"{path}, or the header of {adapter}: is" if run.record else f"{adapter}: its header is"
        raise UserError(f"{whose} not as this version writes it ({unlike_expected(error)}).") from None
    return f"---\n{front}\n---\n\n{sections}\n"


def _record_of(header: Header, path: Path) -> Mapping[str, Any]:
    """The record in `path`, if it is there and of the header's experiment."""
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: is no {RECORD}; the run's own, or none, would be right.")
    canonical = json.dumps(record.get("experiment"), sort_keys=True, separators=(",", ":"))
    return record if hashlib.sha256(canonical.encode()).hexdigest() == header.get("experiment_sha256") else {}


def _front_matter(run: _Run, name: str, told: Told) -> str:
    """YAML for the Hub."""
    relation = "adapter" if name == "peft" else "finetune"
    data = ModelCardData(
        library_name=LIBRARIES[name],
        pipeline_tag="image-classification",
        license=told.licence or "unknown",
        base_model=told.base_model,
        tags=["federated-learning", "medical", "pt-peft", *run.spec.method.name.split("+")],
        model_name=one_line(_experiment(run)),
        eval_results=list(_results(run)) or None,
        base_model_relation=relation if told.base_model else None,
    )
    return data.to_yaml()  # pyright: ignore[reportUnknownMemberType]  # its parameter is bare


def _results(run: _Run) -> Iterator[EvalResult]:
    """The ``model-index``: what all sites' images together give, and the mean over sites of the rest."""
    if run.summary is None:
        return
    for key, title in COLUMNS.items():
        for kind in ("pooled", "mean"):
            value = run.summary[kind].get(key)
            if value is not None:
                yield EvalResult(
                    task_type="image-classification",
                    dataset_type="private",
                    dataset_name=f"{run.split} images of the sites",
                    dataset_split={"val": "validation"}.get(run.split, run.split),
                    metric_type=key,
                    metric_name=f"{title} ({'all images together' if kind == 'pooled' else 'mean over sites'})",
                    metric_value=round(value, 4),
                )
                break


def _experiment(run: _Run) -> str:
    return str(run.header.get("experiment", "adapter"))


def _sections(run: _Run, name: str, told: Told) -> Iterator[str]:
    yield f"# {plain(_experiment(run))}"
    yield (
        f"`{run.spec.backbone.name}`, fine-tuned with {run.spec.method.name} by sites that kept their images, in a "
        "federation of pt-peft on NVIDIA FLARE."
    )
    yield f"## Intended use\n\n{_intended_use(run)}"
    yield f"## How well it does\n\n{_metrics(run)}"
    yield f"## Data and sites\n\n{_data(run)}"
    yield f"## Privacy\n\n{_privacy(run)}"
    yield f"## How it was made\n\n{_made(run, told)}"
    yield f"## How to load it\n\n{_LOADING[name]}"


def _intended_use(run: _Run) -> str:
    heads = ["output", "class"]
    columns: list[Iterable[str]] = [map(str, range(len(run.spec.classes))), map(plain, run.spec.classes)]
    if counts := run.prevalence.class_counts:
        heads.append(f"of {counts.images:,} {_SPLITS[counts.split]} images of all sites")
        columns.append([f"{count:,}" for count in counts.counts])
    rows = [*zip(*columns, strict=True)]
    return (
        f"Research: for an image, the probability of {_TASKS[run.spec.task]}. It is not a medical device, and no study "
        "of its use on patients is known here. Images of another kind than the sites' give numbers too; test it on "
        f"labelled images of your own first.\n\n{_PREVALENCE[run.prevalence.learnt_prevalence]}\n\n{table(heads, rows)}"
    )


def _metrics(run: _Run) -> str:
    if run.summary is None:
        return "Not known: the adapter's header has no metrics."
    kind = {"test": "test", "val": "validation"}[run.split]
    reports = {site: one[run.split] for site, one in run.sites.items() if one.get(run.split)}
    rows = [(plain(site), plain(str(one["count"])), *_cells(one, run.spec.task)) for site, one in reports.items()]
    if reports:
        rows.append(("worst of the sites", "", *_worst(list(reports.values()))))
    pooled = run.summary["pooled"]
    rows.append(("all images together", plain(str(pooled["count"])), *_cells(pooled, run.spec.task)))
    rows.append(("mean over sites", "", *_cells(run.summary["mean"], run.spec.task)))
    lines = [
        f"On the sites' {kind} images. ECE is the expected calibration error over 15 bins: how far the probability of "
        "the answer is from how often it is right.",
        table(("", "images", *COLUMNS.values()), rows),
    ]
    if run.spec.task != "multilabel":
        lines.append(
            "In brackets: the 95 % interval of Wilson (1927), which takes the images as independent draws; several "
            "images of a patient are not, and make it too narrow. The other metrics have no interval."
        )
    else:
        lines.append("The metrics have no intervals.")
    if reports:
        lines.append("“Worst of the sites” has each column's worst value, which may be of different sites.")
    else:
        lines.append(f"What single sites have is not known here; the run's `{RECORD}` has it, for the last aggregate.")
    return "\n\n".join(lines)


def _cells(metrics: Mapping[str, Any], task: Task) -> list[str]:
    """A row of `COLUMNS`; accuracy with its interval where there are counts."""
    cells = [_number(metrics.get(key)) for key in COLUMNS]
    if task != "multilabel" and "confusion" in metrics:
        confusion = np.array(metrics["confusion"], dtype=np.int64)
        low, high = wilson(int(confusion.trace()), int(confusion.sum()))
        cells[0] += f" [{low:.3f}, {high:.3f}]"
    return cells


def _worst(reports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for key in COLUMNS:
        values = [one[key] for one in reports if one[key] is not None]
        worst = max if key == "ece" else min
        yield _number(worst(values, default=None))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    With p = hits / n: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        hits: how often it was so, of n.
        count: n, at least 1.

    Raises:
        ValueError: if they are no such counts.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count}")
    share, wide = hits / count, _Z**2 / count
    half = _Z * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    return (share + wide / 2 - half) / (1 + wide), (share + wide / 2 + half) / (1 + wide)


def _data(run: _Run) -> str:
    training = run.training_images
    sites = sorted(training.keys() | run.sites.keys())
    if not sites:
        return f"Not known: there was no `{RECORD}` of the run beside its adapter."
    counts = {
        split: {site: one[split]["count"] for site, one in run.sites.items() if one.get(split)}
        for split in ("val", "test")
    }
    rows = [
        (plain(site), *(plain(str(part.get(site, "-"))) for part in (training, counts["val"], counts["test"])))
        for site in sites
    ]
    source = "The images are the sites' own; they did not leave them."
    if run.record["experiment"]["data"]["source"] == "lesions":
        source = "The images were drawn by a program and show nobody; the model is of no use for real ones."
    shown = table(("site", "training images", "validation images", "test images"), rows)
    return f"{source} {len(sites)} sites took part.\n\n{shown}"


def _privacy(run: _Run) -> str:
    lines = list(_guarantees(run.header.get("privacy"))) or [
        "* Differential privacy: none. Nothing bounds what the weights tell of a single training image."
    ]
    if "experiment" not in run.record:
        lines.append("* Encryption of what sites sent: not known.")
    elif encryption := run.record["experiment"].get("encryption"):
        lines.append(
            f"* Encryption of what sites sent: {plain(encryption['scheme'].upper())}; the server could not read it."
        )
    else:
        lines.append("* Encryption of what sites sent: none but the connection's; the server saw each site's update.")
    return "\n".join(lines)


def _guarantees(claim: Mapping[str, Any] | None) -> Iterator[str]:
    """A line for each guarantee of differential privacy in the header's claim."""
    protected = {
        "sample": "each training image (DP-SGD)",
        "statistics": "each training image (noise on sums of features)",
        "client": "all images of a site together (DP-FedAvg)",
    }
    for kind, whom in protected.items():
        if said := (claim or {}).get(kind):
            spent = said["epsilon"]
            value = f"ε = {spent:.4g}" if spent is not None else "no ε, as the noise was not secret"
            yield (
                f"* Differential privacy of {whom}: {value}, δ = {said['delta']:g}, noise multiplier "
                f"{said['noise_multiplier']:g}."
            )


def _made(run: _Run, told: Told) -> str:
    header, method = run.header, run.spec.method
    rows = [
        ("backbone", f"`{run.spec.backbone.name}` {plain(json.dumps(run.spec.backbone.kwargs))}"),
        ("its weights", f"SHA-256 `{run.spec.backbone.sha256}`"),
        ("published as", _published(run.spec.backbone, told)),
        ("method", f"{method.name} {plain(json.dumps(method.options))}, head {method.head}"),
        ("experiment", f"{plain(_experiment(run))}, SHA-256 {_code(header.get('experiment_sha256', 'not known'))}"),
        ("rounds", plain(str(header.get("round", "not known")))),
        ("computed in", plain(", ".join(header.get("precision", ()))) or "not known"),
    ]
    if run.record:
        code = run.record["code"]
        exchanged = run.record["exchanged"]
        rows += [
            ("a site sent in a round", f"{exchanged['parameters']:,} parameters, {exchanged['bytes']:,} bytes"),
            ("aggregation", _code(json.dumps(run.record["experiment"]["aggregation"]))),
            (
                "server's code",
                f"pt-peft {plain(code['version'])}, source {_code(code['source'])}, methods {_code(code['method'])}",
            ),
        ]
    else:
        rows.append(("code", f"pt-peft {plain(str(header.get('version', 'not known')))}"))
    packages = versions(("torch", "timm", "peft", "monai"))
    rows.append(("exported with", ", ".join(f"{name} {version}" for name, version in packages.items())))
    rows.append(("licence of this model", told.licence or "not told"))
    return (
        f"{table(('', ''), rows)}\n\nA run records a digest of its source and no commit. `pt_peft.json` has the "
        "adapter's header: classes, method and preprocessing in full."
    )


def _published(backbone: Backbone, told: Told) -> str:
    """Where the backbone's weights come from, with their licence, as far as it is known."""
    if told.base_model:
        return f"[{told.base_model}](https://huggingface.co/{told.base_model}); its licence stands there"
    if sha256_of(EMBEDDED) == backbone.sha256:
        return "the embedded backbone of pt-peft, trained on formula-drawn images; Apache-2.0"
    return "not known, and neither is its licence"


_LOADING = {
    "peft": """\
On the backbone of the digest above:

```python
import json

import peft
import safetensors.torch
import timm

config = json.load(open("pt_peft.json"))["model"]
plain = timm.create_model(
    config["backbone"]["name"], num_classes=len(config["classes"]), img_size=config["backbone"]["image_size"],
    **config["backbone"]["kwargs"],
)
plain.load_state_dict(safetensors.torch.load_file("BACKBONE.safetensors"), strict=False)  # all but its head
model = peft.PeftModel.from_pretrained(plain, ".").eval()
```""",
    "timm": """\
```python
import timm

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

`label_names` of `config.json` has the classes.""",
    "monai_bundle": "`docs/README.md` has the command.",
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def plain(text: str) -> str:
    """`text`, which may be anybody's, as Markdown that shows it as it is: on one line, no markup, no HTML."""
    return re.sub(r"[\\`*~<>\[\]&]|\b_|_\b", r"\\\g<0>", one_line(text))


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', ' ')}`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. What would end a cell is escaped."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows)]
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(heads), *body])
