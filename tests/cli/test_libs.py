from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.cli import libs
from llama_cffi.errors import LibraryNotFoundError, ValidationError
from llama_cffi.libs_fetch import machine, npm


def package(tag: str) -> bytes:
    """Pack a package whose library is an empty file of the right format."""
    folder = "package/bins/linux-x64"
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0\x01\0\0\0" + bytes(40)
    facts = json.dumps({"buildOptions": {"llamaCpp": {"release": tag}}}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, body in {
            f"{folder}/libllama.{tag}.so": elf,
            f"{folder}/_nlcBuildMetadata.json": facts,
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve three builds as an npm registry to a Linux x64 machine with an empty cache."""
    tarballs = {
        "3.19.1": package("b10068"),
        "3.20.0": package("b10361"),
        "3.21.1": package("v0.4.0"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("-")[2].removesuffix(".tgz")
            body = tarballs.get(name) or json.dumps(document).encode()
            if "vulkan" in self.path or "cuda" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    document: dict[str, Any] = {"dist-tags": {"latest": "3.21.1"}, "versions": {}}
    for version, body in tarballs.items():
        digest = base64.b64encode(hashlib.sha512(body).digest()).decode()
        document["versions"][version] = {
            "dist": {"tarball": f"{url}/x-{version}.tgz", "integrity": f"sha512-{digest}"}
        }
    monkeypatch.setattr(machine, "os_name", lambda: "linux")
    monkeypatch.setattr(machine, "arch_name", lambda: "x64")
    monkeypatch.setattr(machine, "glibc", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(machine, "_cuda_driver", lambda: (None, "no NVIDIA driver"))
    monkeypatch.setattr(machine, "_vulkan_loader", lambda: "no Vulkan loader")
    for name in ("LIB", "BUILD", "BACKEND", "OFFLINE"):
        monkeypatch.delenv(f"LLAMA_CFFI_{name}", raising=False)
    monkeypatch.setenv("LLAMA_CFFI_CACHE", str(tmp_path))
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    npm._document.cache_clear()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()
    npm._document.cache_clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `llama-cffi libs …` and return what it printed."""

    def call(*arguments: str, status: int = 0) -> str:
        parser = argparse.ArgumentParser()
        libs.add_parser(parser.add_subparsers())
        args = parser.parse_args(["libs", *arguments])
        assert args.func is libs.run
        assert args.func(args) == status
        return capsys.readouterr().out

    return call


@pytest.mark.usefixtures("store")
def test_from_nothing_to_a_chosen_build_and_back(run: Callable[..., str]) -> None:
    assert "No builds here yet" in run("list")
    assert run("fetch", "b10361", "-q").startswith("fetched npm:3.20.0 (cpu, llama.cpp b10361)\n")
    assert run("use", "npm:3.20.0", "-q").startswith("using npm:3.20.0")
    assert run("use", "npm:3.19.1", "-q").startswith("using npm:3.19.1")
    table = run("list").splitlines()
    assert table[0].split() == ["BUILD", "VARIANT", "LLAMA.CPP", "SIZE", "FETCHED", "PICTURES"]
    assert table[1].split()[:3] == ["npm:3.20.0", "cpu", "b10361"]
    assert table[2].split()[:4] == ["*", "npm:3.19.1", "cpu", "b10068"]
    assert run("path").strip().endswith("libllama.b10068.so")
    assert run("path", "npm:3.20.0", "-q").strip().endswith("libllama.b10361.so")
    assert run("rollback", "-q").startswith("back to npm:3.20.0")
    assert run("remove", "npm:3.19.1") == "removed npm:3.19.1 (cpu)\n"
    assert "npm:3.19.1" not in run("list")


@pytest.mark.usefixtures("store")
def test_every_command_prints_json(run: Callable[..., str], store: Path) -> None:
    empty = json.loads(run("list", "--json"))
    assert empty == {"cache": str(store), "in_use": None, "builds": []}
    fetched = json.loads(run("fetch", "npm:3.20.0", "--json"))
    assert (fetched["spec"], fetched["variant"], fetched["tag"]) == ("npm:3.20.0", "cpu", "b10361")
    assert json.loads(run("use", "npm:3.20.0", "--json"))["library"] == fetched["library"]
    assert json.loads(run("use", "npm:3.19.1", "--json"))["tag"] == "b10068"
    assert json.loads(run("path", "--json"))["spec"] == "npm:3.19.1"
    assert json.loads(run("rollback", "--json"))["spec"] == "npm:3.20.0"
    listed = json.loads(run("list", "--json"))
    assert listed["in_use"]["spec"] == "npm:3.20.0"
    assert [b["spec"] for b in listed["builds"]] == ["npm:3.20.0", "npm:3.19.1"]
    assert listed["builds"][0]["size_bytes"] > 0
    assert [b["problems"] for b in json.loads(run("verify", "--json"))["builds"]] == [[], []]
    assert [b["spec"] for b in json.loads(run("remove", "npm:3.19.1", "--json"))["removed"]] == [
        "npm:3.19.1"
    ]
    assert json.loads(run("prune", "--json")) == {"removed": [], "freed_bytes": 0}
    remote = json.loads(run("list", "--remote", "--json"))
    assert remote["source"] == "npm"
    assert remote["builds"] == [
        {"spec": "npm:3.21.1", "tag": "v0.4.0", "installed": False},
        {"spec": "npm:3.20.0", "tag": "b10361", "installed": True},
        {"spec": "npm:3.19.1", "tag": "b10068", "installed": False},
    ]


@pytest.mark.usefixtures("store")
def test_the_remote_list_marks_what_is_here(run: Callable[..., str]) -> None:
    run("fetch", "npm:latest", "-q")
    lines = run("list", "--remote").splitlines()
    assert lines[1].split() == ["+", "npm:3.21.1", "v0.4.0"]
    assert lines[2].split() == ["npm:3.20.0", "b10361"]


@pytest.mark.usefixtures("store")
def test_verify_names_the_damage_and_the_repair(run: Callable[..., str]) -> None:
    assert run("verify") == "No builds here yet; nothing to verify.\n"
    library = Path(json.loads(run("fetch", "npm:3.20.0", "--json"))["library"])
    assert run("verify", "npm:3.20.0") == "npm:3.20.0 (cpu): ok\n"
    body = library.read_bytes()
    library.write_bytes(body[:-1] + b"x")
    said = run("verify", status=1)
    assert "npm:3.20.0 (cpu): DAMAGED" in said
    assert str(library) in said
    assert "`llama-cffi libs fetch npm:3.20.0 --backend cpu --force` to replace it" in said
    run("fetch", "npm:3.20.0", "--backend", "cpu", "--force", "-q")
    assert library.read_bytes() == body
    assert run("verify") == "npm:3.20.0 (cpu): ok\n"


@pytest.mark.usefixtures("store")
def test_prune_lists_what_it_removed(run: Callable[..., str]) -> None:
    run("fetch", "npm:3.20.0", "-q")
    run("fetch", "npm:3.19.1", "-q")
    run("use", "npm:3.19.1", "-q")
    assert run("prune") == "0.0 MB freed\n"
    assert run("prune", "--keep", "0").startswith("removed npm:3.20.0 (cpu)\n")
    assert "npm:3.19.1" in run("list")


@pytest.mark.usefixtures("store")
def test_errors_are_left_to_the_caller(run: Callable[..., str]) -> None:
    with pytest.raises(LibraryNotFoundError):
        run("remove", "npm:9.9.9")
    with pytest.raises(ValidationError):
        run("use", "nonsense")


def test_a_subcommand_is_required(
    run: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run()
    assert "COMMAND" in capsys.readouterr().err
