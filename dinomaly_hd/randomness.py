"""Seeds as pure functions of (seed, position): the reason why a resumed run repeats itself exactly."""

import hashlib


def derive(seed: int, *position: int | str) -> int:
    """Return a 63-bit seed for a named place in a run, e.g. ``derive(42, "dropout", step)``.

    >>> derive(42, "dropout", 7) == derive(42, "dropout", 7) != derive(42, "dropout", 8)
    True
    """
    text = ":".join([str(seed), *(f"{type(part).__name__}={part}" for part in position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
