"""A site's own model outlives its worker, and a round that is done again starts where it started."""

import numpy as np
import pytest

from pt_peft.errors import UserError
from pt_peft.model.adapter_file import save_adapter
from pt_peft.worker.local_adapter import LOCAL_ADAPTER, LocalAdapter


def trained(kept, *rounds):
    for number in rounds:
        kept.save({"head": np.full(2, number, np.float32)}, {"round": number})


def before(kept, number):
    return {key: value[0] for key, value in kept.before(number)[0].items()}


def test_a_round_that_is_done_again_starts_where_it_started(tmp_path):
    kept = LocalAdapter(tmp_path, None)
    assert kept.before(0) == ({}, None)
    trained(kept, 0)
    assert before(kept, 0) == {}
    assert before(kept, 1) == {"head": 0}
    trained(kept, 1, 1, 1)
    assert before(kept, 1) == {"head": 0}
    assert before(kept, 2) == {"head": 1}
    assert kept.last()[1]["round"] == 1


def test_after_rounds_that_the_site_has_missed(tmp_path):
    kept = LocalAdapter(tmp_path, None)
    trained(kept, 0, 5)
    assert before(kept, 5) == {"head": 0}
    assert before(kept, 9) == {"head": 5}


def test_a_job_that_continues_another(tmp_path):
    trained(LocalAdapter(tmp_path / "first", None), 0, 1, 2)
    kept = LocalAdapter(tmp_path / "second", tmp_path / "first")
    assert before(kept, 2) == {"head": 1}
    assert before(kept, 0) == {}
    trained(kept, 2)
    assert before(kept, 3) == {"head": 2}
    assert before(kept, 2) == {"head": 1}


def test_none_yet(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        LocalAdapter(tmp_path, None).last()


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_file_counts_as_none(damage, tmp_path, caplog):
    kept = LocalAdapter(tmp_path, None)
    trained(kept, 0, 1)
    path = tmp_path / LOCAL_ADAPTER
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        save_adapter(path, {}, {"round": "x"})
    assert before(kept, 2) == {"head": 0}
    assert "It is skipped" in caplog.text
    trained(kept, 2)
    assert before(kept, 3) == {"head": 2}
