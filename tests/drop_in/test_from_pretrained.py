"""Models from the hub, with llama-cpp-python's arguments."""

from __future__ import annotations

import os
from pathlib import Path

from support.children import Child
from support.hub_server import Hub

from llama_cffi.demo import model_path


def test_from_pretrained(hub: Hub, child: Child, tmp_path: Path) -> None:
    model = model_path().read_bytes()
    hub.repos["owner/repo"] = {
        "main": {"m-q4_0.gguf": b"GGUF four", "m-q8_0.gguf": model, "mmproj-m.gguf": b"GGUF eyes"}
    }
    clean = {name: "" for name in os.environ if name.startswith(("HF_", "HUGGING"))}
    result = child(
        """
        import sys
        from pathlib import Path
        from llama_cffi import ValidationError
        from llama_cffi.llama_cpp import Llama
        here = Path(sys.argv[1])
        with Llama.from_pretrained("owner/repo", "*q8_0.gguf", n_ctx=64, verbose=False) as llm:
            assert Path(llm.model_path).is_relative_to(here / "home"), llm.model_path
            assert llm.n_ctx() == llm.context_params.n_ctx >= 64
        with Llama.from_pretrained(
            "owner/repo", filename="m-q8_0.gguf", additional_files=["mmproj*.gguf"],
            local_dir=here / "local", local_dir_use_symlinks=False, n_ctx=64,
        ) as llm:
            assert llm.model_path == str(here / "local" / "m-q8_0.gguf")
        assert (here / "local" / "mmproj-m.gguf").read_bytes() == b"GGUF eyes"
        with Llama.from_pretrained("owner/repo", "*q8*", cache_dir=here / "cache", n_ctx=64) as llm:
            assert Path(llm.model_path).is_relative_to(here / "cache")
        for pattern, message in (("*.gguf", "several files"), ("*q2*", "no file *q2*")):
            try:
                Llama.from_pretrained("owner/repo", pattern)
            except ValidationError as error:
                assert message in str(error), error
            else:
                raise AssertionError(pattern)
        """,
        tmp_path,
        **{
            **clean,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
