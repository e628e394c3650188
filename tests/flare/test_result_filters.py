"""A site looks at what a job's config puts on what leaves it."""

import json

import pytest

from pt_peft.errors import UserError
from pt_peft_flare.job_folder import CLIENT_CONFIG, TASKS
from pt_peft_flare.result_filters import EGRESS, check_egress

OTHER = {"path": "nvflare.app_common.filters.exclude_vars.ExcludeVars"}
OURS = {"path": EGRESS}


def check(folder, chains):
    (folder / "config_fed_client.json").write_text(json.dumps({**CLIENT_CONFIG, "task_result_filters": chains}))
    check_egress(TASKS, folder)


@pytest.mark.parametrize(
    "chains",
    [
        CLIENT_CONFIG["task_result_filters"],
        [{"tasks": ["*"], "filters": [OTHER, OURS]}],
        [
            {"tasks": ["train"], "filters": [OTHER]},
            {"tasks": ["train", "validate"], "filters": [OURS]},
            {"tasks": ["submit*"], "filters": [OURS]},
        ],
    ],
)
def test_enough(chains, tmp_path):
    check(tmp_path, chains)


@pytest.mark.parametrize(
    ("chains", "task"),
    [
        ([], "train"),
        ([{"tasks": ["train"], "filters": [OURS]}], "validate"),
        ([{"tasks": TASKS, "filters": [OURS, OTHER]}], "train"),
        ([{"tasks": TASKS, "filters": [OURS]}, {"tasks": ["validate"], "filters": [OTHER]}], "validate"),
        ([{"tasks": TASKS, "filters": [{"path": "custom.EgressFilter"}]}], "train"),
        ([{"tasks": TASKS, "filters": [{"name": "EgressFilter"}]}], "train"),
    ],
)
def test_not_enough(chains, task, tmp_path):
    with pytest.raises(UserError, match=f"'task_result_filters' must end with {EGRESS} for task '{task}'"):
        check(tmp_path, chains)
