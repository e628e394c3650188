"""One seed gives every random draw of a run."""

import hashlib


def derive_seed(seed: int, purpose: str, *path: str | int) -> int:
    """Derives the seed of one random draw: a pure function, the same in every process and on every machine.

    Args:
        seed: the experiment's seed.
        purpose: what the draw is for, e.g. ``"shuffle"``.
        *path: what tells this draw from others of its purpose, usually the site's name and the round.

    Returns:
        The first 32 bits of SHA-256 over the arguments. Every seeding function takes them (numpy's needs < 2**32).
    """
    text = "\x1f".join(str(part) for part in (seed, purpose, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
