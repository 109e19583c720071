"""`%llama` and `%%llama` in a shell of IPython."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from support.notebooks import Shell

from llama_cffi import Llama, demo
from llama_cffi.notebook.magics import LlamaMagics

SUM = "What is 12 + 30?"


def refused(shell: Shell, cell: str, match: str) -> None:
    """Check that a cell fails with one sentence."""
    with pytest.raises(UsageError, match=match):
        shell.run(cell)


@pytest.fixture(autouse=True)
def loaded(shell: Shell) -> None:
    """Begin with the options of the fixture, and no output."""
    magics = shell.shell.magics_manager.registry["LlamaMagics"]
    assert isinstance(magics, LlamaMagics)
    magics._target, magics._settings = "llm", {"temperature": 0.0}
    shell.outputs()


def test_a_cell_is_a_prompt_and_its_output_the_answer(shell: Shell) -> None:
    assert shell.run(f"%%llama\n{SUM}") is None  # else it would be shown twice
    *_, last = shell.outputs()
    assert last["text/plain"].startswith("42\n\n[prompt 18 tokens")
    assert ">42<" in last["text/html"]
    assert "tokens/s" in last["text/html"]


def test_as_keeps_the_response(shell: Shell) -> None:
    shell.run(f"%%llama --as found --logprobs 2\n{SUM}")
    found = shell.variables["found"]
    asked: Any = [{"role": "user", "content": SUM}]
    llm: Llama = shell.variables["llm"]
    own = llm.create_chat_completion(asked, temperature=0, logprobs=True, top_logprobs=2)
    assert found["choices"] == own["choices"]
    assert found["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]
    assert found["timings"]["predicted_n"] == 2


def test_a_response_is_shown_as_html_and_other_dicts_are_not(shell: Shell) -> None:
    shell.run(f"%%llama --as found\n{SUM}")
    format_ = shell.shell.display_formatter.format
    assert ">42<" in format_(shell.variables["found"])[0]["text/html"]
    for other in (
        {"object": "list", "index": 1},
        {"object": "chat.completion", "choices": [1]},
        {"object": "text_completion", "choices": [{"text": 1, "logprobs": {"content": [{}]}}]},
        {"index": 0, "text": None, "logprobs": 5, "finish_reason": ["x"]},
    ):
        assert [*format_(other)[0]] == ["text/plain"], other


def test_options_hold_for_later_cells_and_a_cell_has_its_own(shell: Shell) -> None:
    shell.run("%llama -n 1 -s 'Be brief.'")
    shell.run("%%llama --as one\nTell me a story.")
    shell.run("%%llama --as three -n 3\nTell me a story.")
    assert shell.variables["one"]["usage"]["completion_tokens"] == 1
    assert shell.variables["three"]["usage"]["completion_tokens"] == 3
    n_prompt = shell.variables["one"]["usage"]["prompt_tokens"]
    shell.run('%%llama --as bare -s ""\nTell me a story.')
    assert shell.variables["bare"]["usage"]["prompt_tokens"] < n_prompt


def test_without_arguments_the_model_and_the_options_are_shown(shell: Shell) -> None:
    text = repr(shell.run("%llama --top-k 5"))
    for fact in ("llm: is open", "model: demo.gguf", "context: 512 tokens", "top k: 5"):
        assert fact in text
    assert text == repr(shell.run("%llama"))


def test_braces_are_replaced_only_on_request(shell: Shell) -> None:
    shell.run("numbers = [12, 30]")
    shell.run("%%llama -e --messages talk\nWhat is {numbers[0]} + {numbers[1]}?")
    shell.run("%%llama -n 1 --messages plain\n{numbers} $numbers")
    assert shell.variables.pop("talk")[0]["content"] == SUM
    assert shell.variables.pop("plain")[0]["content"] == "{numbers} $numbers"
    refused(shell, "%%llama -e\n{missing}", "no variable 'missing'")
    refused(shell, "%%llama -e\n{", "expand")


def test_a_conversation_goes_on_in_a_variable(shell: Shell) -> None:
    shell.run("%%llama --messages talk -s 'Be kind.'\nMy name is Anna.")
    shell.run("%%llama --messages talk\nWhat is my name?")
    talk = shell.variables.pop("talk")
    assert [m["role"] for m in talk] == ["user", "assistant"] * 2
    assert "Anna" in talk[-1]["content"]
    shell.run("talk = 'text'")
    refused(shell, "%%llama --messages talk\nHi", "list of messages")


@dataclass
class Sum:
    total: int


def test_a_schema_gives_a_value(shell: Shell, tmp_path: Path) -> None:
    shell.variables["Sum"] = Sum
    shell.run(f"%%llama --schema Sum --as value -n 200\n{SUM}")
    assert isinstance(shell.variables["value"], Sum)
    schema = {"enum": ["yes", "no"]}
    shell.variables["schema"] = schema
    shell.run("%%llama --schema schema --as value\nIs it so?")
    assert shell.variables["value"] in ("yes", "no")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    shell.run(f"%%llama --schema '{file}' --as value\nIs it so?")
    assert shell.variables["value"] in ("yes", "no")
    refused(shell, "%%llama --schema nowhere.json\nx", "no variable and no file")
    refused(shell, "%%llama --schema Sum -n 1\nx", "cut off before the JSON ended")
    file.write_text("{")
    refused(shell, f"%%llama --schema {file}\nx", "not JSON")


def test_loading_closes_the_model_that_it_replaces(shell: Shell) -> None:
    shell.run("%llama demo -c 256 --as other")
    first = shell.variables["other"]
    refused(shell, "%llama nowhere.gguf --as other", "no model file at nowhere.gguf")
    assert not first.closed, "a misspelt name costs no model"
    shell.run("%llama demo -c 512 --as other")
    second = shell.variables["other"]
    assert first.closed
    assert second.n_ctx == 512
    assert not shell.variables["llm"].closed
    shell.run(f"%%llama -m other --temp 0\n{SUM}")
    assert "42" in shell.outputs()[-1]["text/plain"]
    second.close()
    refused(shell, "%%llama\nHi", "closed")
    assert "no model is loaded" in repr(shell.run("%llama"))


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_a_model_that_the_user_loaded_is_used(shell: Shell, n_parallel: int) -> None:
    with Llama(demo.model_path(), n_ctx=256, n_threads=1, n_parallel=n_parallel) as own:
        shell.variables["own"] = own
        shell.run(f"%%llama -m own\n{SUM}")
        assert "42" in shell.outputs()[-1]["text/plain"]
        assert "own: is open" in repr(shell.run("%llama --as own"))


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ("%%llama\n \n", "the cell is empty"),
        ("%%llama --nope\nx", "unrecognized arguments: --nope"),
        ("%%llama -n many\nx", "must be an integer"),
        ("%%llama --temp -1\nx", "temperature"),
        ("%%llama -s 'open\nx", "No closing quotation"),
        ("%%llama -m nothing\nx", "no model is loaded; load one: %llama"),
        ("%%llama -m SUM\nx", "SUM is a str"),
        ("%llama -c 128", "n_ctx is an option of loading"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(shell: Shell, cell: str, match: str) -> None:
    shell.variables["SUM"] = SUM
    refused(shell, cell, match)


def test_a_path_with_spaces_and_backslashes_is_one_argument(shell: Shell) -> None:
    refused(shell, r"%llama 'C:\my models\m.gguf'", r"C:\\my models\\m\.gguf")


def test_the_extension_can_be_loaded_twice_and_unloaded(shell: Shell) -> None:
    shell.run("%load_ext llama_cffi\n%reload_ext llama_cffi")
    shell.run(f"%%llama\n{SUM}")
    shell.run("%unload_ext llama_cffi")
    assert shell.shell.find_magic("llama") is None
    assert shell.shell.find_cell_magic("llama") is None
    assert not shell.variables["llm"].closed
    shell.run("%load_ext llama_cffi")


def test_importing_the_package_imports_no_ipython(child: Any) -> None:
    done = child("""
        import sys, llama_cffi, llama_cffi.notebook
        assert hasattr(llama_cffi, "load_ipython_extension")
        assert not {"IPython", "numpy", "cffi", "matplotlib"} & sys.modules.keys()
    """)
    assert done.stderr == ""
