"""An encrypted job in a provisioned federation, with keys as FLARE's HEBuilder puts them into kits."""

import numpy as np
import pytest
from lead import Lead, free_port

from benchmark.federation.provisioned import PROJECT, Federation
from helpers import changed
from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, read_file, server_context, site_context
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft_flare.__main__ import main

pytest.importorskip("tenseal")
SITES = ("hospital-1", "hospital-2", "hospital-3")
COMMENTED = "  # - path: nvflare.lighter.impl.he.HEBuilder\n"


@pytest.fixture(scope="module")
def kits(tmp_path_factory) -> Federation:
    """As a lead makes them who takes the mark off the line in the project file."""
    folder = tmp_path_factory.mktemp("encrypted")
    text = PROJECT.read_text(encoding="utf-8")
    assert text.count(COMMENTED) == 1
    (folder / "with_keys.yml").write_text(text.replace(COMMENTED, COMMENTED.replace("# ", "")), encoding="utf-8")
    sites = {name: Site(threads=1, cache=str(folder / "cache"), limits=Limits(min_train_images=16)) for name in SITES}
    return Federation(folder / "federation", sites, free_port(), project=folder / "with_keys.yml")


def test_the_kits_have_keys_and_the_server_has_none(kits):
    startup = kits.kit("server") / "startup"
    assert not server_context(read_file(startup / SERVER_FILE), "server").is_private()
    assert not (startup / SITE_FILE).exists()
    for name in SITES:
        own = kits.kit(name) / "startup"
        assert site_context(read_file(own / SITE_FILE), name).is_private()
        assert not (own / SERVER_FILE).exists()
        with pytest.raises(UserError, match="must not have"):
            server_context(read_file(own / SITE_FILE), name)


@pytest.mark.slow
def test_an_encrypted_job(kits, experiment, tmp_path):
    """The server ends with what only sites can read."""
    patient = {"rounds": 2, "min_sites": 3, "round_timeout_s": 500, "site_timeout_s": 400}
    images = {"images_per_site": {"train": 16, "val": 16, "test": 16}}
    try:
        kits.start()
        lead = Lead(kits, {}, tmp_path)
        kits.wait_for(lead.session)
        run = lead.submit(
            changed(experiment, name="encrypted", data=images, federation=patient, encryption={"scheme": "ckks"})
        )
        record = run.finish(1500)
        finals = [load_adapter(kits.kit(name) / run.job / "final_adapter.safetensors")[0] for name in SITES]
        lead.session.close()
    finally:
        kits.close()
    assert record["status"] == "finished"
    assert all(len(one["sites"]) == 3 for one in record["rounds"])
    assert not (run.results / "adapter.safetensors").exists()
    key = kits.kit("hospital-1") / "startup" / SITE_FILE
    encrypted, out = run.results / "encrypted_adapter.safetensors", tmp_path / "adapter.safetensors"
    assert main(["decrypt", str(encrypted), "--context", str(key), "--out", str(out)]) == 0
    opened = load_adapter(out)[0]
    assert opened
    assert all(np.array_equal(one[key], value) for one in finals for key, value in opened.items())
