"""A run in FLARE's simulator counts as one if no site was missing."""

from typing import Any

import pytest

from benchmark.sweep.engines import check_complete
from pt_peft.errors import UserError

LATE = {"site-2": {"code": "no_answer", "seconds": 60, "sentence": "no answer within 60 s"}}


@pytest.mark.parametrize(
    ("where", "sentence"),
    [("rounds", "round 3 lacks site-2"), ("statistics", "stage 'moments' of statistics at the finish lacks site-2")],
)
def test_whom_a_run_lacks(where, sentence):
    record: dict[str, Any] = {
        "rounds": [{"round": 2, "left_out": {}}],
        "statistics": [{"when": "finish", "stage": "moments", "left_out": {}}],
    }
    check_complete(record)
    record[where][0]["left_out"] = LATE
    with pytest.raises(UserError, match=sentence + r" \(no answer within 60 s\)"):
        check_complete(record)
