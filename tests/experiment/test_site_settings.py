"""Settings of single sites of a simulation, in the one file that they share."""

import json
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from helpers import simulated
from pt_peft.data.sources import site_images
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.run_context import read_site

NAMES = ["site-1", "site-2"]


@pytest.fixture
def shared_file(tmp_path):
    path = tmp_path / "site.json"
    common = {"threads": 1, "data": {"images": "a.zip", "columns": {"label": "dx"}, "classes": {"mel": ["x"]}}}
    own = {"threads": 2, "data": {"images": "b.zip", "classes": {"nv": ["y"]}}, "limits": None}
    path.write_text(json.dumps({**common, "sites": {"site-2": own}}))
    return path


def test_a_sites_fields_replace_the_common_ones(shared_file, tmp_path):
    site = Site.read(shared_file)
    first, second = (site.at(name, NAMES) for name in NAMES)
    assert first == site.model_copy(update={"sites": {}})
    assert (first.threads, first.data.images, first.limits) == (1, str(tmp_path / "a.zip"), Limits())
    assert (second.threads, second.data.images, second.limits) == (2, str(tmp_path / "b.zip"), Limits.open())
    assert second.data.columns.label == "dx", "fields of a section that are not named stay"
    assert second.data.classes == {"nv": ("y",)}, "a field is replaced as a whole"
    assert Site.model_validate_json(site.model_dump_json()) == site


def test_a_limit_may_be_the_default_of_a_site_whose_others_are_open(tmp_path):
    own = {"site-2": {"limits": {"own_model_stays": True}}}
    (tmp_path / "site.json").write_text(json.dumps({"limits": None, "sites": own}))
    limits = Site.read(tmp_path / "site.json").at("site-2", NAMES).limits
    assert limits == Limits.open().model_copy(update={"own_model_stays": True})


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (
            {"threads": 0},
            r"site\.json: sites\.site-2: field 'threads' is 0: input should be greater .* to 1\.$",
        ),
        ({"thread": 1}, r"site\.json: sites\.site-2: field 'thread' is unknown; did you mean 'threads'\?$"),
        ({"sites": {}}, r"field 'sites\.site-2\.sites' is unknown: a simulated site has no sites of its own\.$"),
    ],
)
def test_they_are_checked_like_the_rest(own, sentence, tmp_path):
    (tmp_path / "site.json").write_text(json.dumps({"sites": {"site-2": own}}))
    with pytest.raises(UserError, match=sentence):
        Site.read(tmp_path / "site.json")


def test_unknown_sites_are_refused(tiny, shared_file):
    site = Site.read(shared_file)
    sentence = r"field 'sites' names site-2, but the sites are site-1, site-3\."
    with pytest.raises(UserError, match=sentence):
        site.at("site-1", ["site-1", "site-3"])
    with pytest.raises(UserError, match=sentence):
        site_images(tiny, site, "site-1", ["site-1", "site-3"])


def context(folder, engine) -> FLContext:
    fl_ctx = FLContext()
    clients = [{"name": name} for name in NAMES]
    fl_ctx.set_prop(FLContextKey.JOB_META, {"job_clients": clients}, private=True, sticky=False)
    fl_ctx.get_identity_name = lambda: "site-2"
    fl_ctx.get_engine = lambda: engine(get_workspace=lambda: SimpleNamespace(get_site_config_dir=lambda: str(folder)))
    return fl_ctx


def test_only_a_simulation_has_them(shared_file, tmp_path):
    def of_simulator(get_workspace):
        return simulated(get_workspace())

    assert read_site(context(tmp_path, of_simulator)).threads == 2
    with pytest.raises(UserError, match="field 'sites' is for FLARE's simulator, whose sites share one file"):
        read_site(context(tmp_path, SimpleNamespace))
