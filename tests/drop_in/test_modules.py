"""The drop-in's modules: names, constants, functions, and registration as `llama_cpp`."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.tiny_projectors import write_projector

import llama_cffi
import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import ValidationError
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import llama_chat_format, llama_grammar, llama_speculative


def test_registration_as_llama_cpp(child: Child) -> None:
    result = child(
        """
        import sys
        import llama_cffi.llama_cpp
        sys.modules["llama_cpp"] = llama_cffi.llama_cpp
        import importlib.util
        import llama_cpp
        import llama_cpp.llama_chat_format
        import llama_cpp.llama_speculative as speculative
        from llama_cpp import *
        assert Llama is llama_cpp.Llama
        from llama_cpp.llama import Llama as Same, LogitsProcessorList as List
        from llama_cpp.llama_types import ChatCompletionRequestMessage
        from llama_cpp.llama_cpp import llama_supports_mmap as mmap
        assert Same is Llama is llama_cpp.Llama and List is LogitsProcessorList
        assert mmap is llama_supports_mmap
        assert speculative.__spec__.name == "llama_cffi.llama_cpp.llama_speculative"
        assert llama_cpp.llama_chat_format is sys.modules["llama_cffi.llama_cpp.llama_chat_format"]
        assert importlib.util.find_spec("llama_cpp") is not None
        try:
            import llama_cpp.server
        except ModuleNotFoundError as error:
            print(error)
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "llama_cffi.llama_cpp.server" in result.stdout


def test_import_loads_neither_library_nor_numpy(child: Child) -> None:
    result = child(
        """
        import sys
        import llama_cffi.llama_cpp as llama_cpp
        print([name for name in ("numpy", "jinja2", "llguidance") if name in sys.modules])
        print([p for p in open("/proc/self/maps").read().split() if "libllama" in p]
              if sys.platform == "linux" else [])
        assert tuple(map(int, llama_cpp.__version__.split("."))) >= (0, 3, 0)
        """
    )
    assert (result.stdout, result.stderr) == ("[]\n[]\n", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_enums_are_those_of_every_build(child: Child, build: str) -> None:
    result = child(
        """
        import llama_cffi.llama_cpp as llama_cpp
        from llama_cffi.llama_cpp import options
        for prefix, table in (
            ("LLAMA_POOLING_TYPE_", options.POOLING),
            ("LLAMA_SPLIT_MODE_", options.SPLIT_MODES),
            ("LLAMA_ROPE_SCALING_TYPE_", options.ROPE_SCALINGS),
            ("LLAMA_ATTENTION_TYPE_", options.ATTENTIONS),
            ("GGML_TYPE_", options.CACHE_TYPES),
        ):
            for number, name in table.items():
                name = prefix + (name or "unspecified").upper()
                try:
                    assert getattr(llama_cpp, name) == number, name
                except AttributeError:
                    assert name.endswith(("_TENSOR", "_LONGROPE")), name  # newer than some builds
        assert llama_cpp.LLAMA_DEFAULT_SEED == options.DEFAULT_SEED
        """,
        LLAMA_CFFI_BUILD=build,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_constants_and_functions_of_the_library() -> None:
    assert llama_cpp.GGML_TYPE_Q4_K == llama_cpp.llama_cpp.GGML_TYPE_Q4_K == 12
    assert llama_cpp.llama_supports_mmap() is True
    assert isinstance(llama_cpp.llama_supports_gpu_offload(), bool)
    assert isinstance(llama_cpp.llama_supports_mlock(), bool)
    assert isinstance(llama_cpp.llama_supports_rpc(), bool)
    assert llama_cpp.llama_max_devices() >= 1
    assert llama_cpp.llama_time_us() <= llama_cpp.llama_time_us()
    assert b"=" in llama_cpp.llama_print_system_info()
    llama_cpp.llama_backend_init()
    llama_cpp.llama_backend_free()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama_decode", "Llama.eval"),
        ("llama_batch_init", "llama_cffi.Batch"),
        ("llama_model_quantize", "llama_cffi.quantize"),
        ("llama_tokenize", r"Llama\.tokenize"),
        ("ggml_new_tensor", r"get_library\(\)\.lib"),
        ("LLAMA_NO_SUCH_THING", "no constant LLAMA_NO_SUCH_THING"),
        ("nothing", "no 'nothing'$"),
    ],
)
def test_missing_names_suggest_alternatives(name: str, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        getattr(llama_cpp, name)


IMAGE_HANDLERS = [
    "Llava15ChatHandler", "Llava16ChatHandler", "MTMDChatHandler", "Gemma4ChatHandler",
    "ObsidianChatHandler", "MoondreamChatHandler", "NanoLlavaChatHandler", "Llama3VisionAlpha",
    "Llama3VisionAlphaChatHandler", "MiniCPMv26ChatHandler", "Qwen25VLChatHandler",
]  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_HANDLERS)
def test_handlers_of_images_need_a_projector(name: str, tmp_path: Path) -> None:
    handler = getattr(llama_chat_format, name)
    path = tmp_path / "mmproj.gguf"
    with pytest.raises(ValidationError, match="there is no file"):
        handler(clip_model_path=str(path), verbose=False)
    path.write_bytes(b"GGUF")
    made = handler(path, image_min_tokens=4, image_max_tokens=-1)
    assert made.llama_options == {"mmproj": str(path), "image_min_tokens": 4}
    with llama_cpp.Llama(model_path(), n_ctx=64, n_threads=1) as llm:
        llm.chat_handler = made
        with pytest.raises(ValidationError, match="pass this handler to it"):
            llm.create_chat_completion([{"role": "user", "content": "Hi"}])


def test_a_build_without_libmtmd_says_so_when_the_model_is_opened(tmp_path: Path) -> None:
    mmproj = write_projector(tmp_path / "mmproj.gguf", n_embd=192)
    handler = llama_chat_format.Llava15ChatHandler(mmproj)
    with pytest.raises(ValidationError, match=r"this build of llama\.cpp has no libmtmd"):
        llama_cpp.Llama(model_path(), chat_handler=handler, n_ctx=64, n_threads=1)


def test_a_handler_that_llama_cpp_python_does_not_have_is_named() -> None:
    with pytest.raises(AttributeError, match="no 'Qwen9VLChatHandler': MTMDChatHandler is for"):
        _ = llama_chat_format.Qwen9VLChatHandler


def test_the_vocabulary_as_outlines_reads_it() -> None:
    with llama_cffi.Model(model_path(), vocab_only=True) as model:
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert llama_cpp.llama_vocab_n_tokens(vocab) == 1536
        eos = llama_cpp.llama_vocab_eos(vocab)
        assert (eos, llama_cpp.llama_vocab_bos(vocab)) == (model.vocab.eos, model.vocab.bos)
        buffer = (ctypes.c_char * 32)()
        n = llama_cpp.llama_token_to_piece(vocab, eos, buffer, 32, 0, True)
        assert bytes(buffer[:n]) == b"<|im_end|>"
        small = (ctypes.c_char * 4)()
        assert llama_cpp.llama_token_to_piece(vocab, eos, small, 4, 0, True) == -n
        assert llama_cpp.llama_token_to_piece(vocab, eos, small, 4, 0, False) == 0
        pieces = model.vocab.pieces()
        spaced = next(t for t in range(1536) if (pieces[t] or b"").startswith(b" "))
        n = llama_cpp.llama_token_to_piece(vocab, spaced, buffer, 32, 1, True)
        assert bytes(buffer[:n]) == (pieces[spaced] or b"")[1:]
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        assert llama_cpp.llama_token_get_attr(vocab, eos) & control
        assert not llama_cpp.llama_token_get_attr(vocab, spaced) & control


def tokenize(vocab: int, text: bytes, n_max: int, special: bool = True) -> tuple[int, list[int]]:
    """Call `_lib.llama_tokenize` by its address, as llguidance's Rust does."""
    address = ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    assert address is not None
    function = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p,
        ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
    )(address)  # fmt: skip
    tokens = (ctypes.c_int32 * n_max)()
    n = function(vocab, text, len(text), tokens, n_max, False, special)
    return n, list(tokens[: max(n, 0)])


def test_plug_ins_call_llama_tokenize_by_its_address(caplog: pytest.LogCaptureFixture) -> None:
    with llama_cffi.Model(model_path(), vocab_only=True) as model:
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert vocab == llama_cpp.llama_model_get_vocab(model)
        for text in ("What is 17 + 25?", "<|im_end|>a", "", "é日本 x", "a" * 200):
            for special in (True, False):
                expected = model.vocab.tokenize(text, False, special)
                found = tokenize(vocab, text.encode(), 256, special)
                assert found == (len(expected), expected)
        assert tokenize(vocab, b"What is 17 + 25?", 2)[0] < -2
        assert not caplog.records
    assert tokenize(vocab, b"a", 8) == (0, [])  # no read of freed memory
    assert "closed" in caplog.text
    with pytest.raises(ValidationError, match="closed"):
        llama_cpp.llama_token_get_attr(vocab, 1)
    for other in (7, None, "a"):
        with pytest.raises(ValidationError, match="llama_model_get_vocab"):
            llama_cpp.llama_vocab_n_tokens(other)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"_lib has no 'llama_decode': .*Llama\.eval"):
        _ = llama_cpp.llama_cpp._lib.llama_decode


def test_llguidances_tokenizer_of_a_llama(child: Child) -> None:
    result = child(
        """
        import sys
        import llama_cffi.llama_cpp
        sys.modules["llama_cpp"] = llama_cffi.llama_cpp
        import llguidance, llguidance.llamacpp, llama_cpp
        with llama_cpp.Llama(sys.argv[1], vocab_only=True) as llm:
            vocab = llama_cpp.llama_model_get_vocab(llm.model)
            tokenizer = llguidance.llamacpp.lltokenizer_from_vocab(vocab)
            assert (tokenizer.vocab_size, tokenizer.eos_token) == (llm.n_vocab(), llm.token_eos())
            for text in ("What is 17 + 25?", "\u65e5\u672c x", "", "<|im_end|>", "1, 2"):
                tokens = llm.tokenize(text.encode(), add_bos=False)
                assert tokenizer.tokenize_str(text) == tokens, text
            grammar = llguidance.grammar_from("lark", 'start: "What is " /[0-9]+/ "."')
            matcher = llguidance.LLMatcher(tokenizer, grammar)
            forced = matcher.compute_ff_tokens()
            assert b"What is ".startswith(llm.detokenize(forced)) and forced
            assert matcher.consume_tokens(llm.tokenize(b"What is 17.", add_bos=False))
            assert matcher.is_accepting()
        """,
        model_path(),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_what_plug_ins_import_from_private_modules(child: Child) -> None:
    result = child(
        """
        import logging, os, sys
        import llama_cffi.llama_cpp
        sys.modules["llama_cpp"] = llama_cffi.llama_cpp
        from llama_cpp._logger import logger, set_verbose
        from llama_cpp._utils import suppress_stdout_stderr
        set_verbose(False)
        assert logger.level == logging.ERROR
        set_verbose(True)
        assert logger.isEnabledFor(logging.DEBUG) and logger.name == "llama_cffi.native"
        for disable in (False, True):
            before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
            with suppress_stdout_stderr(disable=disable):
                print("python", disable)
                print("errors", disable, file=sys.stderr)
                sys.stdout.flush()
                os.write(1, b"C\\n")
                os.write(2, b"E\\n")
            after = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
            assert before == after
        try:
            with suppress_stdout_stderr(disable=False):
                raise KeyError("mine")
        except KeyError as error:
            print("|", error)
        """
    )
    assert (result.returncode, result.stderr) == (0, "errors True\nE\n")
    assert result.stdout == "python True\nC\n| 'mine'\n"


def test_messages_of_c_reach_a_function(child: Child) -> None:
    result = child(
        """
        import ctypes, logging, sys
        import llama_cffi.llama_cpp as llama_cpp
        said = []

        @llama_cpp.llama_log_callback
        def log(level, text, data):
            said.append((level, text, data))

        llama_cpp.llama_log_set(log, "x")
        logging.getLogger("llama_cffi.native").setLevel("DEBUG")
        llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1).close()
        assert len(said) > 20 and {1, 2} <= {level for level, _, _ in said} <= {1, 2, 3, 4}
        assert all(text.endswith(b"\\n") and data == "x" for _, text, data in said)
        llama_cpp.llama_log_set(log, ctypes.c_void_p())
        llama_cpp.llama_log_set(None)
        n = len(said)
        llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1).close()
        assert len(said) == n
        """,
        model_path(),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_grammars() -> None:
    assert isinstance(llama_cpp.LlamaGrammar.from_string("root ::= [ab]", verbose=False),
                      llama_cffi.LlamaGrammar)  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    grammar = llama_cpp.LlamaGrammar.from_json_schema(schema, False)
    assert '"additionalProperties": false' in grammar.text
    with pytest.raises(llama_cffi.GrammarError):
        llama_cpp.LlamaGrammar.from_string("root ::= (", verbose=False)


def test_grammars_of_json() -> None:
    with llama_cpp.Llama(str(model_path()), n_ctx=256, n_threads=1) as llm:
        for text, first in ((llama_grammar.JSON_GBNF, "{"), (llama_grammar.JSON_ARR_GBNF, "[")):
            grammar = llama_cpp.LlamaGrammar.from_string(text)
            answer = llm("Any JSON: ", grammar=grammar, max_tokens=20, temperature=1, seed=1)
            assert answer["choices"][0]["text"].startswith(first)


def test_prompt_lookup_drafts_what_followed() -> None:
    draft = llama_speculative.LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=3)
    assert draft(np.array([1, 2, 3, 4, 5, 1, 2], np.int32)).tolist() == [3, 4, 5]
    assert draft(np.array([9, 2, 3, 4, 5, 1, 2], np.int32)).tolist() == [3, 4, 5]
    assert draft(np.array([1, 2, 3], np.int32)).tolist() == []
    assert draft(np.array([], np.int32)).tolist() == []
    with llama_cpp.Llama(str(model_path()), n_ctx=64, n_threads=1, draft_model=draft) as llm:
        assert llm.draft_model is draft  # accepted
