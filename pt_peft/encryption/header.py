"""What the header of an encrypted adapter file says of its ciphertexts. Imports no torch and no tenseal."""

from typing import Annotated, Literal

from pydantic import Field

from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.schema import Strict


class EncryptedTensor(Strict):
    """One tensor in the ciphertexts."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Literal["float32"]


class EncryptedHeader(Strict):
    """The field ``encrypted``: which tensors are in the ciphertexts."""

    scheme: Literal["ckks"] = "ckks"
    tensors: dict[str, EncryptedTensor]
    """The tensors by canonical key."""
    head: tuple[str, ...] = ()
    """Those of the classifier, which follows from statistics where the file has some."""

    @property
    def layout(self) -> Layout:
        """Which values are in which ciphertext."""
        return Layout({key: TensorSpec(tensor.shape, tensor.dtype) for key, tensor in self.tensors.items()})
