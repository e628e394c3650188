"""Encrypting, adding, decrypting; and everything that is no key and no ciphertext."""

import pickle
import sys
from typing import Any, cast

import numpy as np
import pytest

from pt_peft.encryption.ciphertexts import Cipher, Sum
from pt_peft.encryption.contexts import (
    MOST_BYTES,
    SERVER_FILE,
    SITE_FILE,
    import_tenseal,
    new_context,
    read_file,
    server_context,
    site_context,
    write_pair,
)
from pt_peft.errors import UserError
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.ciphertext_layout import FEWEST_BYTES, SLOTS, WEIGHT, Layout
from pt_peft.exchange.tensors import TensorError, TensorSpec

tenseal = pytest.importorskip("tenseal")
LAYOUT = Layout({"b": TensorSpec((60, 70), "float32"), "a": TensorSpec((5,), "float32")})
LARGEST = 1e4


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "new"
    write_pair(folder)
    return folder


@pytest.fixture(scope="module")
def cipher(keys):
    return Cipher(site_context(read_file(keys / SITE_FILE), "site"), LAYOUT, LARGEST)


@pytest.fixture(scope="module")
def public(keys):
    return server_context(read_file(keys / SERVER_FILE), "server")


@pytest.fixture(scope="module")
def fresh(cipher):
    return cipher.encrypt(values(0), 3)


def values(seed, scale=0.1):
    random = np.random.default_rng(seed)
    return {key: random.normal(scale=scale, size=spec.shape).astype(np.float32) for key, spec in LAYOUT.specs.items()}


def summed(cipher, public, results):
    opened = Sum(public, LAYOUT)
    for tensors, weight in results:
        opened.add(cipher.encrypt(tensors, weight), weight)
    return opened.result()


@pytest.mark.parametrize("weights", [(1, 1, 1), (40, 3, 1000), (2**30, 1, 77)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 0.1, 100])
def test_the_sum_is_the_plain_mean(weights, scale, cipher, public):
    """To 1e-6 of the largest value. CKKS adds an error of about 1e-9 to a sum, whatever is in it."""
    plain = RunningMean(by_samples=True)
    results = [(values(seed, scale), weight) for seed, weight in enumerate(weights)]
    for number, (tensors, weight) in enumerate(results):
        plain.add(SiteResult(f"site-{number}", tensors, weight))
    expected, mean = plain.result(), cipher.decrypt_sum(summed(cipher, public, results))
    assert mean.keys() == expected.keys()
    for key, value in expected.items():
        assert mean[key].dtype == value.dtype
        assert mean[key].shape == value.shape
        assert np.abs(mean[key] - value).max() <= 1e-6 * np.abs(value).max() + 2e-9


def test_what_the_server_has_tells_nothing(keys, public, fresh):
    assert not public.is_private()
    with pytest.raises(ValueError, match="secret_key"):
        tenseal.ckks_vector_from(public, fresh["ciphertext/000000"].tobytes()).decrypt()
    with pytest.raises(ValueError, match="encryption"):
        tenseal.ckks_vector(public, [1.0])
    secret = keys / SITE_FILE
    assert secret.stat().st_mode & 0o077 == 0
    assert secret.stat().st_size > (keys / SERVER_FILE).stat().st_size + 50_000


def test_the_same_values_never_look_the_same(cipher, fresh):
    again = cipher.encrypt(values(0), 3)
    assert again.keys() == fresh.keys() == {"ciphertext/000000", "ciphertext/000001"}
    assert all(not np.array_equal(again[key], fresh[key]) for key in again)
    assert sum(value.nbytes for value in again.values()) <= LAYOUT.most_bytes


def test_nothing_added_gives_nothing(public):
    with pytest.raises(ValueError, match="no results"):
        Sum(public, LAYOUT).result()


def test_another_key(cipher, public, fresh):
    other = Cipher(new_context(), LAYOUT, LARGEST)
    with pytest.raises(UserError, match="another key than others"):
        other.decrypt_sum(summed(cipher, public, [(values(0), 3)]))
    with pytest.raises(UserError, match="another key than others"):
        cipher.decrypt_sum(summed(cipher, public, [(values(0), 1)]) | other.encrypt(values(0), 1))
    with pytest.raises(TensorError, match="decrypt to nothing"):
        other.check_own(fresh, 3)


def test_a_site_that_sends_nonsense_is_seen_after_decryption(cipher, public):
    wild = Cipher(cipher._context, LAYOUT, 1e12)
    opened = Sum(public, LAYOUT)
    opened.add(cipher.encrypt(values(0), 5), 5)
    opened.add(wild.encrypt(values(1, 1e9), 5), 5)
    with pytest.raises(UserError, match="one of them has sent nonsense; it is not used"):
        cipher.decrypt_sum(opened.result())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.01e4])
def test_what_others_would_refuse_is_not_sent(value, cipher):
    tensors = values(0)
    tensors["a"][2] = value
    with pytest.raises(UserError, match=r"'encryption\.largest_value' is 10000"):
        cipher.encrypt(tensors, 1)


def test_the_last_gate_sees_what_is_inside(cipher, fresh):
    tensors, norm = cipher.check_own(fresh, 3)
    assert all(np.array_equal(tensors[key], fresh[key]) for key in fresh)
    assert norm == pytest.approx(np.sqrt(sum(np.square(value, dtype=float).sum() for value in values(0).values())))
    with pytest.raises(TensorError, match="decrypt to nothing"):
        Cipher(cipher._context, LAYOUT, 0.01).check_own(fresh, 3)


def a_message(cipher, *lengths):
    """What tenseal makes of so many values at once."""
    return np.frombuffer(tenseal.ckks_vector(cipher._context, np.ones(sum(lengths))).serialize(), np.uint8)


def other_parameters():
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[50, 50, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )  # fmt: skip
    context.global_scale = 2**40
    return context


def other_scale(cipher):
    return np.frombuffer(tenseal.ckks_vector(cipher._context, np.ones(SLOTS), 2.0**30).serialize(), np.uint8)


def as_other(cipher):
    return np.frombuffer(tenseal.ckks_vector(other_parameters(), np.ones(SLOTS)).serialize(), np.uint8)


FIRST = "ciphertext/000000"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fresh, cipher: [fresh], "payload is a list"),
        (lambda fresh, cipher: {FIRST: fresh[FIRST]}, "payload has 1 entries, not just 2 ciphertexts"),
        (lambda fresh, cipher: {**fresh, "head.bias": np.zeros(4, np.float32)}, "not allowed: 'head.bias'"),
        (lambda fresh, cipher: values(0), "not allowed: 'a', 'b'"),
        (lambda fresh, cipher: {**fresh, FIRST: fresh[FIRST].tobytes()}, "no array of bytes"),
        (lambda fresh, cipher: {**fresh, FIRST: fresh[FIRST].astype(np.float32)}, "no array of bytes"),
        (lambda fresh, cipher: {**fresh, FIRST: fresh[FIRST][:0]}, "has 0 bytes"),
        (
            lambda fresh, cipher: {**fresh, FIRST: fresh[FIRST][:1000]},
            "has 1000 bytes; a ciphertext has 202752 to 263168",
        ),
        (lambda fresh, cipher: {**fresh, FIRST: np.zeros(10**6, np.uint8)}, "has 1000000 bytes"),
        (lambda fresh, cipher: {**fresh, FIRST: np.zeros(230_000, np.uint8)}, "is not one ciphertext of 4096 values"),
        (lambda fresh, cipher: {**fresh, FIRST: fresh[FIRST][:-30]}, "is not one ciphertext"),
        (
            lambda fresh, cipher: {**fresh, FIRST: np.concatenate([fresh[FIRST], fresh[FIRST][:9]])},
            "is not one ciphertext",
        ),
        (lambda fresh, cipher: {**fresh, FIRST: a_message(cipher, 100)}, "is not one ciphertext of 4096 values"),
        (lambda fresh, cipher: {**fresh, FIRST: a_message(cipher, SLOTS, 1)}, "bytes; a ciphertext has"),
        (lambda fresh, cipher: {**fresh, FIRST: other_scale(cipher)}, "of another kind"),
        (lambda fresh, cipher: {**fresh, FIRST: as_other(cipher)}, "is no ciphertext"),
    ],
)
def test_malformed_ciphertexts(change, words, fresh, cipher, public):
    """Alike at the server, at the last gate of a site and in a site that decrypts; the round goes on."""
    opened = Sum(public, LAYOUT)
    opened.add(fresh, 3)
    before = opened.result()
    payload = change(dict(fresh), cipher)
    for refuses in (lambda: opened.add(payload, 1), lambda: cipher.check_own(payload, 1)):
        with pytest.raises(TensorError) as error:
            refuses()
        assert words in str(error.value)
    if isinstance(payload, dict):
        with pytest.raises(TensorError):
            cipher.decrypt_sum({**payload, WEIGHT: np.array([1.0])})
    after = opened.result()
    assert all(np.array_equal(after[key], before[key]) for key in before)


def test_polynomials_of_zeros_are_too_short_to_be_a_ciphertext(cipher):
    """Those that a plain value in a ciphertext's clothes has in place of the mask."""
    zeros = tenseal.ckks_vector(cipher._context, np.ones(SLOTS)) * 2.0
    assert len(zeros.serialize()) < FEWEST_BYTES, "of one prime less, which would cost precision"


@pytest.mark.parametrize(
    "weight", [None, np.zeros(1), np.ones(2), np.ones(1, np.float32), np.array([np.nan]), np.array([np.inf]), 3.0]
)
def test_a_sum_without_its_weight(weight, fresh, cipher):
    payload = fresh if weight is None else {**fresh, WEIGHT: weight}
    with pytest.raises(TensorError, match="'weight' is not the sum of weights"):
        cipher.decrypt_sum(payload)


def test_damaged_ciphertexts(fresh, cipher, public):
    """Flipped bytes anywhere: an error, or numbers that no site takes; never more."""
    random = np.random.default_rng(0)
    outcomes = set()
    for case in range(200):
        damaged = fresh[FIRST].copy()
        place = case if case < 100 else random.integers(damaged.size)
        damaged[place] ^= 1 << random.integers(8)
        opened = Sum(public, LAYOUT)
        try:
            opened.add({**fresh, FIRST: damaged}, 3)
            cipher.decrypt_sum(opened.result())
            outcomes.add("unchanged" if np.array_equal(damaged, fresh[FIRST]) else "taken")
        except (TensorError, UserError) as error:
            outcomes.add(type(error).__name__)
    assert "TensorError" in outcomes


class Touch:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda content: b"", "is damaged"),
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: b"junk", "is damaged"),
        (lambda content: pickle.dumps(Touch()), "is damaged"),
        (lambda content: b"\0" * (MOST_BYTES + 1), "has more than 4194304 bytes"),
        (
            lambda content: other_parameters().serialize(save_secret_key=True, save_galois_keys=False),
            "has other parameters than CKKS with degree 8192",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_context(content, words, keys):
    for parse in (site_context, server_context):
        with pytest.raises(UserError) as error:
            parse(content(read_file(keys / SITE_FILE)), "file")
        assert words in str(error.value)
        assert str(error.value).startswith("file: ")


def test_each_has_its_own_file(keys, tmp_path):
    with pytest.raises(UserError, match="has the sites' secret key, which the server must not have"):
        server_context(read_file(keys / SITE_FILE), "file")
    with pytest.raises(UserError, match="has no secret key"):
        site_context(read_file(keys / SERVER_FILE), "file")
    with pytest.raises(UserError, match="cannot be read"):
        read_file(tmp_path / SITE_FILE)
    with pytest.raises(UserError, match="is there already"):
        write_pair(keys)


def test_flares_own_files(tmp_path):
    """As its builder serialises them, with the relinearisation keys that a sum has no use for."""
    from nvflare.lighter.impl.he import HEBuilder

    builder, unused = HEBuilder(), cast(Any, None)
    builder.initialize(unused, unused)
    theirs, ours = builder.get_serialized_context(is_client=True), builder.get_serialized_context()
    assert max(len(theirs), len(ours)) < MOST_BYTES
    cipher = Cipher(site_context(theirs, "theirs"), LAYOUT, LARGEST)
    mean = cipher.decrypt_sum(summed(cipher, server_context(ours, "ours"), [(values(0), 2), (values(0), 5)]))
    assert all(np.allclose(mean[key], value, atol=1e-7) for key, value in values(0).items())


def test_without_tenseal(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(
        UserError, match=r"'encryption' needs the package tenseal.*`pip install tenseal` would be right"
    ):
        import_tenseal()
