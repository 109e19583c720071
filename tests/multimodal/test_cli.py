"""`chat` and `generate` with pictures and sounds; `doctor` and `plan`."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path

import pytest
from multimodal.conftest import Files, picture, sound
from PIL import Image
from support.command_line import PROGRAM, Runner

ASK = ("-c", 1024, "-t", 1, "--temp", 0, "-n", 6)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(capsys, monkeypatch)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{name}.png" for name in ("cat", "dog")]
    for i, path in enumerate(found):
        Image.fromarray(picture(i, 30, 20)).save(path)
    return found


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound(1) * 30_000).astype("<i2").tobytes())
    return path


@pytest.fixture
def lonely(files: dict[str, Files], tmp_path: Path) -> Path:
    """A model without a projector beside it."""
    path = tmp_path / "alone" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(files["janus_pro"].model.read_bytes())
    return path


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_picture_changes_the_answer(
    command: str, run: Runner, files: dict[str, Files], pictures: list[Path]
) -> None:
    def answer(*more: object) -> str:
        return run.text(command, "-m", files["janus_pro"].model, *ASK, *more, "-p", "what?")

    cat, dog = (answer("--image", path) for path in pictures)
    both = answer("--image", pictures[0], "--image", pictures[1])
    assert len({cat, dog, both, answer()}) == 4
    assert cat == answer("--image", pictures[0], "--mmproj", files["janus_pro"].mmproj)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_sound_changes_the_answer(
    command: str, run: Runner, files: dict[str, Files], talk: Path
) -> None:
    args = (command, "-m", files["qwen2a"].model, *ASK, "-p", "what?")
    assert run.text(*args) != run.text(*args, "--audio", talk)


def test_tokens_of_a_picture_are_counted(
    run: Runner, files: dict[str, Files], pictures: list[Path]
) -> None:
    args = ("generate", "-m", files["qwen2vl_merger"].model, *ASK, "what?")
    more = run.json(*args, "--image", pictures[0])["prompt_tokens"]
    assert more == run.json(*args)["prompt_tokens"] + 12 + 2  # and <|vision_start|>, _end


def test_a_session_keeps_a_reference(
    run: Runner, files: dict[str, Files], pictures: list[Path], lonely: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    args = ("chat", "-m", files["janus_pro"].model, *ASK, "--session", file)
    run.text(*args, "--image", pictures[0], "what?")
    asked, _ = json.loads(file.read_text())["messages"]
    assert asked["content"] == "what?"
    (kept,) = asked["media"]
    assert (kept["type"], kept["source"], len(kept["sha256"])) == ("image", str(pictures[0]), 64)
    assert run.text(*args, "and?")
    assert "no projector beside it" in run.error("chat", "-m", lonely, "--session", file, "and?")
    pictures[0].write_bytes(pictures[1].read_bytes())
    assert "cat.png of this conversation has changed" in run.error(*args, "and?")
    pictures[0].unlink()
    assert "cat.png of this conversation is gone" in run.error(*args, "and?")


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_what_does_not_work_is_one_sentence(
    command: str, run: Runner, files: dict[str, Files], lonely: Path, pictures: list[Path],
    talk: Path,
) -> None:  # fmt: skip
    def error(*args: object, model: Path = files["janus_pro"].model) -> str:
        return run.error(command, "-m", model, *ASK, *args, "-p", "what?")

    text = "model.gguf gets text only: there is no projector beside it; give one with --mmproj FILE"
    assert error("--image", pictures[0], model=lonely) == text
    assert error("--audio", talk) == "model.gguf with mmproj.gguf takes no sounds"
    sounds = files["qwen2a"].model
    assert error("--image", pictures[0], model=sounds).endswith("mmproj.gguf takes no pictures")
    assert "is no PNG, JPEG, WEBP, GIF or BMP picture" in error("--image", talk)
    assert "there is no file" in error("--image", "nowhere.png")
    assert "WAV is read" in error("--audio", pictures[0])
    assert "model.gguf" in error("--image", pictures[0], "--mmproj", lonely)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_without_a_model_it_is_the_demo_of_pictures(command: str, run: Runner) -> None:
    shapes = Path(__file__).parents[2] / "docs" / "images" / "shapes.png"
    question = "What is left of the red circle?"
    assert run.text(command, "--temp", 0, "--image", shapes, question) == "The blue square.\n"


def test_doctor_and_libs_say_that_pictures_work(run: Runner) -> None:
    checks = {check["name"]: check for check in run.json("doctor")["checks"]}
    assert checks["pictures"]["detail"] == (
        "pictures and sounds work with a model that has a projector"
    )
    assert run.json("libs", "list")["in_use"]["pictures"]


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_conversation_with_pictures(
    files: dict[str, Files], pictures: list[Path], talk: Path, tmp_path: Path
) -> None:
    from support.terminal import Terminal

    file = tmp_path / "talk.json"
    command = [PROGRAM, "chat", "-m", files["janus_pro"].model, *ASK, "--no-history"]
    state = {"XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1"}
    with Terminal([*map(str, command), "--image", str(pictures[0])], **state) as terminal:
        terminal.expect("[picture cat.png 30x20] goes with the next message")
        terminal.expect("> ")
        shown = terminal.ask(f"/image {pictures[1]}")
        assert shown == "[picture dog.png 30x20] goes with the next message"
        terminal.ask("what?")
        terminal.ask("and?")
        assert "takes no sounds" in terminal.ask(f"/audio {talk}")
        assert "there is no file" in terminal.ask("/image nowhere.png")
        assert "/image needs a file, such as /image cat.png" in terminal.ask("/image")
        terminal.ask("/regen")
        assert terminal.ask(f"/save {file}") == ""
        shown = terminal.ask(f"/load {file}")
        assert "messages with [picture cat.png 30x20] [picture dog.png 30x20]; the las" in shown
        pictures[0].unlink()
        assert "cat.png of this conversation is gone" in terminal.ask(f"/load {file}")
        terminal.send("/exit\n")
        assert terminal.end()[0] == 0
    media = [len(m.get("media", ())) for m in json.loads(file.read_text())["messages"]]
    assert media[:2] == [2, 0]
