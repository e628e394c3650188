"""experiment.json and site.json: what is refused, and with which words."""

import json

import pytest

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.site import Site
from pt_peft.presets import override


@pytest.fixture
def write(tiny, tmp_path):
    """Writes experiment.json with one field replaced or removed (value ...)."""

    def write(path: str, value: object):
        content = tiny.model_dump(mode="json")
        *parents, last = path.split(".")
        target = content
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[last]
        else:
            target[last] = value
        file = tmp_path / "experiment.json"
        file.write_text(json.dumps(content))
        return file

    return write


def test_round_trip(tiny, tmp_path):
    path = tmp_path / "experiment.json"
    path.write_text(tiny.to_json())
    assert Experiment.read(path) == tiny
    assert Experiment.read(path).digest() == tiny.digest() != changed(tiny, seed=1).digest()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.learning_rat", 0.1, r"'training.learning_rat' is unknown; did you mean 'learning_rate'"),
        ("zzz", 1, r"'zzz' is unknown; known fields are name, seed"),
        ("training.learning_rate", "0.1", r"'training.learning_rate' is \"0.1\": input should be a valid number"),
        ("training.learning_rate", -1.0, r"'training.learning_rate' is -1.0: input should be greater than 0"),
        ("federation.rounds", 2.5, r"'federation.rounds' is 2.5"),
        ("federation.rounds", True, r"'federation.rounds' is true"),
        (
            "federation.site_timeout_s",
            1000,
            r"'federation.site_timeout_s' must be at most round_timeout_s with federation.round_timeout_s 120",
        ),
        ("federation.sites", ["a", "a"], r"site names must differ"),
        (
            "federation.sites",
            ["a"],
            r"'federation.min_sites' must be at most the number of sites with federation.sites \[\"a\"\]: .*; it is 2",
        ),
        ("backbone.sha256", "abc", r"'backbone.sha256' is \"abc\""),
        ("backbone.std", [0.5, 0.0, 0.5], r"'backbone.std.1' is 0.0"),
        ("backbone", ..., r"'backbone' is missing"),
        ("data.classes", ["a"], r"'data.classes'"),
        ("data.classes", ["a", "a"], r"class names must differ"),
        *(
            (
                "data.classes",
                ["a", name],
                rf"'data.classes.1' is {shown}: printable text in Unicode's form NFC",
            )
            for name, shown in (
                ("\x1b[2J", r'"\\u001b\[2J"'),
                ("a\nb", r'"a\\nb"'),
                ("b ", '"b "'),
                ("a\u0308", r'"a\\u0308"'),
                ("\u202eb", r'"\\u202eb"'),
            )
        ),
        ("data.source", "dicm", r"'data.source' is \"dicm\": 'site' or 'lesions' would be right; what a site's"),
        (
            "data.source",
            "csv",
            r"'data.source' is \"csv\": 'site' or 'lesions' .* said in its site\.json, by 'data\.source'",
        ),
        (
            "data.columns",
            {"label": "hiv"},
            r"'data.columns' stands in each site's site\.json now, as 'data\.columns': ",
        ),
        ("data.no_finding", None, r"'data.no_finding' stands in each site's site\.json now, as 'data\.no_finding': "),
        ("data.augment", ["flap"], r"flap"),
        (
            "partition.kind",
            "natural",
            r"'partition.kind' must be 'none' with data.source 'lesions': each site draws .*; it is 'natural'",
        ),
        ("name", "../../etc", r"'name'"),
        ("name", "..", r"'name'"),
        ("federation.sites", ["../../evil", "x"], r"'federation.sites.0' is \"../../evil\""),
        ("federation.sites", ["server", "x"], r"'server' is the server's own name"),
        ("backbone.name", "hf-hub:timm/vit", r"'backbone.name'"),
        ("backbone.kwargs", {"checkpoint_path": "/etc/passwd"}, r"'checkpoint_path' may not be set here"),
        ("backbone.kwargs", {"img_size": 64}, r"'img_size' may not be set here"),
        ("backbone.mean", [0.5, float("nan"), 0.5], r"'backbone.mean.1'"),
        (
            "backbone.kwargs",
            {"mlp_layer": "os.system"},
            r"'mlp_layer' is 'os.system'; Mlp, SwiGLU, SwiGLUPacked would be",
        ),
        (
            "backbone.kwargs",
            {"act_layer": ["silu"]},
            r"'act_layer' is \['silu'\]; gelu, gelu_tanh, quick_gelu, silu would",
        ),
        ("backbone.kwargs", {"mlp_layer": "SwiGLUPacked"}, r"'SwiGLUPacked', whose 'act_layer' must be 'silu'"),
        ("backbone.kwargs", {"init_values": float("inf")}, r"'backbone.kwargs.init_values' is not a finite number"),
        ("method.options", {"lora": {"alpha": float("nan")}}, r"'method.options.lora.alpha' is not a finite number"),
        ("a\nb", 1, r"'a\\nb' is unknown"),
        ("data.images_per_site", {"val": 3}, r"'train' must be among the splits"),
    ],
)
def test_errors_name_field_value_and_remedy(write, field, value, message):
    with pytest.raises(UserError, match=message) as caught:
        Experiment.read(write(field, value))
    assert "experiment.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"x"', b"\xff\xfe", '{"a": 1, "a": 2}', "[" * 10**5, "9" * 5000]
)
def test_a_file_that_is_no_experiment(tmp_path, content):
    path = tmp_path / "experiment.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"experiment\.json"):
        Experiment.read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_file_of_another_encoding(tmp_path, encoding):
    (tmp_path / "site.json").write_bytes('{"data": {"images": "Köln"}}'.encode(encoding))
    with pytest.raises(UserError, match=r"site\.json: is not in UTF-8 \(byte \d+\); saved in UTF-8 it would be right"):
        Site.read(tmp_path / "site.json")


@pytest.mark.parametrize("value", ["ALL", [1]])
def test_a_value_of_none_of_its_kinds_has_all_that_would_be_right(tmp_path, value):
    (tmp_path / "site.json").write_text(json.dumps({"data": {"frames": value}}))
    with pytest.raises(UserError) as caught:
        Site.read(tmp_path / "site.json")
    message = f"field 'data.frames' is {json.dumps(value)}: input should be a valid integer, or input should be 'all'."
    assert str(caught.value).endswith(message)


def test_one_wrong_value_of_a_list_is_one_error(tiny):
    """Pydantic also calls the list too short, as it does not count the value."""
    for value, message in (
        ("[0]", "field 'head.penalties.0' is 0: input should be greater than 0."),
        ("[]", "field 'head.penalties' is []: tuple should have at least 1 item after validation, not 0."),
        ("[-1, 0]", "field 'head.penalties.0' is -1: input should be greater than 0 (and 1 more)."),
    ):
        with pytest.raises(UserError) as error:
            override(tiny, [f"head.penalties={value}"])
        assert str(error.value).endswith(message)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Experiment.read(tmp_path / "none.json")


def test_site_paths_start_at_its_file(tmp_path):
    path = tmp_path / "site.json"
    own = {"images": "images.zip", "table": "/else/t.csv", "classes": {"mel": ["a/b"]}, "no_finding": "none"}
    path.write_text(json.dumps({"data": own, "backbone": "w.safetensors"}))
    site = Site.read(path)
    assert site.data.images == str(tmp_path / "images.zip")
    assert site.data.table == "/else/t.csv"
    assert site.data.meaning() == SiteData(classes={"mel": ("a/b",)}, no_finding="none").meaning()
    with pytest.raises(UserError, match=r"field 'data.images' is .*, which does not exist"):
        site.existing("data.images")
    with pytest.raises(UserError, match=r"field 'data.npz' is not set"):
        site.existing("data.npz")
