from __future__ import annotations

import decimal
import math

import numpy as np
import pytest

from llama_cffi.errors import ValidationError
from llama_cffi.validation import check_float, check_int


def test_integers() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        assert check_int("n", value, 0, 3) == 3
        assert type(check_int("n", value, 0, 3)) is int
    assert check_int("n", True, 0) == 1
    for value in (-1, 4, 1.0, "3", None, math.nan, np.float64(1), decimal.Decimal(1)):
        with pytest.raises(ValidationError, match="n="):
            check_int("n", value, 0, 3)  # type: ignore[arg-type]


def test_floats() -> None:
    assert check_float("x", np.float32(0.5), 0, 1) == 0.5
    assert check_float("x", 0, 0, 1) == 0.0
    for value in (-0.1, 1.1, math.nan, math.inf, 10**400, None, "x", []):
        with pytest.raises(ValidationError, match="x="):
            check_float("x", value, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"\(0, 1\]"):
        check_float("x", 0, 0, 1, above=True)
