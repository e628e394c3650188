"""Decrypts the adapter file that the server keeps."""

from pathlib import Path

from pt_peft.encryption.ciphertexts import Cipher
from pt_peft.encryption.contexts import read_file, site_context
from pt_peft.encryption.encrypted_statistics import decrypted_head
from pt_peft.encryption.header import EncryptedHeader
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, Tensors
from pt_peft.experiment.statistics import parted
from pt_peft.model.adapter_file import load_adapter, save_adapter
from pt_peft.schema import parse

LARGEST_VALUE = 1e6
"""Greatest value that any experiment's ``encryption.largest_value`` allows."""
MOST_VALUES = 2**33
"""Most values of an adapter: a header that claims more would fill the memory."""


def decrypt_file(encrypted: Path, context: Path, out: Path) -> None:
    """Decrypts the adapter in `encrypted` with the key in `context`, and writes it to `out`.

    Raises:
        UserError: if `encrypted` is no adapter that this key encrypted, or `context` has no key.
        OSError: if `out` cannot be written.
    """
    payload, header = load_adapter(encrypted)
    payload, statistics = parted(payload)
    try:
        described = parse(EncryptedHeader, header.pop("encrypted", None), str(encrypted))
        layout = described.layout
        if layout.values > MOST_VALUES:
            raise UserError(f"{encrypted}: claims to hold {layout.values} values.")
    except UserError:
        raise UserError(f"{encrypted}: is no encrypted adapter; a plain one needs no decrypting.") from None
    cipher = Cipher(site_context(read_file(context), str(context)), layout, LARGEST_VALUE)
    try:
        mean = cipher.decrypt_sum(payload) if payload or not statistics else Tensors()
        if statistics:
            mean |= decrypted_head(cipher, described, header["head"], statistics)
    except (KeyError, TypeError):
        raise UserError(f"{encrypted}: its header does not say how the classifier was made.") from None
    except (TensorError, UserError) as error:
        raise UserError(f"{encrypted}: cannot be decrypted by the key in {context}: {error}") from None
    if lacking := layout.specs.keys() - mean.keys():
        raise UserError(
            f"{encrypted}: holds the classifier alone, and {len(lacking)} tensors of the adapter are as the seed draws "
            "them; a site's final_adapter.safetensors has all of them."
        )
    save_adapter(out, mean, header)
