from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.damaged import REFUSED, SURVIVED, write_edits
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Context, Model
from llama_cffi.errors import ModelLoadError, TemplateError, ValidationError

BUILDS = pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
TESTS = str(Path(__file__).parents[2])

TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from llama_cffi import LlamaError
from llama_cffi.engine.engine import Engine

def use(path):
    '''Everything a caller does with a model: 'ok' or the name and text of the LlamaError.'''
    try:
        with Engine(path, n_ctx=64, n_threads=1, n_batch=32) as engine:
            vocab, model = engine.model.vocab, engine.model
            model.metadata, model.description, vocab.bos, vocab.eos, vocab.eot
            engine.generate_tokens([1, 2, 3], 2, temperature=0)
            engine.generate("h\\u00e9 l", n_predict=2, seed=1)
            vocab.detokenize(range(len(vocab)), special=True)
        return "ok", ""
    except LlamaError as e:
        return type(e).__name__, str(e)
"""


@BUILDS
def test_damaged_models(child: Child, tmp_path: Path, build: str) -> None:
    refused = write_edits(tmp_path / "refused", REFUSED)
    survived = write_edits(tmp_path / "survived", SURVIVED)
    files = {name: str(path) for name, path in {**refused, **survived}.items()}
    (tmp_path / "files.json").write_text(json.dumps(files))
    code = (
        TRY
        + """
files = json.load(open(sys.argv[2]))
print(json.dumps({name: use(path) for name, path in files.items()}))
"""
    )
    result = child(code, TESTS, tmp_path / "files.json", LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    answers = json.loads(result.stdout)
    wrong = {name: answers[name] for name in refused if answers[name][0] != "ModelLoadError"}
    assert not wrong
    for name, path in refused.items():
        why = answers[name][1].replace(str(path), "")
        assert len(why) > 40, f"{name}: no reason in {answers[name][1]!r}"


@BUILDS
def test_truncated_and_corrupt_files(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    code = (
        TRY
        + """
from pathlib import Path
from support.damaged import cut_and_flipped
data, scratch = Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
answers = {}
for name, damaged in cut_and_flipped(data, seed=7, flips=200):
    scratch.write_bytes(damaged)
    answers[name] = use(scratch)[0]
print(json.dumps(answers))
"""
    )
    scratch = tmp_path / "x.gguf"
    result = child(code, TESTS, tiny_model, scratch, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    answers = json.loads(result.stdout)
    whole = {name: kind for name, kind in answers.items() if not name.startswith("flip")}
    assert len(whole) == 28
    assert set(whole.values()) == {"ModelLoadError"}


def test_files_that_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("hello" * 100)
    (tmp_path / "sparse.gguf").touch()
    os.truncate(tmp_path / "sparse.gguf", 2**31)
    for name, reason in {
        "empty.gguf": "is empty",
        "text.gguf": "not a GGUF file",
        "sparse.gguf": "not a GGUF file",
        "missing.gguf": "no model file",
        ".": "is a folder",
        "a\0b": "null (byte|character)",
        "n" * 5000: "cannot read",
    }.items():
        with pytest.raises(ModelLoadError, match=reason):
            Model(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="file modes as POSIX has them")
def test_file_without_permission(child: Child, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny_model.read_bytes())
    path.chmod(0)
    done = child(
        """
        import os, sys
        import llama_cffi
        llama_cffi.Model(sys.argv[2]).close()
        folder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
        os.fchdir(folder)
        if os.getuid() == 0:
            os.seteuid(65534)  # root may read every file, "nobody" may not
        try:
            llama_cffi.Model("secret.gguf")
        except llama_cffi.ModelLoadError as e:
            print(e)
        """,
        path,
        tiny_model,
    )
    assert "cannot read" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows paths are text")
def test_every_type_of_path(tiny_model: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.gguf"
    with open(odd, "wb") as file:
        file.write(tiny_model.read_bytes())
    unicode = tmp_path / "mödel 😀.gguf"
    unicode.write_bytes(tiny_model.read_bytes())
    for path in (odd, os.fsdecode(odd), unicode, str(tiny_model), os.fsencode(tiny_model)):
        with Model(path) as model:
            assert model.n_layer == 2


def test_properties(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        assert (model.n_layer, model.n_embd, model.n_ctx_train) == (2, 64, 256)
        assert model.n_params == 115_136 or model.n_params > 100_000
        assert model.size_bytes == model.n_params * 4
        assert model.metadata["general.architecture"] == "llama"
        assert model.chat_template is not None
        assert "<|im_start|>user\nhi<|im_end|>" in model.apply_chat_template([("user", "hi")])


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "llama2-sys", None])
def test_a_conversation_of_dicts_renders_as_its_pairs(
    tiny_model: Path, template: str | None
) -> None:
    pairs = [("system", "Be kind."), ("user", "Hi\nthere"), ("assistant", ""), ("user", "\u6771")]
    dicts = [{"role": role, "content": content} for role, content in pairs]
    more = [{**m, "name": None, "tool_calls": None, "refusal": None} for m in dicts]
    backwards = [dict(reversed(m.items())) for m in dicts]
    developer = [{"role": "developer", "content": "Be kind."}, *pairs[1:]]
    with Model(tiny_model, vocab_only=True) as model:
        text = model.apply_chat_template(pairs, template=template)
        assert "Be kind." in text
        assert "Hi\nthere" in text
        for given in (dicts, more, backwards, developer, [list(pair) for pair in pairs]):
            assert model.apply_chat_template(given, template=template) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hi", "messages must be a list of"),
        ({"role": "user", "content": "Hi"}, "messages must be a list of"),
        (["Hi"], r"messages\[0\] must be a pair .* got 'Hi'"),
        ([("user",)], "must be a pair"),
        ([("user", "a"), ("user", "b", "c")], r"messages\[1\] must be a pair"),
        ([{"content": "Hi"}], r"the role of messages\[0\] must be a str, got None"),
        ([{"role": "user"}], r"the content of messages\[0\] must be a str, got None"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "ChatRenderer takes"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "cannot show; use Chat"),
        ([("user", "a\0b")], r"messages\[0\] contains NUL"),
    ],
)
def test_messages_that_c_cannot_render_are_refused(
    tiny_model: Path, messages: Any, says: str
) -> None:
    with (
        Model(tiny_model, vocab_only=True) as model,
        pytest.raises(ValidationError, match=says),
    ):
        model.apply_chat_template(messages)


def test_template_refusals(tiny_model: Path, tmp_path: Path) -> None:
    bare = write_tiny(tmp_path / "bare.gguf", chat_template=None)
    unknown = write_tiny(tmp_path / "unknown.gguf", chat_template="{{ foo }}")
    for path in (bare, unknown):
        with Model(path) as model, pytest.raises(TemplateError):
            model.apply_chat_template([("user", "x")])
    with Model(tiny_model) as model:
        for text in ("a\0b", "\ud800", None, 5):
            with pytest.raises(ValidationError):
                model.apply_chat_template([("user", text)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_gpu_layers": 2**31},
        {"n_gpu_layers": 1.5},
        {"main_gpu": -1},
        {"main_gpu": 2**40},
        {"split_mode": "nonsense"},
    ],
)
def test_arguments_out_of_range(tiny_model: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Model(tiny_model, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"use_mmap": False}, {"check_tensors": True}])
def test_load_options(tiny_model: Path, arguments: dict[str, bool]) -> None:
    with Model(tiny_model, **arguments) as model:  # type: ignore[arg-type]
        assert model.n_layer == 2


def test_a_vocab_only_model_cannot_create_a_context(tiny_model: Path) -> None:
    with Model(tiny_model, vocab_only=True) as model:
        assert model.vocab.tokenize("hi") == [104, 105]
        with pytest.raises(ValidationError, match="vocab_only"):
            Context(model)


def test_progress(tiny_model: Path) -> None:
    seen: list[float] = []
    Model(tiny_model, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(ModelLoadError):
        Model(tiny_model, progress=lambda p: False)


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_progress_exceptions_reach_the_caller(tiny_model: Path, error: BaseException) -> None:
    def progress(_: float) -> bool:
        raise error

    with pytest.raises(type(error)) as caught:
        Model(tiny_model, progress=progress)
    assert caught.value is error
