"""Pictures and sounds in views: small copies, or names; nothing is read."""

from __future__ import annotations

import base64
import io
import re
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from IPython.core.error import UsageError
from support.notebooks import Shell

from llama_cffi.media import Audio, Image
from llama_cffi.notebook import show

PIXELS = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
TONE = np.sin(np.arange(8000) / 5).astype(np.float32)
IMG = re.compile(r'<img src="data:image/(\w+);base64,([\w+/=]+)" alt="\[picture (\d+x\d+)\]"')


def html(*parts: Any) -> str:
    return str(show([{"role": "user", "content": [*parts]}])._repr_html_())


def text(*parts: Any) -> str:
    return repr(show([{"role": "user", "content": [*parts]}]))


def url_of(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "part",
    [
        Image(PIXELS),
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": PIL.Image.fromarray(PIXELS)},
        {"type": "image_url", "image_url": {"url": url_of(PIXELS)}},
    ],
    ids=["Image", "array", "Pillow", "data URL"],
)
def test_a_picture_is_a_small_copy(part: Any) -> None:
    found = html("What is this?", part, {"type": "text", "text": "<Tell> me"})
    form, data, size = IMG.findall(found)[0]
    small = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert (form, size, small.size) == ("jpeg", "640x480", (256, 192))
    assert len(found) < 100_000
    assert ">What is this?<" in found
    assert "&lt;Tell&gt; me" in found
    assert text("What is this?", part) == "user: What is this?[picture 640x480]"


def test_one_colour_is_a_png() -> None:
    assert IMG.findall(html(Image(np.zeros((20, 30, 3), np.uint8))))[0][0] == "png"


def test_a_sound_can_be_heard(tmp_path: Path) -> None:
    found = html(Audio(TONE, 16_000))
    data = re.findall(r'<audio controls src="data:audio/wav;base64,([\w+/=]+)"', found)[0]
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 8000)
    long = Audio(np.zeros(600_000, np.float32), 16_000)
    assert "<audio" not in html(long)
    assert "[sound 37.5 s]" in html(long)
    assert text(long) == "user: [sound 37.5 s]"


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ({"type": "image_url", "image_url": {"url": "https://a.b/<c>.png?token=x"}},
         "[picture https://a.b/<c>.png]"),
        ({"type": "image", "image": "/home/me/cat.png"}, "[picture cat.png]"),
        ({"type": "image", "image": Path("/home/me/cat.png")}, "[picture cat.png]"),
        ({"type": "audio", "audio": Path("talk.wav")}, "[sound talk.wav]"),
        ({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, "[picture]"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "[sound]"),
        ({"type": "image_url"}, "[picture]"),
        ({"type": "file", "file": {}}, "[file]"),
    ],
)  # fmt: skip
def test_what_is_elsewhere_is_named_and_not_read(part: Any, shown: str) -> None:
    assert text(part) == f"user: {shown}"
    assert shown.replace("<", "&lt;").replace(">", "&gt;") in html(part)


def test_without_pillow_a_picture_is_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "<img" not in html(Image(PIXELS))
    assert "[picture 640x480]" in html(Image(PIXELS))


def test_pictures_and_sounds_show_themselves() -> None:
    assert "<img " in str(Image(PIXELS)._repr_html_())
    assert "<audio " in str(Audio(TONE, 16_000)._repr_html_())


def test_a_cell_takes_variables_and_files(shell: Shell, tmp_path: Path) -> None:
    """Answers are in tests/multimodal."""
    path = tmp_path / "cat.png"
    PIL.Image.fromarray(PIXELS).save(path)
    shell.variables.update(cat=PIXELS, dog=path, number=5)
    for name in ("cat", "dog", f"'{path}'"):
        with pytest.raises(UsageError, match="gets text only: there is no projector"):
            shell.run(f"%%llama --image {name}\nWhat is this?")
    with pytest.raises(UsageError, match="there is no file 'bird'"):
        shell.run("%%llama --image bird\nWhat is this?")
    with pytest.raises(UsageError, match="number must be"):
        shell.run("%%llama --image number\nWhat is this?")
