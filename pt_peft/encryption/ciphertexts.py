"""Sites encrypt and decrypt; the server adds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pt_peft.encryption.contexts import Context, import_tenseal
from pt_peft.errors import UserError
from pt_peft.exchange.ciphertext_layout import DEGREE, PRIME_BITS, SCALE, WEIGHT, Layout
from pt_peft.exchange.tensors import Array, TensorError, Tensors

if TYPE_CHECKING:
    from tenseal import CKKSVector

Vectors = dict[str, "CKKSVector"]
"""tenseal's ciphertexts by key."""


class Cipher:
    """Encrypts and decrypts with the sites' secret key."""

    def __init__(self, context: Context, layout: Layout, largest_value: float):
        """Takes the key.

        Args:
            context: the site's, as `pt_peft.encryption.contexts.site_context` returns it.
            layout: which values are in which ciphertext.
            largest_value: greatest magnitude that a value may have, ``encryption.largest_value``.
        """
        self.layout = layout
        self._context = context
        self._largest = largest_value

    def of(self, layout: Layout) -> "Cipher":
        """The same key for other tensors."""
        return Cipher(self._context, layout, self._largest)

    def encrypt(self, tensors: Tensors, weight: int) -> Tensors:
        """Encrypts `weight` times the values.

        Returns:
            Ciphertexts by key, uint8 (bytes,).

        Raises:
            UserError: if a value is not finite or larger than the experiment allows: other sites would refuse the sum.
        """
        tenseal = import_tenseal()
        rows = self.layout.pack(tensors)
        if not np.abs(rows).max(initial=0) <= self._largest:
            raise UserError(
                f"the site's values go up to {np.abs(rows).max():g}, and 'encryption.largest_value' is "
                f"{self._largest:g}; a smaller learning rate or a larger bound may be right."
            )
        encrypted = (tenseal.ckks_vector(self._context, row * weight).serialize() for row in rows)
        return {key: np.frombuffer(content, np.uint8) for key, content in zip(self.layout.keys, encrypted, strict=True)}

    def decrypt_sum(self, payload: object) -> Tensors:
        """Decrypts the server's sum and divides it by the sum of the weights.

        Raises:
            TensorError: if `payload` is no sum of ciphertexts.
            UserError: if the mean has values that are not finite, or larger than the experiment allows.
        """
        contents, weight = self.layout.check_sum(payload)
        mean = self._decrypted(contents) / weight
        if not np.abs(mean).max(initial=0) <= self._largest:
            raise UserError(
                f"the sum of the sites' updates decrypts to values up to {np.abs(mean).max():g}, and "
                f"'encryption.largest_value' is {self._largest:g}: this site has another key than others, or one of "
                "them has sent nonsense; it is not used."
            )
        return self.layout.unpack(mean)

    def check_own(self, payload: object, weight: int) -> tuple[Tensors, float]:
        """Checks for the egress filter that `payload` is this site's, encrypted with the sites' key: it decrypts it.

        Returns:
            The ciphertexts by key, and the L2 norm of the values in them.

        Raises:
            TensorError: if `payload` is anything else.
        """
        contents = self.layout.check(payload)
        values = self._decrypted(contents) / weight
        if not np.abs(values).max(initial=0) <= self._largest * (1 + 1e-6):
            raise TensorError("the ciphertexts decrypt to nothing that the experiment allows")
        return {key: np.frombuffer(content, np.uint8) for key, content in contents.items()}, float(
            np.linalg.norm(values)
        )

    def read(self, payload: object, weight: int) -> Tensors:
        """Decrypts this site's own ciphertexts, as `encrypt` made them. Raises TensorError for anything else."""
        return self.layout.unpack(self._decrypted(self.layout.check(payload)) / weight)

    def _decrypted(self, contents: Mapping[str, bytes]) -> Array:
        return np.array([vector.decrypt() for vector in parse(contents, self._context).values()])


class Sum:
    """Adds up ciphertexts without a key."""

    def __init__(self, context: Context, layout: Layout):
        """Starts with nothing added.

        Args:
            context: the server's, as `pt_peft.encryption.contexts.server_context` returns it.
            layout: which values are in which ciphertext.
        """
        self._context = context
        self._layout = layout
        self._vectors: Vectors = {}
        self._weight = 0

    def add(self, payload: object, weight: int) -> None:
        """Adds a site's ciphertexts. Raises TensorError, and adds nothing, if they are not what they should be."""
        vectors = parse(self._layout.check(payload), self._context)
        if self._vectors:
            for key, vector in vectors.items():
                self._vectors[key] += vector
        else:
            self._vectors = vectors
        self._weight += weight

    def result(self) -> Tensors:
        """Returns the sum, and under `WEIGHT` the sum of the weights. Raises ValueError if nothing was added."""
        if not self._weight:
            raise ValueError("no results to aggregate")
        summed = {key: np.frombuffer(vector.serialize(), np.uint8) for key, vector in self._vectors.items()}
        return {**summed, WEIGHT: np.array([self._weight], dtype=np.float64)}


def parse(contents: Mapping[str, bytes], context: Context) -> Vectors:
    """Reads ciphertexts whose bytes `Layout.check` has let pass.

    Raises:
        TensorError: if one is neither a fresh ciphertext nor a sum of such under the context's parameters.
    """
    tenseal = import_tenseal()
    vectors: Vectors = {}
    for key, content in contents.items():
        try:
            vectors[key] = tenseal.ckks_vector_from(context, content)
            (inner,) = vectors[key].ciphertext()
        except (ValueError, RuntimeError) as error:
            raise TensorError(f"tensor '{key}' is no ciphertext ({error})", key) from None
        # Ciphertexts of other kinds cannot be added, or lose precision.
        shape = (inner.size(), inner.coeff_modulus_size(), inner.poly_modulus_degree(), inner.scale)
        if shape != (2, len(PRIME_BITS) - 1, DEGREE, SCALE) or inner.is_transparent():
            raise TensorError(f"tensor '{key}' is a ciphertext of another kind than those that add up", key)
    return vectors
