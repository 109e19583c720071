"""Make docs/errors.md: wrong commands and wrong calls with their messages.

    python tools/errors.py            # write the page
    from tools.errors import run      # what tests/test_errors.py holds the messages against

Each case has the text that the message must contain: what was wrong, and what to do next.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"


class Case(NamedTuple):
    """A wrong command or call, and what its message must contain."""

    given: str
    wrong: str
    advice: str


# Files in the folder where the cases run, none of them a model.
FILES = {
    "text.gguf": "This is not a model.\n",
    "page.gguf": "<!DOCTYPE html>\n",
    "pointer.gguf": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}
COMMANDS = [
    Case("generat hello", "'generat'", "did you mean generate?"),
    Case("'What is 12 + 30?'", "'What is 12 + 30?'", "generate"),
    Case("--verison", "--verison", "did you mean --version?"),
    Case("help", "'help'", "did you mean --help?"),
    Case("generate", "prompt", "-p"),
    Case("generate ''", "the prompt is empty", "give text with -p"),
    Case("generate what is this", "is this", "put quotes around"),
    Case("generate hello -p hi", "the prompt once", "-p"),
    Case("generate --temprature 0.5 hello", "--temprature", "did you mean --temperature?"),
    Case("generate --max-token 5 --quux hello", "--quux", "--help"),
    Case("generate -n 0 hello", "got 0", "at least 1, or -1"),
    Case("generate -n -5 hello", "got -5", "at least -1"),
    Case("generate -n many hello", "'many'", "must be an integer"),
    Case("generate -n hello", "'hello'", "must be an integer"),
    Case("generate -c -1 hello", "got -1", "at least 0"),
    Case('generate -c 64 "' + "hello " * 300 + '"', "context holds", "-c N"),
    Case("generate -t -1 hello", "got -1", "at least 0"),
    Case("generate -t two hello", "'two'", "must be an integer"),
    Case("generate --gpu-layers most hello", "'most'", "must be an integer"),
    Case("generate --temperature hot hello", "'hot'", "a number"),
    Case("generate -temperature 1 hello", "-temperature", "did you mean --temperature?"),
    Case("generate --temperature -1 hello", "temperature=-1.0", "[0, 1000]"),
    Case("generate --temperature nan hello", "temperature=nan", "[0, 1000]"),
    Case("generate --top-p 2 hello", "top_p=2.0", "(0, 1]"),
    Case("generate --top-k -3 hello", "top_k=-3", "[0, "),
    Case("generate --min-p 1.5 hello", "min_p=1.5", "[0, 1]"),
    Case("generate --raw -s Brief hello", "--raw", "leave out --system"),
    Case("generate --raw --thinking hello", "--raw", "leave out --thinking"),
    Case("generate --reasoning-effort hard hello", "'hard'", "low"),
    Case("generate -m missing.gguf hello", "missing.gguf", "check the path"),
    Case("generate -m Qwen/Qwen3-0.6B-GGUF hello", "Qwen/Qwen3-0.6B-GGUF", "write hf:Qwen"),
    Case("generate -m '' hello", "path is empty", "hf:OWNER/REPO"),
    Case("generate -m txt.gguf hello", "txt.gguf", "did you mean text.gguf?"),
    Case("generate -m https://huggingface.co/owner/repo hello", "https", "write hf:owner/repo"),
    Case("generate -m . hello", "is a folder", "name a GGUF file"),
    Case("generate -m text.gguf hello", "not a GGUF file", "download"),
    Case("generate -m page.gguf hello", "a web page", "download the file"),
    Case("generate -m pointer.gguf hello", "Git LFS pointer", "git lfs pull"),
    Case("generate -m hf:nothing hello", "'hf:nothing'", "write hf:OWNER/REPO"),
    Case("generate -m hf:owner/repo hello", "owner/repo", "unset it"),
    Case("doctor now", "now", "unrecognized"),
    Case("libs", "COMMAND", "required"),
    Case("libs lst", "'lst'", "did you mean list?"),
    Case("libs use", "spec", "--help"),
    Case("libs use 3.22.1", "'3.22.1'", "did you mean npm:3.22.1?"),
    Case("libs use path:text.gguf", "not a shared library", "Give the libllama file"),
    Case("libs fetch nmp:3.1.1", "'nmp:3.1.1'", "npm:3.22.1"),
    Case("libs fetch --backend cudda", "'cudda'", "did you mean 'cuda'?"),
    Case("libs use path:nowhere", "nowhere", "libllama"),
    Case("libs fetch path:/tmp", "path", "nothing to fetch"),
    Case("libs list --remote --source nmp", "'nmp'", "did you mean npm?"),
    Case("libs remove npm:0.0.1", "npm:0.0.1", "the store"),
    Case("libs prune --keep some", "'some'", "int"),
    Case("stand-in text.gguf/x", "text.gguf/x", "another folder"),
]
MESSAGE = '[{"role": "user", "content": "Hi"}]'
CALLS = [
    Case("Llama()", "no model", "model_path"),
    Case("Llama(5)", "got 5", "a GGUF file"),
    Case('Llama("missing.gguf")', "missing.gguf", "check the path"),
    Case('Llama("text.gguf")', "text.gguf", "download"),
    Case("Llama('')", "path is empty", "a GGUF file"),
    Case("Llama(path, 512)", "got 512", "did you mean n_ctx=512?"),
    Case("Engine(llm)", "Llama(", "did you mean its .model?"),
    Case("Llama(path, n_cxt=512)", "'n_cxt'", "did you mean 'n_ctx'?"),
    Case("Llama(path, n_ctx=-1)", "n_ctx=-1", "0.."),
    Case("Llama(path, n_ctx='big')", "'big'", "an integer"),
    Case("Llama(path, pooling='meen')", "'meen'", "did you mean 'mean'?"),
    Case("Llama(path, type_k='q8')", "'q8'", "did you mean 'q8_0'?"),
    Case("Llama(path, split_mode='rows')", "'rows'", "did you mean 'row'?"),
    Case("Llama(path, context_policy='shfit')", "'shfit'", "did you mean 'shift'?"),
    Case("Llama(path, chat_format='chatm')", "'chatm'", "did you mean 'chatml'?"),
    Case("Llama(path, flash_attn='yes')", "'yes'", "True, False or None"),
    Case("Llama(path, tensor_split='1,1')", "'1,1'", "a list of numbers"),
    Case("LlamaPool(path, n_paralel=2)", "'n_paralel'", "did you mean 'n_parallel'?"),
    Case("LlamaPool(path, n_parallel=0)", "n_parallel=0", "1.."),
    Case("Engine()", "model_path", "a GGUF file"),
    Case("Engine(path, n_thread=2)", "'n_thread'", "did you mean 'n_threads'?"),
    Case("Engine(path, split_mode='row')", "'split_mode'", "Engine(Model(path, split_mode"),
    Case("Engine(path, n_threads=-1)", "n_threads=-1", "0.."),
    Case("InferenceEngine(path, n_paralel=2)", "'n_paralel'", "did you mean 'n_parallel'?"),
    Case("Embedder(path, poling='mean')", "'poling'", "did you mean 'pooling'?"),
    Case("Scorer(path, pooling='mean')", "'pooling'", "it has"),
    Case("Model(path, devices='gpu0')", "'gpu0'", "a list of names"),
    Case("LlamaConfig(n_cxt=5)", "'n_cxt'", "did you mean 'n_ctx'?"),
    Case("SamplingParams(temprature=1)", "'temprature'", "did you mean 'temperature'?"),
    Case("SamplingParams(samplers='top_q')", "'top_q'", "top_p"),
    Case("SamplingParams(temperature='hot')", "'hot'", "a number, 0 to 1000"),
    Case("llama_cffi.Lama", "'Lama'", "did you mean 'Llama'?"),
    Case('llm("Hi", 5)', "suffix", "did you mean max_tokens=5?"),
    Case('llm("Hi", max_token=5)', "'max_token'", "did you mean 'max_tokens'?"),
    Case('llm("Hi", max_tokens=0)', "max_tokens=0", "1.."),
    Case('llm(["Hi", "Hello"])', "['Hi', 'Hello']", "a str or a list of token ids"),
    Case(f"llm({MESSAGE})", "a list of messages", "create_chat_completion"),
    Case('llm("Hi", stream="yes")', "'yes'", "True or False"),
    Case('llm("Hi", seed="x")', "'x'", "-1 to 4294967294"),
    Case('llm("Hi", grammar={"type": "object"})', "'type'", "from_json_schema"),
    Case('llm.chat("Hi")', "not a method", "create_chat_completion"),
    Case('llm.load_lora("missing.gguf")', "LoRA file at missing.gguf", "check the path"),
    Case("llm.generate(5)", "prompt", "a str or a list of token ids"),
    Case('llm.generate("Hi", 5, 0.7)', "sampling", "did you mean temperature=0.7?"),
    Case('llm.generate("Hi", 5, None, 0.7)', "stream", "True or False"),
    Case('llm.generate("Hi " * 500)', "no room", "n_ctx > "),
    Case('llm.generate("Hi", grammar="root := x")', "root", "::="),
    Case('llm.create_chat_completion("Hi")', "got str", '"role": "user"'),
    Case("llm.create_chat_completion([])", "empty", "at least one message"),
    Case('llm.create_chat_completion([{"role": "usr", "content": "Hi"}])', "'usr'", "user"),
    Case('llm.create_chat_completion(["Hi"])', "got str", '"role": "user"'),
    Case('llm.create_chat_completion([{"content": "Hi"}])', "no role", '"role": "user"'),
    Case(f"llm.create_chat_completion({MESSAGE}, tools=ask)", "function", "write tools=[ask]"),
    Case(f"llm.create_chat_completion({MESSAGE}, tools=['ask'])", "'ask'", "a function"),
    Case(f"llm.create_chat_completion({MESSAGE}, thinking='on')", "'on'", "True or False"),
    Case(
        f"llm.create_chat_completion({MESSAGE}, response_format={{'type': 'object'}})",
        "JSON Schema",
        '"json_schema"',
    ),
    Case("LlamaGrammar.from_json_schema({'type': 'strng'})", "'strng'", "did you mean 'string'?"),
    Case("llm.parse('Hi')", "type_", "a Python type"),
    Case("llm.parse('Hi', 5)", "5", "use str, int, float"),
    Case(f"llm.create_chat_completion({MESSAGE}, 5)", "got 2", "by name"),
    Case(f"llm.create_chat_completion({MESSAGE}, response_format='json')", "'json'", "json_object"),
    Case('llm.embed("Hi")', "embed", "embeddings=True"),
    Case('engine.generate("Hi", 5)', "system_prompt", "did you mean max_tokens=5?"),
    Case('engine.generate("Hi", n_predct=5)', "'n_predct'", "did you mean 'n_predict'?"),
    Case('engine.generate_chat("Hi")', "got str", '"role": "user"'),
    Case('many.submit("Hi", 5, 0.7)', "got 3", "by name"),
    Case('many.submit("Hi", adapter={})', "'adapter'", "did you mean 'adapters'?"),
    Case("many.submit(5)", "got 5", "a str or a list of token ids"),
    Case('many.submit("Hi", adapters="a.gguf")', "'a.gguf'", '{"adapter.gguf": 1.0}'),
    Case("many.cancel(5)", "got 5", "RequestHandle"),
    Case("Context(path)", "got ", "must be a Model"),
    Case("SamplerChain(llm)", "Llama(", "did you mean its .model?"),
    Case("set_log_level('LOUD')", "'LOUD'", "WARNING"),
    Case('ask("Hi")', "ask", "model_path"),
    Case('complete("Hi", path, n_cxt=512)', "'n_cxt'", "did you mean 'n_ctx'?"),
    Case("pickle.dumps(llm)", "Llama", "the model's path"),
    Case("copy.copy(ResponseCache(llm))", "ResponseCache", "ResponseCache(llm)"),
    Case("copy.copy(many.scheduler)", "Scheduler", "make another one"),
    Case('closed.generate("Hi")', "closed", "open a new one"),
    Case("get_library('npm:x.y')", "npm:x.y", "libs fetch"),
    Case("get_library('b8179', backend='cudda')", "'cudda'", "did you mean 'cuda'?"),
]


class Told(NamedTuple):
    """A case with the message that it gets; without the usage that argparse prints before."""

    case: Case
    message: str


def run() -> tuple[list[Told], list[Told]]:
    """Return the messages of all commands, and of all calls."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for name, text in FILES.items():
            Path(folder, name).write_text(text)
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        stack.enter_context(mock.patch.dict(os.environ, {"LLAMA_CFFI_OFFLINE": "1"}))
        return [*_commands()], [*_calls()]


def _commands() -> Iterator[Told]:
    from llama_cffi.cli import main

    for case in COMMANDS:
        shown = io.StringIO()
        with (
            contextlib.redirect_stderr(shown),
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(sys, "stdin", None),
        ):
            try:
                code: object = main(shlex.split(case.given))
            except SystemExit as e:
                code = e.code
        lines = shown.getvalue().splitlines()
        yield Told(case, lines[-1] if code in (1, 2) and lines else f"(exit {code})")


def _calls() -> Iterator[Told]:
    import copy
    import pickle

    import llama_cffi
    from llama_cffi.demo import model_path

    names = {name: getattr(llama_cffi, name) for name in llama_cffi.__all__}
    path = str(model_path())
    llm = llama_cffi.Llama(path, n_ctx=256, n_threads=1)
    engine = llama_cffi.Engine(llm.model, 256, 1)
    many = llama_cffi.InferenceEngine(llm.model, 2, 256, n_threads=1)
    closed = llama_cffi.Engine(llm.model, 256, 1)
    closed.close()
    with llm, engine, many:
        names |= {
            "path": path, "llm": llm, "engine": engine, "many": many, "closed": closed,
            "llama_cffi": llama_cffi, "copy": copy, "pickle": pickle,
        }  # fmt: skip
        for case in CALLS:
            try:
                eval(case.given, names)
            except (llama_cffi.LlamaError, TypeError, AttributeError) as error:
                yield Told(case, f"{type(error).__name__}: {error}")
            else:
                yield Told(case, "(no error)")


def page() -> str:
    """Return the text of docs/errors.md."""
    from llama_cffi.demo import model_path

    commands, calls = run()
    lines = [
        "# Error messages",
        "",
        "Wrong commands and calls with their messages: what was wrong, what to do next. Generated",
        "by `tools/errors.py`; lists of valid names depend on the build.",
        "",
        "## Commands",
        "",
    ]
    for told in commands:
        lines += ["```text", f"$ llama-cffi {_short(told.case.given)}", told.message, "```", ""]
    lines += ["## Calls", ""]
    for told in calls:
        lines += ["```text", f">>> {told.case.given}", told.message, "```", ""]
    text = "\n".join(lines).rstrip() + "\n"
    # Nothing of this machine.
    text = text.replace(str(model_path()), "demo.gguf").replace(str(Path.home()), "~")
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+/", "", text)
    return re.sub(r"(the store holds npm:[\d.]+ \(\w+\)).*", r"\1.", text)


def _short(command: str) -> str:
    return command if len(command) < 90 else command[:60] + " ..."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
