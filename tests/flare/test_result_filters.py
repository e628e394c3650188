"""A site looks at what a job's config puts on what leaves it."""

import json

import pytest
from nvflare.app_common.app_constant import AppConstants

from pt_peft import reasons
from pt_peft.experiment.admission import EGRESS, STATISTICS, filter_refusals
from pt_peft_flare.job_folder import CLIENT_CONFIG, TASKS

OTHER = {"path": "nvflare.app_common.filters.exclude_vars.ExcludeVars"}
OURS = {"path": EGRESS}


def refused(folder, chains, experiment):
    (folder / "config_fed_client.json").write_text(json.dumps({**CLIENT_CONFIG, "task_result_filters": chains}))
    return [*filter_refusals(experiment, folder)]


@pytest.mark.parametrize(
    "chains",
    [
        CLIENT_CONFIG["task_result_filters"],
        [{"tasks": ["*"], "filters": [OTHER, OURS]}],
        [
            {"tasks": ["train"], "filters": [OTHER]},
            {"tasks": ["train", "validate"], "filters": [OURS]},
            {"tasks": ["s*"], "filters": [OURS]},
        ],
    ],
)
def test_enough(chains, tiny, tmp_path):
    assert not refused(tmp_path, chains, tiny)


@pytest.mark.parametrize(
    ("chains", "task"),
    [
        ([], "train"),
        ([{"tasks": ["train"], "filters": [OURS]}], "validate"),
        ([{"tasks": TASKS, "filters": [OURS, OTHER]}], "train"),
        ([{"tasks": TASKS, "filters": [OURS]}, {"tasks": ["validate"], "filters": [OTHER]}], "validate"),
        ([{"tasks": TASKS, "filters": [{"path": "custom.EgressFilter"}]}], "train"),
        ([{"tasks": TASKS, "filters": [{"name": "EgressFilter"}]}], "train"),
        ([{"tasks": TASKS, "filters": [OURS], "direction": "in"}], "train"),
    ],
)
def test_not_enough(chains, task, tiny, tmp_path):
    first, *_ = refused(tmp_path, chains, tiny)
    assert f"'task_result_filters' must end with {EGRESS} for task '{task}'" in str(first)
    assert first.reason == reasons.Filters(task=task)


@pytest.mark.parametrize("chains", [3, [3], {"a": 1}, [{"filters": 3}], [{"direction": 3}], [{"filters": ["a"]}]])
def test_what_flare_does_not_read_is_refused(chains, tiny, tmp_path):
    (first,) = refused(tmp_path, chains, tiny)
    assert "field 'task_result_filters' is not as FLARE reads it" in str(first)
    assert first.reason == reasons.Filters()


def test_the_tasks_are_flares_and_one_of_ours():
    assert set(TASKS) == {
        AppConstants.TASK_TRAIN, AppConstants.TASK_VALIDATION, AppConstants.TASK_SUBMIT_MODEL, STATISTICS,
    }  # fmt: skip
