"""The picture model of the package: what the files promise, and held-out pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_cffi import Llama
from llama_cffi.demo import model_path, picture_model_path, picture_projector_path

ROOT = Path(__file__).resolve().parents[2]
# tools/ is not part of the package. Last, so that the installed package stays before the checkout.
sys.path.append(str(ROOT))

from tools.train_demo import split  # noqa: E402
from tools.train_demo.pictures import evaluate, questions, sample, scenes  # noqa: E402

MOST_BYTES = 5_500_000  # both files; the wheel has to stay below 8 MB
PER_KIND = 12
SAMPLE = ROOT / "docs" / "images" / "shapes.png"


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(picture_model_path(), n_ctx=512, n_threads=1, n_gpu_layers=0) as opened:
        yield opened


def test_files_are_small() -> None:
    sizes = [path().stat().st_size for path in (picture_model_path, picture_projector_path)]
    assert sum(sizes) <= MOST_BYTES


def test_vocabulary_and_template_are_those_of_the_demo_model() -> None:
    demo, pictures = (gguf.GGUFReader(path) for path in (model_path(), picture_model_path()))
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        ours, theirs = pictures.get_field(key), demo.get_field(key)
        assert ours is not None
        assert theirs is not None
        assert ours.contents() == theirs.contents()


def test_the_projector_is_found_beside_the_model_and_not_beside_the_demo_model(llm: Llama) -> None:
    assert llm.modalities == ("text", "image")
    with Llama(model_path(), n_ctx=64, n_threads=1, n_gpu_layers=0) as demo:
        assert demo.modalities == ("text",)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_held_out_pictures(llm: Llama, kind: str) -> None:
    asked = list(evaluate.questions(kind, PER_KIND, seed=23))
    right = [evaluate.answer(llm, picture, q.text) == q.answer for picture, q in asked]
    assert sum(right) >= 0.75 * PER_KIND  # evaluate.py asks enough to measure 95 %


def test_what_is_asked_is_held_out() -> None:
    import random

    rng = random.Random(1)
    drawn = [scenes.draw_scene(rng, heldout) for heldout in (True, False) for _ in range(20)]
    assert [split.is_heldout(scene.key) for scene in drawn] == [True] * 20 + [False] * 20


def test_sample_picture(llm: Llama) -> None:
    from PIL import Image

    pixels = np.asarray(Image.open(SAMPLE).convert("RGB"))
    assert pixels.shape == (240, 320, 3)
    assert split.is_heldout(sample.SAMPLE.key)
    assert evaluate.answer(llm, pixels, "What is left of the red circle?") == "The blue square."
    assert evaluate.answer(llm, pixels, "How many shapes are there?") == "3"


@pytest.mark.parametrize(("width", "height"), [(200, 150), (150, 200), (64, 64), (640, 480)])
def test_a_picture_drawn_with_pillow(llm: Llama, width: int, height: int) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), "white")
    r = min(width, height) * 0.15
    x, y = width * 0.75, height * 0.5
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), "red")
    x = width * 0.25
    ImageDraw.Draw(image).rectangle((x - r, y - r, x + r, y + r), "blue")
    said = evaluate.answer(llm, np.asarray(image), "What is left of the red circle?")
    assert said == "The blue square."
