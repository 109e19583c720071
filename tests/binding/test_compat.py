from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding import compat, get_library

EXPERTS = {OLD: 160, MIDDLE: 384, NEWEST: 1024}  # measured: more ends the process


def test_a_function_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="llama_nonsense"):
        compat.c_function(get_library(), "llama_nonsense")
    with pytest.raises(AttributeError, match="nonsense"):
        compat.memory_call(get_library(), None, "nonsense")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_same_results_on_every_build(child: Child, tiny_model: Path, build: str) -> None:
    code = """
        import sys
        from llama_cffi.binding import Model, compat
        model = Model(sys.argv[1])
        library, vocab = model.library, model.vocab
        for name in compat.names._RENAMED:
            assert callable(compat.c_function(library, name)), name
        assert compat.max_experts(library) == int(sys.argv[2])
        types = compat.tensor_types(library)
        assert (types[0], types[1], types[8]) == ("F32", "F16", "Q8_0")
        assert compat.rope_scaling_types(library)[:3] == ["none", "linear", "yarn"]
        assert compat.max_sequences(library) >= 64
        assert compat.has_tokens(library, vocab._handle)
        assert "im_start" in model.chat_template
        print((model.n_layer, model.n_embd, model.n_ctx_train, vocab.bos, vocab.eos, vocab.add_bos,
               vocab.text(258), model.apply_chat_template([("user", "x")])))
    """
    result = child(code, tiny_model, EXPERTS[build], LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    chat = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert result.stdout.strip() == str((2, 64, 256, 256, 258, False, "<|im_end|>", chat))
