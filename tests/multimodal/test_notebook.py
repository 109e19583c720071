"""`%%llama --image`, and the conversation that it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from multimodal.conftest import Files, picture, sound
from support.notebooks import Shell

from llama_cffi.media import Audio
from llama_cffi.notebook import show


@pytest.fixture(scope="module")
def shell(
    files: dict[str, Files], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shell]:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        found = Shell()
        found.run("%load_ext llama_cffi")
        yield found
        found.variables["llm"].close()
        found.close()


def test_pictures_of_variables_go_into_the_conversation(
    shell: Shell, files: dict[str, Files]
) -> None:
    shell.run(f"%llama '{files['janus_pro'].model}' -c 512 -t 1 --temp 0 -n 4")
    shell.variables.update(cat=picture(1, 30, 20), dog=picture(2, 30, 20))
    for name in ("cat", "dog"):
        shell.run(f"%%llama --image {name} --as {name}_answer --messages talk\nwhat?")
        shell.run("%%llama --messages talk\nand?")
    first, second = (shell.variables[f"{name}_answer"] for name in ("cat", "dog"))
    assert first["choices"][0]["message"] != second["choices"][0]["message"]
    talk = shell.variables["talk"]
    assert [type(m["content"]).__name__ for m in talk] == ["list", "str", "str", "str"] * 2
    found = show(talk)
    assert str(found._repr_html_()).count("<img ") == 2
    assert repr(found).count("[picture 30x20]what?") == 2


def test_sounds(shell: Shell, files: dict[str, Files]) -> None:
    shell.run(f"%llama '{files['both'].model}' --mmproj '{files['both'].mmproj}' -c 1024 -t 1 -n 2")
    shell.variables["talk"] = Audio(sound(1), 16_000)
    shell.run("%%llama --audio talk --as answer\nwhat?")
    assert shell.variables["answer"]["usage"]["prompt_tokens"] > 750
