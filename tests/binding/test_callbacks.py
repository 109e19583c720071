from __future__ import annotations

import cffi
import pytest

from llama_cffi.binding.callbacks import ExceptionRelay


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_the_first_exception_reaches_the_caller(error: BaseException) -> None:
    ffi, relay, calls = cffi.FFI(), ExceptionRelay(), []

    def function(n: int) -> int:
        calls.append(n)
        if n == 1:
            return 5
        raise error if n == 2 else RuntimeError("later")

    callback = relay.guard(ffi, "int(int)", function, -1)
    with pytest.raises(type(error)) as caught, relay:
        assert [callback(1), callback(2), callback(3)] == [5, -1, -1]
    assert caught.value is error
    assert calls == [1, 2, 3]
    with relay:  # nothing is left
        assert callback(1) == 5
