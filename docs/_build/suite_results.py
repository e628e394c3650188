"""What a suite's committed results say, as its report says it."""

from functools import cache

from benchmark.commands.run import RESULTS, SUFFIX
from benchmark.report.answers import answers as answered
from benchmark.report.gates import Verdict, faults, gate_table, judge
from benchmark.report.markdown import to_block
from benchmark.report.panels import Panel, panels
from benchmark.report.results import Results, read_results
from benchmark.report.site_priors import site_prior_table
from benchmark.report.tables import gap_table, main_table, tuning_table
from benchmark.report.variants import variant_tables


@cache
def _read(suite: str) -> tuple[Results, list[Panel], list[Verdict]]:
    results = read_results(RESULTS / f"{suite}{SUFFIX}")
    found = panels(results, 0)
    return results, found, judge(results, found)


def answers(suite: str) -> str:
    """The first page's sentences and their tables; the faults instead, where a gate failed."""
    results, found, verdicts = _read(suite)
    if failed := faults(verdicts):
        return "\n\n".join(to_block(f"A gate failed, so nothing is concluded: {fault}") for fault in failed)
    said, tables = answered(results, found)
    return "\n\n".join(to_block(block) for block in (*said, *tables))


def gates(suite: str) -> str:
    """The suite's gates and how they stand."""
    return to_block(gate_table(_read(suite)[2]))


def panel(suite: str, data: str, partition: str, backbone: str = "imagenet", variant: str = "default") -> str:
    """The methods' test metrics at one place of the grid, and what they reach less the baselines. Raises ValueError."""
    results, found, _ = _read(suite)
    at = [one for one in found if one.key[1:] == (data, partition, variant) and backbone in one.backbones]
    if len(at) != 1:
        raise ValueError(f"there is no panel of {data}, {partition}, {variant} with {backbone}")
    tables = [make(at[0], backbone, results.baselines) for make in (main_table, gap_table, site_prior_table)]
    return "\n\n".join(to_block(one) for one in tables if one)


def variants(suite: str) -> str:
    """The variants' test metrics, a table for each method and place of the grid."""
    return "\n\n".join(to_block(one) for one in variant_tables(_read(suite)[1]))


def rates(suite: str, data: str, backbone: str = "imagenet") -> str:
    """What each method tried and chose on `data`. Raises ValueError."""
    results, _, _ = _read(suite)
    made = [one for one in results.choices if (one.axes.data, one.axes.backbone) == (data, backbone)]
    if not made:
        raise ValueError(f"there are no trials of {data} with {backbone}")
    return to_block(tuning_table(made, "balanced_accuracy"))
