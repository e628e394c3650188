"""A federation whose server only adds, without FLARE; and what experiments, limits and files say of it."""

import json

import numpy as np
import pytest

from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed
from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import SERVER_FILE, SITE_FILE, read_file, server_context, site_context, write_pair
from pt_peft.encryption.encrypted_server import EncryptedServer
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.ciphertext_layout import MOST_BYTES, Layout
from pt_peft.exchange.tensors import TensorError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.export.adapter import find_adapter, open_adapter
from pt_peft.federation.local_round import local_round
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.schema import parse
from pt_peft_flare.__main__ import main

pytest.importorskip("tenseal")
NAMES = ["site-1", "site-2", "site-3"]
CKKS = {"scheme": "ckks"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_pair(folder)
    return folder


@pytest.fixture(scope="module")
def experiment(tiny):
    return changed(tiny, method={"name": "lora", "options": {}}, federation={"rounds": 3}, encryption=CKKS)


@pytest.fixture(scope="module")
def site(tiny_weights):
    return Site(limits=Limits.open(), backbone=str(tiny_weights))


def test_as_the_plain_loop(experiment, site, keys, tmp_path):
    """To 1e-6, also for a server that is replaced after the first round; the file that it leaves can be decrypted."""
    trainer, data = make_trainer(experiment, site), load_sites(experiment, site, NAMES)
    expected = federate(trainer, data).tensors
    exchange = trainer.exchange
    cipher = Cipher(site_context(read_file(keys / SITE_FILE), "site"), Layout(exchange.up(0)), 1e4)
    public = server_context(read_file(keys / SERVER_FILE), "server")
    server = EncryptedServer(experiment, exchange, public)
    assert not server.payload("site-1", 0, 0)
    for number in range(3):
        opened = server.start_round(number)
        for name in NAMES:
            received = (
                cipher.decrypt_sum(server.payload(name, 0, number))
                if number
                else initial_exchanged(trainer.experiment, exchange, trainer.initial)
            )
            result = local_round(trainer, name, data[name].train, received, {}, number)
            weight = experiment.aggregation.weight(result.num_samples)
            with pytest.raises(TensorError):
                opened.add(name, result.payload, result.num_samples)
            opened.add(name, cipher.encrypt(result.payload, weight), result.num_samples)
        assert server.finish_round(opened, len(NAMES)) == {}
        kept, server = server.state(number + 1), EncryptedServer(experiment, exchange, public)
        save_adapter(tmp_path / "checkpoint.safetensors", kept, {})
        server.tensors |= load_adapter(tmp_path / "checkpoint.safetensors")[0]
    final = cipher.decrypt_sum(server.payload("site-1", 0, 3))
    assert final.keys() == expected.keys()
    assert max(np.abs(final[key] - expected[key]).max() for key in expected) <= 1e-6

    encrypted = tmp_path / "encrypted_adapter.safetensors"
    save_adapter(
        encrypted, server.result(server.tensors, 3), {**adapter_header(experiment), "round": 3, **server.header()}
    )
    assert find_adapter(tmp_path) == encrypted
    with pytest.raises(UserError, match="is encrypted; `pt-peft decrypt`"):
        open_adapter(encrypted, None)
    out = tmp_path / "adapter.safetensors"
    arguments = ["decrypt", str(encrypted), "--context", str(keys / SITE_FILE), "--out", str(out)]
    assert main(arguments) == 0
    opened, header = load_adapter(out)
    assert all(np.array_equal(opened[key], value) for key, value in final.items())
    assert "encrypted" not in header
    assert open_adapter(out, site.existing("backbone"))[2]["round"] == 3


def test_decrypt_says_what_is_wrong(experiment, keys, tmp_path, capsys):
    def decrypt(adapter, context):
        code = main(["decrypt", str(adapter), "--context", str(context), "--out", str(tmp_path / "out")])
        return code, capsys.readouterr().err

    plain = tmp_path / "adapter.safetensors"
    save_adapter(plain, {"a": np.zeros(3, np.float32)}, adapter_header(experiment))
    code, said = decrypt(plain, keys / SITE_FILE)
    assert code == 1
    assert "is no encrypted adapter" in said
    header = {**adapter_header(experiment), "encrypted": {"tensors": {"a": {"shape": [3], "dtype": "float32"}}}}
    save_adapter(plain, {"a": np.zeros(3, np.float32)}, header)
    code, said = decrypt(plain, keys / SITE_FILE)
    assert code == 1
    assert "cannot be decrypted by the key in" in said
    for shape in ([-3], [2**20, 2**20], "x", None):
        header["encrypted"]["tensors"]["a"]["shape"] = shape
        save_adapter(plain, {"a": np.zeros(3, np.float32)}, header)
        assert "is no encrypted adapter" in decrypt(plain, keys / SITE_FILE)[1]
    header["encrypted"]["tensors"]["a"]["shape"] = [3]
    save_adapter(plain, {"a": np.zeros(3, np.float32)}, header)
    code, said = decrypt(plain, keys / SERVER_FILE)
    assert code == 1
    assert "has no secret key" in said
    assert not (tmp_path / "out").exists()


def test_a_pair_for_trials(tmp_path, capsys):
    assert main(["contexts", str(tmp_path / "keys")]) == 0
    assert {path.name for path in (tmp_path / "keys").iterdir()} == {SITE_FILE, SERVER_FILE}
    assert main(["contexts", str(tmp_path / "keys")]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"aggregation": {"name": "lora_product"}}, "'aggregation.name' must be 'mean' with encryption"),
        (
            {"aggregation": {"weighting": "inverse_variance"}},
            "'aggregation.weighting' must be 'samples' or 'uniform' with encryption",
        ),
        ({"server_optimizer": {"name": "fedadam"}}, "'server_optimizer.name' must be 'none' with encryption"),
        ({"training": {"control_variates": True}}, "'training.control_variates' must be false with encryption"),
        ({"federation": {"lora_ranks": {"site-1": 1}}}, "'federation.lora_ranks' must be empty with encryption"),
        ({"encryption": {"scheme": "bfv"}}, "scheme"),
        ({"encryption": {"scheme": "ckks", "largest_value": 0}}, "largest_value"),
        ({"method": {"name": "sba"}}, "'encryption' must be null with method.name 'sba'"),
        ({"method": {"name": "linear_probe", "head": "local"}}, "exchanges nothing"),
    ],
)
def test_what_the_server_cannot_do_without_reading(fields, words, experiment, site):
    with pytest.raises((UserError, ValueError)) as error:
        make_trainer(changed(experiment, **fields), site)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "norm_bounded_mean", "multi_krum"])
def test_robust_aggregation_compares_what_it_cannot_read(name, experiment):
    content = {**experiment.model_dump(mode="json"), "aggregation": {"name": name}}
    content["federation"]["min_sites"] = 5
    with pytest.raises(
        UserError, match=f"must be 'mean' with encryption: .* compare or change the sites' tensors; it is '{name}'"
    ):
        parse(Experiment, content, "experiment.json")


def test_uniform_weights_and_sites_that_keep_tensors_are_fine(experiment, site):
    fields = {"aggregation": {"name": "mean", "weighting": "uniform"}, "method": {"roles": {"*.lora_B": "local"}}}
    made = changed(experiment, **fields, training={"proximal": 0.1, "ditto": 0.1})
    assert make_trainer(made, site).exchange.up(0)
    assert Mean(weighting="uniform").weight(40) == 1
    assert Mean(weighting="samples").weight(40) == 40


def test_the_limit_is_of_what_leaves(experiment, site):
    exchange = make_trainer(experiment, site).exchange
    plain = sum(spec.nbytes for spec in exchange.up(0).values())
    Limits(bytes_per_round=plain).check_bytes(experiment.model_copy(update={"encryption": None}), exchange, 0)
    with pytest.raises(OutsideLimits, match=f"asks for {MOST_BYTES} bytes a round"):
        Limits(bytes_per_round=plain).check_bytes(experiment, exchange, 0)
    Limits(bytes_per_round=MOST_BYTES).check_bytes(experiment, exchange, 0)


def test_site_json_names_a_folder(tmp_path):
    (tmp_path / "site.json").write_text(json.dumps({"encryption_contexts": "keys"}))
    assert Site.read(tmp_path / "site.json").encryption_contexts == str(tmp_path / "keys")
