"""An archive of results for a repository that gives DOIs: the results, and what a stranger needs to read them.

The same results give the same bytes: nothing in it depends on the day, the machine or the order of files.
"""

import gzip
import hashlib
import html
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field

from benchmark.measurements.results import markdown_table
from benchmark.report.docstrings import field_docs, one_line
from benchmark.report.results import Results, read_results
from benchmark.sweep.records import RECORDS, ChoiceRecord, Run, SuiteRecord
from benchmark.sweep.result_file import read
from benchmark.sweep.suite import Images, Suite
from pt_peft.errors import UserError
from pt_peft.schema import Strict, parse
from pt_peft.training.metrics import ConfusionMetrics, Metrics

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "benchmark" / "data_sources.yaml"
ORIGIN = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip archive, whose first it is."""
NO_LICENCE = "none"


class Source(Strict):
    """Where images or weights come from."""

    title: str
    citation: str
    licence: str = Field(pattern=r"^[A-Za-z0-9.+-]+$")
    """SPDX's name, or ``none``."""
    doi: str | None = None


@dataclass(frozen=True)
class Archived:
    """A suite and its results."""

    content: bytes
    """The result file."""
    results: Results
    suite: Suite
    """As the result file says that it was last run."""
    images: dict[str, Source]
    """Of the images that the results' labels are of or that an initial model was trained further on, by the folder that
    the suite names; those that are generated here have none."""
    weights: dict[str, Source]
    """Of the weights files of initial models with results; the embedded ones have none."""
    generates: bool
    """Whether some images of the results are generated here."""

    @property
    def name(self) -> str:
        """The suite's."""
        return self.results.name


def read_archived(path: Path) -> Archived:
    """Reads a result file.

    Raises:
        UserError: if `read_results` refuses it, it holds lines that were replaced or cut off, or its suite names images
            or weights that `SOURCES` does not.
    """
    results, contents = read_results(path), read(path)
    content = path.read_bytes()
    if contents.compacted() != content:
        raise UserError(
            f"{path}: has lines that were cut off or replaced, as while a sweep writes it or after it was killed; the "
            "same `run` command, to its end, makes it whole."
        )
    suite = parse(Suite, contents.suite.suite, f"{path}, line 1")
    # A part of a suite may have been run: what has no record is not in the archive.
    data, backbones = ({getattr(run.axes, axis) for run in results.runs} for axis in ("data", "backbone"))
    tasks = [one for name, one in suite.data.items() if name in data]
    models = [one for name, one in suite.backbones.items() if name in backbones]
    images = [*tasks, *(one.pretraining for one in models if one.pretraining)]
    return Archived(
        content,
        results,
        suite,
        _sources(path, (place for one in images for place in _places(one))),
        _sources(path, (one.weights for one in models if one.weights)),
        any(one.data.get("source") != "site" for one in tasks),
    )


def _places(images: Images) -> Iterator[str]:
    if images.data.get("source") == "site":
        yield from (place for place in (images.site.images, images.site.table, images.site.npz) if place)


def _sources(path: Path, places: Iterable[str]) -> dict[str, Source]:
    known = {
        folder: parse(Source, one, f"{SOURCES.name}: '{folder}'")
        for folder, one in yaml.safe_load(SOURCES.read_text(encoding="utf-8")).items()
    }
    found: dict[str, Source] = {}
    for place in places:
        folder = next((one for one in known if place.startswith(f"{one}/") or place == one), None)
        if folder is None:
            raise UserError(
                f"{path}: its suite has '{place}', and {SOURCES} does not say where that comes from; an entry with "
                "title, citation and licence would be right."
            )
        found[folder] = known[folder]
    return found


def archive(given: Sequence[Archived], licence: str | None) -> dict[str, bytes]:
    """The files of an archive, by name.

    Args:
        given: suites with different names.
        licence: what the archive is published under; None: the repository's, or that of the images whose labels it has,
            if it is one.

    Raises:
        UserError: if two have the same name, or the images have several licences and `licence` is None.
    """
    if twice := [name for name, number in Counter(one.name for one in given).items() if number > 1]:
        raise UserError(f"the suite '{twice[0]}' is there twice; once would be right.")
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    licence = licence or _licence(given, citation["license"])
    files = {
        "README.md": _card(given, citation, licence).encode(),
        ".zenodo.json": (json.dumps(_zenodo(given, citation, licence), indent=1) + "\n").encode(),
        **{name: (ROOT / name).read_bytes() for name in ("CITATION.cff", "LICENSE")},
    }
    for one in given:
        files[f"results/{one.name}.jsonl.gz"] = gzip.compress(one.content, mtime=0)
        fields = yaml.safe_dump(one.suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        files[f"suites/{one.name}.yaml"] = fields.encode()
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return dict(sorted({**files, "SHA256SUMS": sums.encode()}.items()))


def to_zip(files: Mapping[str, bytes]) -> bytes:
    """`files` in a zip archive, stored: what is large in them is compressed already."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, ORIGIN)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, whatever this machine is
            packed.writestr(entry, content)
    return file.getvalue()


def dirty(given: Iterable[Archived]) -> list[str]:
    """Names of the runs whose code had changes that are in no commit."""
    return [run.name for one in given for run in one.results.runs if run.provenance.dirty]


def _licence(given: Sequence[Archived], own: str) -> str:
    licences = sorted({source.licence for one in given for source in one.images.values()})
    if len(licences) > 1 or licences == [NO_LICENCE]:
        raise UserError(
            f"--licence: the images whose labels are in the results have the licences {', '.join(licences)}; the one "
            "that the archive is to be published under would be right, such as CC-BY-NC-SA-4.0."
        )
    return licences[0] if licences else own


def _zenodo(given: Sequence[Archived], citation: Mapping[str, Any], licence: str) -> dict[str, Any]:
    """What Zenodo reads from ``.zenodo.json``, or takes as ``metadata`` of a deposition."""
    names = ", ".join(one.name for one in given)
    cells = sum(len(one.results.cells) for one in given)
    described = (
        f"Results of the benchmark suites {names}: {cells} federated runs with their settings, rounds, bytes, metrics "
        "and logits on the test images, and the runs that they are compared with. No images and no weights. README.md "
        "is the data card."
    )
    papers = [one["doi"] for one in citation.get("references", []) if "doi" in one]
    data = {source.doi for one in given for source in one.images.values() if source.doi}
    return {
        "title": f"{citation['title']}: results of {names}",
        "upload_type": "dataset",
        "description": f"<p>{html.escape(described)}</p>",
        "creators": [{"name": _author(one)} for one in citation["authors"]],
        "access_right": "open",
        "license": licence.lower(),
        "keywords": citation["keywords"],
        "version": citation["version"],
        "language": "eng",
        "related_identifiers": [
            *({"identifier": doi, "relation": "references"} for doi in papers),
            *({"identifier": doi, "relation": "isDerivedFrom"} for doi in sorted(data)),
        ],
    }


def _author(author: Mapping[str, str]) -> str:
    return author.get("name") or f"{author['family-names']}, {author['given-names']}"


def _card(given: Sequence[Archived], citation: Mapping[str, Any], licence: str) -> str:
    """The data card, Markdown."""
    parts = [
        f"# Results: {', '.join(one.name for one in given)}",
        f"Written by `python -m benchmark archive` of {citation['title']}, version {citation['version']}.",
        "## Files",
        _files(given),
        "`sha256sum -c SHA256SUMS` checks the files. `gunzip` gives the result file, which the repository's `python -m "
        "benchmark report` and `verify` read.",
        *(text for one in given for text in _suite(one)),
        "## What is in a result file",
        "A line is a record in JSON; its `kind` says which. The first is the suite as it was last run; every run has "
        "its own whole `experiment`. A run that is in the suite and not in the file has not been made.",
        *_records(),
        "## How metrics are computed",
        "By the repository's `pt_peft/training/metrics.py`, of the final aggregate (no round is picked), on the test "
        "images: `pooled` of all sites together, `sites` of each. Those of a `cell` are of its logits in float16, as "
        "they are kept; others of logits as they were computed.",
        _table(("metric", "is"), _docs(ConfusionMetrics) | _docs(Metrics)),
        "## What `predictions` holds",
        "A numpy `.npz` in base64, one for each `cell`:",
        PREDICTIONS,
        "## What is not in it",
        "No images, no names of files or patients, no weights or adapters, no labels of training images, and no "
        "predictions of baselines and trials. But labels, sites and group numbers of the test images are in it, in a "
        "fixed order.",
        GROUPS,
        "## Where images and weights come from",
        _origins(given),
        f"The archive is published under {licence}. Labels, sites and group numbers are taken from the data sets "
        "above, whose licences hold for them. The software is under the licence in LICENSE.",
        "## Which code, where",
        *_provenance(given),
        "## Known limits",
        *_limits(given),
    ]
    return "\n\n".join(parts) + "\n"


PREDICTIONS = """\
| array | is |
|---|---|
| `sites` | names of the sites, sorted |
| `logits` | float16 (N,K), of the N test images of all sites, site by site |
| `labels` | int64 (N,), or uint8 (N,K) for `multilabel` |
| `site` | uint16 (N,), positions in `sites` |
| `group` | uint64 (N,), of images of one lesion or patient the same; missing where none is known, and in older files |

```python
import base64, gzip, io, json
import numpy as np

with gzip.open("results/SUITE.jsonl.gz", "rt") as file:
    cell = next(one for one in map(json.loads, file) if one["kind"] == "cell")
arrays = np.load(io.BytesIO(base64.b64decode(cell["predictions"])))
print((arrays["logits"].argmax(axis=1) == arrays["labels"]).mean())
```"""
GROUPS = (
    "A group number is no number of the data set's own: it is the first 64 bits of SHA-256 of the lesion's or "
    "patient's name in the table. There is no secret in it, so that who has the table, or can guess the names, finds "
    "which lesion or patient it is. Results on images whose groups must not be known again should not be published so."
)


def _files(given: Sequence[Archived]) -> str:
    rows = [
        ("`README.md`", "this data card"),
        ("`.zenodo.json`", "metadata, as Zenodo takes it"),
        ("`CITATION.cff`, `LICENSE`", "of the software"),
    ]
    for one in given:
        sum_ = hashlib.sha256(one.content).hexdigest()
        rows += [
            (f"`results/{one.name}.jsonl.gz`", f"results; unpacked {len(one.content):,} bytes, SHA-256 `{sum_}`"),
            (f"`suites/{one.name}.yaml`", "the suite, each field, as it was last run"),
        ]
    return markdown_table(("file", "is"), rows)


def _suite(one: Archived) -> Iterator[str]:
    results = one.results
    yield f"## What was run: {one.name}"
    missing = one.suite.cells - len(results.cells) - len(results.failed_cells)
    kinds = {
        "cells": f"{len(results.cells)} of {one.suite.cells}",
        "baselines": str(len(results.baselines)),
        "trials": str(len(results.trials)),
        "choices of settings": str(len(results.choices)),
        "failures": str(len(results.failures)),
    }
    yield markdown_table(tuple(kinds), [tuple(kinds.values())])
    if missing > 0:
        yield f"{missing} cells of the suite are not there."
    panels = Counter((*axes[1:5], axes[5]) for axes in (tuple(run.axes.model_dump().values()) for run in results.cells))
    rows = [(*panel, str(number)) for panel, number in sorted(panels.items())]
    if rows:
        yield markdown_table(("data", "partition", "backbone", "variant", "method", "cells"), rows)
    if results.failures:
        failed = [(f"`{run.name}`", one_line(run.reason).replace("|", "\\|")) for run in results.failures]
        yield markdown_table(("failed", "reason"), failed)


def _records() -> Iterator[str]:
    """A table for each record, and for those that they hold; what several have in common once."""
    kinds: dict[type[BaseModel], str] = {record: kind for kind, record in RECORDS.items()}
    shown: list[type[BaseModel]] = [SuiteRecord, ChoiceRecord, Run, *list(kinds)[2:]]
    for record in shown:
        base = record.__base__ if record.__base__ in shown else None
        name = f"`{kinds[record]}`" if record in kinds else record.__name__
        also = f" All that {base.__name__} has, and:" if base else ""
        yield f"**{name}**: {one_line(record.__doc__ or '')}{also}"
        docs = _docs(record)
        fields: dict[str, str] = {}
        for field, info in record.model_fields.items():
            if base and field in base.model_fields:
                continue
            held = [one for one in _held(info.annotation) if issubclass(one, BaseModel)]
            shown += [one for one in held if one not in shown]
            fields[field] = " ".join([*(f"{one.__name__}." for one in held), docs.get(field, "")]).strip()
        yield _table(("field", "is"), fields)


def _held(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _held(argument)


def _docs(record: type) -> dict[str, str]:
    return {field: one_line(text) for field, text in field_docs(record).items()}


def _table(header: Sequence[str], rows: Mapping[str, str]) -> str:
    return markdown_table(header, [(f"`{name}`", text.replace("|", "\\|")) for name, text in rows.items()])


def _origins(given: Sequence[Archived]) -> str:
    rows = []
    for one in given:
        for what, sources in (("images", one.images), ("weights", one.weights)):
            for source in sources.values():
                doi = f", doi:{source.doi}" if source.doi else ""
                licence = "none was published" if source.licence == NO_LICENCE else source.licence
                rows.append((one.name, what, source.title, licence, source.citation.strip() + doi))
        if one.generates:
            rows.append((one.name, "images", "generated by the software", "-", "-"))
    return markdown_table(("suite", "of", "title", "licence", "citation"), rows)


def _provenance(given: Sequence[Archived]) -> Iterator[str]:
    runs = [run for one in given for run in one.results.runs]
    commits = Counter((run.provenance.commit or "unknown", run.provenance.dirty) for run in runs)
    yield markdown_table(
        ("commit", "runs", "changes that are in no commit"),
        [
            (f"`{commit}`", str(number), "yes" if changed else "no")
            for (commit, changed), number in sorted(commits.items())
        ],
    )
    for what, field in (("versions", "versions"), ("machine", "machine")):
        kinds = Counter(
            ", ".join(f"{name} {value}" for name, value in getattr(run.provenance, field).items()) for run in runs
        )
        yield markdown_table((what, "runs"), [(text, str(number)) for text, number in sorted(kinds.items())])


def _limits(given: Sequence[Archived]) -> Iterator[str]:
    limits = [
        "Another machine, number of threads or version of torch rounds otherwise: its logits are not these. `python -m "
        "benchmark verify` reruns cells and says by how much.",
        "Seconds and memory are of machines that may have done other work besides.",
    ]
    if changed := dirty(given):
        limits.append(f"Made by code with changes that are in no commit, which nobody can get: {len(changed)} runs.")
    unverified = sum(one.verification is None for archived in given for one in archived.results.cells)
    limits.append(f"Run by one engine alone: {unverified} cells.")
    for one in given:
        seeds = sorted({cell.axes.seed for cell in one.results.cells})
        limits.append(f"{one.name}: seeds or folds {', '.join(map(str, seeds)) or 'none'}.")
    yield "\n".join(f"* {limit}" for limit in limits)
