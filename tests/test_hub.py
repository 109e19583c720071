"""The hub: names, the choice among files, and the real client against a server with its shapes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_server import COMMIT, Hub

from llama_cffi.errors import FetchError, ModelLoadError, ValidationError
from llama_cffi.hub import HubSpec, RemoteFile, choose, find_projector, resolve_model

# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hf:owner/repo", HubSpec("owner/repo")),
        ("hf:owner/repo:Q4_K_M", HubSpec("owner/repo", None, "Q4_K_M")),
        ("hf:owner/repo:sub/file.gguf", HubSpec("owner/repo", None, "sub/file.gguf")),
        ("hf:owner/repo@v1.0", HubSpec("owner/repo", "v1.0")),
        ("hf:owner/repo@refs/pr/1:a.gguf", HubSpec("owner/repo", "refs/pr/1", "a.gguf")),
        (" hf:Owner/Re-po_1.5B ", HubSpec("Owner/Re-po_1.5B")),
    ],
)
def test_parse(text: str, spec: HubSpec) -> None:
    assert HubSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:repo",
        "hf:owner/",
        "hf:/repo",
        "hf:a/b/c",
        "hf:a/b:",
        "hf:a/b@",
        "hf:../b",
        "hf:a/..",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValidationError, match="write hf:OWNER/REPO"):
        HubSpec.parse(text)


@pytest.mark.parametrize("wanted", ["../x.gguf", "a/../../x.gguf", "..\\x.gguf"])
def test_parse_refuses_paths_that_leave_the_repository(wanted: str) -> None:
    with pytest.raises(ValidationError):
        HubSpec.parse(f"hf:owner/repo:{wanted}")


def pick(names: list[str], wanted: str | None = None) -> tuple[str, ...]:
    return choose(names, HubSpec("owner/repo", None, wanted))


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["m.gguf", "README.md"], None, "m.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], None, "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_S.gguf", "m-Q5_K_M.gguf"], None, "m-Q4_K_S.gguf"),
        (["m-F16.gguf", "m-BF16.gguf", "m-Q8_0.gguf"], None, "m-Q8_0.gguf"),
        (["m-F16.gguf", "m-BF16.gguf"], None, "m-F16.gguf"),
        (["mmproj-m-f16.gguf", "m.imatrix.gguf", "m-Q6_K.gguf"], None, "m-Q6_K.gguf"),
        (["m-Q4_K_M.gguf", "m-Q8_0.gguf"], "q8_0", "m-Q8_0.gguf"),
        (["m.q4_k_m.gguf", "m.q8_0.gguf"], "Q4_K_M", "m.q4_k_m.gguf"),
        (["m-Q4_K.gguf", "m-Q4_K_M.gguf"], "Q4_K", "m-Q4_K.gguf"),
        (["m-Q4_0.gguf", "m-Q4_0_4_4.gguf"], "Q4_0", "m-Q4_0.gguf"),
        (["m-IQ4_XS.gguf", "m-Q8_0.gguf"], "IQ4_XS", "m-IQ4_XS.gguf"),
        (["Q8_0/m.gguf", "Q4_0/m.gguf"], "Q8_0", "Q8_0/m.gguf"),
        (["m-Q4_K_M.gguf", "mmproj-f16.gguf"], "mmproj-f16.gguf", "mmproj-f16.gguf"),
        (["m-q4_0.gguf", "m-q8_0.gguf"], "*q8_0.gguf", "m-q8_0.gguf"),
        (["m-q4_0.gguf", "sub/m-q8_0.gguf"], "*q8_?.gguf", "sub/m-q8_0.gguf"),
        (["m-q4_0.gguf", "m-q8_0.gguf"], "m-q8*", "m-q8_0.gguf"),
        (["m[1].gguf", "m1.gguf"], "m[1].gguf", "m[1].gguf"),
    ],
)
def test_choice(names: list[str], wanted: str | None, chosen: str) -> None:
    assert pick(names, wanted) == (chosen,)


@pytest.mark.parametrize("wanted", [None, "Q8_0", "m-Q8_0-00002-of-00003.gguf"])
def test_choice_of_a_split_model_is_all_parts(wanted: str | None) -> None:
    parts = [f"m-Q8_0-0000{i}-of-00003.gguf" for i in (3, 1, 2)]
    assert pick([*parts, "m-F16.gguf"], wanted) == tuple(sorted(parts))


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["model.safetensors"], None, "has no GGUF file"),
        (["mmproj-f16.gguf"], None, "has no GGUF file"),
        (["m-Q8_0.gguf"], "Q9", r"no GGUF with Q9 in its name.*m-Q8_0\.gguf"),
        (["m-Q4_K_M.gguf"], "Q4_K", "no GGUF with Q4_K in its name"),
        (["m-IQ4_XS.gguf"], "Q4_XS", "no GGUF with Q4_XS"),
        (["m-Q8_0.gguf"], "n.gguf", r"no file n\.gguf.*m-Q8_0\.gguf"),
        (["a.gguf", "b.gguf"], None, r"several files.*hf:owner/repo:a\.gguf.*a\.gguf, b\.gguf"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "several files"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "*.gguf", "several files"),
        (["a-Q8_0.gguf"], "*Q4*", r"no file \*Q4\*"),
        (["m-Q8_0-00001-of-00002.gguf"], None, "1 of the 2 parts"),
        ([f"{i:02}.gguf" for i in range(40)], None, "and 24 more"),
    ],
)
def test_choice_refuses(names: list[str], wanted: str | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        pick(names, wanted)


# --- paths -----------------------------------------------------------------------------------


def test_a_path_is_that_path(tmp_path: Path) -> None:
    file = tmp_path / "wörld model.gguf"
    file.touch()
    assert resolve_model(file) == resolve_model(str(file)) == file


def test_a_missing_path_says_so_and_hints_at_the_hub() -> None:
    with pytest.raises(ModelLoadError, match=r"no model file at \S*nope\.gguf; check the path$"):
        resolve_model("/nowhere/nope.gguf")
    with pytest.raises(ModelLoadError, match="write hf:owner/repo:Q8_0"):
        resolve_model("owner/repo:Q8_0")


def test_a_folder_lists_its_models(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="it holds no GGUF file"):
        resolve_model(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"name a GGUF file in it: a\.gguf"):
        resolve_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "path is empty"),
        ("models/Small.Q8.gguf", r"did you mean models[/\\]small\.q8_0\.gguf\?"),
        ("models/x.gguf", r"x\.gguf; check the path"),
        ("gone/x.gguf", "check the path"),
        ("x" * 5000, "cannot read 'x{100}"),
        ("https://huggingface.co/o/r/resolve/main/a/b.gguf", r"write hf:o/r:a/b\.gguf$"),
        ("https://hf.co/o/r/blob/v1/b.gguf?download=1", r"write hf:o/r@v1:b\.gguf$"),
        ("huggingface.co/o/r", "write hf:o/r$"),
        ("HF:o/r:Q8_0", "write hf:o/r:Q8_0$"),
        ("https://example.com/a.gguf", "download the file"),
    ],
)
def test_a_wrong_path_says_what_was_meant(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models", "small.q8_0.gguf").touch()
    with pytest.raises(ModelLoadError, match=says):
        resolve_model(name)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to("gone.gguf")
    with pytest.raises(ModelLoadError, match=r"link\.gguf is a link to a model file .* gone\.gguf"):
        resolve_model(tmp_path / "link.gguf")


# --- the real client -------------------------------------------------------------------------


ASK = """
import json, sys
from llama_cffi.errors import LlamaError
from llama_cffi.hub import fetch_projector, resolve_model
try:
    options = json.loads(sys.argv[2])
    projector = options.pop("projector", False)
    path = resolve_model(sys.argv[1], **options)
    print(json.dumps({"path": str(fetch_projector(path) if projector else path)}))
except LlamaError as error:
    print(json.dumps({"type": type(error).__name__, "message": str(error)}))
"""


class Asker:
    """Runs `resolve_model` in a process of its own: the client reads its settings on import."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.stderr = ""

    def __call__(
        self, spec: str, where: dict[str, str | bool] | None = None, **env: str
    ) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        clean |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", ASK, spec, json.dumps(where or {})],
            env={**clean, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        answer: dict[str, str] = json.loads(done.stdout)
        return answer


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path / "hf")


FILES = {
    "README.md": b"hello",
    "m-Q4_K_M.gguf": b"GGUF four",
    "m-Q8_0-00001-of-00002.gguf": b"GGUF eight, 1",
    "m-Q8_0-00002-of-00002.gguf": b"GGUF eight, 2",
    "mmproj-m-F16.gguf": b"GGUF eyes",
}


def test_download_then_cache(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    path = Path(ask("hf:owner/repo")["path"])
    assert path.name == "m-Q4_K_M.gguf"
    assert path.read_bytes() == b"GGUF four"
    assert path.is_relative_to(ask.home)
    assert sum("cdn" in line for line in hub.asked) == 1

    # The second time only asks whether it is still the same, and offline nothing is asked.
    assert ask("hf:owner/repo:q4_k_m") == {"path": str(path)}
    assert sum("cdn" in line for line in hub.asked) == 1
    hub.asked.clear()
    assert ask("hf:owner/repo", HF_HUB_OFFLINE="1") == {"path": str(path)}
    assert not hub.asked


def test_split_model_comes_whole(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    first = Path(ask("hf:owner/repo:Q8_0")["path"])
    assert first.name == "m-Q8_0-00001-of-00002.gguf"
    assert (first.parent / "m-Q8_0-00002-of-00002.gguf").read_bytes() == b"GGUF eight, 2"
    assert ask("hf:owner/repo:Q8_0", HF_HUB_OFFLINE="1") == {"path": str(first)}
    missing = ask("hf:owner/repo:Q4_K_M", HF_HUB_OFFLINE="1")
    assert missing["type"] == "FetchError"
    assert re.search("in the cache .* no GGUF with Q4_K_M .*HF_HUB_OFFLINE", missing["message"])


def test_folders_of_ones_own(hub: Hub, ask: Asker, tmp_path: Path) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    spec, cache = "hf:owner/repo:*Q4_K_M.gguf", {"cache_dir": str(tmp_path / "cache")}
    path = Path(ask(spec, cache)["path"])
    assert path.is_relative_to(tmp_path / "cache")
    assert ask(spec, cache, HF_HUB_OFFLINE="1") == {"path": str(path)}
    local = ask(spec, {"local_dir": str(tmp_path / "here")})
    assert local == {"path": str(tmp_path / "here" / "m-Q4_K_M.gguf")}
    assert Path(local["path"]).read_bytes() == b"GGUF four"


def test_revision(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES, "old": {"older.gguf": b"GGUF old"}}
    path = Path(ask("hf:owner/repo@old")["path"])
    assert path.read_bytes() == b"GGUF old"
    assert ask("hf:owner/repo@old", HF_HUB_OFFLINE="1") == {"path": str(path)}
    wrong = ask("hf:owner/repo@never")
    assert wrong == {"type": "ValidationError", "message": "owner/repo has no revision 'never'"}


def test_what_is_not_there(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    no_repo = ask("hf:owner/other")
    assert no_repo["type"] == "FetchError"
    assert re.search("no repository owner/other, or it is private.*HF_TOKEN", no_repo["message"])
    no_quant = ask("hf:owner/repo:Q2_K")
    assert no_quant["type"] == "ValidationError"
    assert "m-Q4_K_M.gguf, m-Q8_0-00001-of-00002.gguf" in no_quant["message"]
    bad_name = ask("hf:owner/re--po")
    assert bad_name["type"] == "ValidationError"
    assert not any("cdn" in line for line in hub.asked)


def test_gated(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    hub.gated.add("owner/repo")
    answer = ask("hf:owner/repo")
    assert answer["type"] == "FetchError"
    assert re.search("owner/repo is gated: accept its terms.*HF_TOKEN", answer["message"])


def test_wrong_token(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    answer = ask("hf:owner/repo", HF_TOKEN="hf_wrong")
    assert answer["type"] == "FetchError"
    assert re.search(r"refused owner/repo \(401\): check the token", answer["message"])


def test_hub_is_down(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    hub.status = 503
    answer = ask("hf:owner/repo")
    assert answer["type"] == "FetchError"
    assert re.search("not in the cache .* answered 503", answer["message"])
    hub.status = 0
    path = ask("hf:owner/repo")
    hub.status = 503
    assert ask("hf:owner/repo") == path, "the cache helps out"


def test_hub_does_not_answer(hub: Hub, ask: Asker) -> None:
    nobody = "http://127.0.0.1:9"
    answer = ask("hf:owner/repo", HF_ENDPOINT=nobody)
    assert answer["type"] == "FetchError"
    assert re.search(f"not in the cache .*{nobody} cannot be reached", answer["message"])
    assert answer["message"].endswith("or give the path of a GGUF file that is here")
    offline = ask("hf:owner/repo", HF_HUB_OFFLINE="1")
    assert re.search("not in the cache .*HF_HUB_OFFLINE is set", offline["message"])
    offline = ask("hf:owner/repo", LLAMA_CFFI_OFFLINE="1")
    assert re.search("not in the cache .*LLAMA_CFFI_OFFLINE is set; unset it", offline["message"])
    assert not hub.asked


@pytest.mark.skipif(os.name == "nt", reason="needs a file in place of a folder to fail alike")
def test_cache_cannot_be_written(hub: Hub, ask: Asker, tmp_path: Path) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    (tmp_path / "file").touch()
    answer = ask("hf:owner/repo", HF_HUB_CACHE=str(tmp_path / "file" / "cache"))
    assert answer["type"] == "FetchError"
    assert re.search(
        "cannot write the hub's cache.*Not a directory.*HF_HUB_CACHE", answer["message"]
    )


# --- projectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "model", "projector"),
    [
        (["gemma-3-4b-it-Q4_K_M.gguf", "mmproj-F16.gguf"], 0, "mmproj-F16.gguf"),
        (["m-Q4_K_M.gguf", "mmproj-model-f16.gguf"], 0, "mmproj-model-f16.gguf"),
        (
            ["m.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"],
            0,
            "mmproj-F16.gguf",
        ),
        (["m-Q8_0.gguf", "m-mmproj.gguf", "n-Q8_0.gguf", "mmproj-n.gguf"], 0, "m-mmproj.gguf"),
        (["m-Q8_0.gguf", "m-mmproj.gguf", "n-Q8_0.gguf", "mmproj-n.gguf"], 2, "mmproj-n.gguf"),
        (["Q4-00001-of-00002.gguf", "Q4-00002-of-00002.gguf", "mmproj.gguf"], 0, "mmproj.gguf"),
        (["a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-other.gguf"], 1, "mmproj-other.gguf"),
        (["a.gguf", "b.gguf", "b-mmproj.gguf"], 0, None),  # it belongs to b
        (["a.gguf", "ammproj.gguf"], 0, None),
        (["a.gguf"], 0, None),
    ],
)
def test_the_projector_beside_a_model(
    tmp_path: Path, names: list[str], model: int, projector: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = find_projector(tmp_path / names[model])
    assert found == (None if projector is None else tmp_path / projector)


def test_several_projectors(tmp_path: Path) -> None:
    for name in ("m.gguf", "mmproj-m-v1.gguf", "mmproj-m-v2.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValidationError, match=r"several projectors: mmproj-m-v1\.gguf, mmproj"):
        find_projector(tmp_path / "m.gguf")


def test_the_projector_in_the_repository(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES, COMMIT: FILES}
    model = Path(ask("hf:owner/repo")["path"])
    assert sum("cdn" in line for line in hub.asked) == 1
    projector = Path(ask("hf:owner/repo", {"projector": True})["path"])
    assert projector == model.parent / "mmproj-m-F16.gguf"
    assert projector.read_bytes() == b"GGUF eyes"
    hub.asked.clear()
    assert ask("hf:owner/repo", {"projector": True}, HF_HUB_OFFLINE="1") == {"path": str(projector)}
    assert not hub.asked


def test_no_projector_offline(hub: Hub, ask: Asker) -> None:
    hub.repos["owner/repo"] = {"main": FILES}
    ask("hf:owner/repo")
    hub.asked.clear()
    for offline in ("HF_HUB_OFFLINE", "LLAMA_CFFI_OFFLINE"):
        assert ask("hf:owner/repo", {"projector": True}, **{offline: "1"}) == {"path": "None"}
    assert not hub.asked


# --- ranges ------------------------------------------------------------------------------------


def test_a_range_is_asked_for_again_after_a_passing_failure(hub: Hub) -> None:
    data = bytes(range(256)) * 8
    hub.repos["owner/repo"] = {"main": {"x.gguf": data}}
    place = f"{hub.url}/cdn/{hashlib.sha256(data).hexdigest()}"
    file = RemoteFile("x.gguf", len(data), "", place, "hf_secret")
    hub.failures += [503, 429]
    assert file.read(5, 300) == data[5:300]
    assert len(hub.asked) == 3
    assert hub.tokens == ["Bearer hf_secret"]
    assert "hf_secret" not in repr(file)
    hub.failures += [403]
    with pytest.raises(FetchError, match="answered 403 for"):
        file.read(0, 5)
    hub.failures += [503] * 4
    with pytest.raises(FetchError, match="answered 503 for"):
        file.read(0, 5)
    with pytest.raises(FetchError, match="does not send parts of files"):
        RemoteFile("x.gguf", len(data) + 1, "", place, None).read(0, 5)
