"""The hold-out split: one function decides for training and for evaluation alike.

Every question carries a *key*, a text that names its content (operands, words, facts) and not its
phrasing. A key is held out when its SHA-256 says so, hence no seed, order or amount of data can
move a question from one side to the other.
"""

from __future__ import annotations

import hashlib

HOLDOUT_FRACTION = 0.1


def is_heldout(key: str) -> bool:
    """Tell whether the question content ``key`` is kept away from training.

    Args:
        key: The content, for example ``"add:17:25"``.

    Returns:
        True for about one key in ten, decided by the first 8 bytes of SHA-256.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HOLDOUT_FRACTION * 2**64
