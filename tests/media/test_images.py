from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.children import Child

from llama_cffi import ValidationError
from llama_cffi.media import Image, MediaPolicy, load_image, sources
from llama_cffi.media.headers import FORMATS, format_of, size_of


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def drawn(width: int = 6, height: int = 4) -> Pillow.Image:
    """A picture whose corners tell how it is turned."""
    picture = Pillow.new("RGB", (width, height), (0, 0, 255))
    picture.putpixel((0, 0), (255, 0, 0))
    return picture


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    data = encoded(drawn(64, 48), kind)
    image = load_image(data)
    assert (image.width, image.height) == (64, 48)
    assert image.pixels.dtype == np.uint8
    assert abs(image.pixels[40, 40].astype(int) - [0, 0, 255]).max() < 8


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.booleans(),
)
def test_the_size_in_the_header(kind: str, width: int, height: int, other: bool) -> None:
    options: dict[str, Any] = {
        "JPEG": {"progressive": other, "comment": b"\xff\xc0" * 9},
        "WEBP": {"lossless": other},
    }.get(kind, {})
    mode = "RGBA" if kind in ("PNG", "WEBP") and other else "RGB"
    data = encoded(Pillow.new(mode, (width, height)), kind, **options)
    assert (format_of(data), size_of(data)) == (kind, (width, height))


@given(st.binary(max_size=64), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"]))
def test_headers_of_nonsense(data: bytes, magic: bytes) -> None:
    assert size_of(data) is None or format_of(data) is not None
    size_of(magic + data)


def test_sources(tmp_path: Path) -> None:
    data = encoded(drawn(40, 30))
    path = tmp_path / "ein bild.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    expected = load_image(data)
    with path.open("rb") as file:
        for source in (
            bytearray(data),
            memoryview(data),
            path,
            str(path),
            path.as_uri(),
            file,
            text,
            text.replace("+", "-").replace("/", "_").rstrip("="),
            f"data:image/png;base64,{text}",
            f"data:image/png;name=x;base64,{text}",
            drawn(40, 30),
            expected.pixels,
            expected,
        ):
            image = load_image(source)
            assert image.digest == expected.digest
    assert load_image(encoded(drawn(30, 40))).digest != expected.digest
    assert repr(expected) == "<Image 40x30>"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = drawn(6, 4)
    turns = {
        1: None, 2: Pillow.Transpose.FLIP_LEFT_RIGHT, 3: Pillow.Transpose.ROTATE_180,
        4: Pillow.Transpose.FLIP_TOP_BOTTOM, 5: Pillow.Transpose.TRANSPOSE,
        6: Pillow.Transpose.ROTATE_90, 7: Pillow.Transpose.TRANSVERSE,
        8: Pillow.Transpose.ROTATE_270,
    }  # fmt: skip
    turn = turns[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(image.pixels, np.array(upright))


def test_modes_become_rgb() -> None:
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert np.array_equal(load_image(encoded(Pillow.new("L", (1, 1), 128))).pixels[0, 0], [128] * 3)
    assert np.array_equal(load_image(encoded(Pillow.new("1", (1, 1), 1))).pixels[0, 0], [255] * 3)
    clear = Pillow.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    image = load_image(encoded(clear))
    assert np.array_equal(image.pixels[:, :1], red)
    assert np.array_equal(image.pixels[0, 1], [255] * 3)  # on white
    palette = drawn().quantize(4)
    palette.info["transparency"] = palette.getpixel((5, 3))
    image = load_image(encoded(palette, "GIF", transparency=palette.getpixel((5, 3))))
    assert np.array_equal(image.pixels[3, 5], [255] * 3)
    wide = Pillow.fromarray(np.full((2, 2), 40_000, np.uint16))
    assert np.array_equal(load_image(encoded(wide)).pixels[0, 0], [156] * 3)
    cmyk = Pillow.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert load_image(encoded(cmyk, "JPEG")).pixels[4, 4, 0] > 200
    assert load_image(encoded(Pillow.new("LA", (1, 1), (10, 255)))).pixels[0, 0, 0] == 10


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert abs(load_image(data).pixels[4, 4].astype(int) - [255, 0, 0]).max() < 8


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bombs_are_refused_by_their_header() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValidationError, match=r"100000 x 100000 pixels; at most 40,000,000"):
            load_image(png(100_000, 100_000))
        with pytest.raises(ValidationError, match="70000 x 1 pixels"):
            load_image(png(70_000, 1))
        with pytest.raises(ValidationError, match="10000 x 10000 pixels"):
            load_image(png(10_000, 10_000, bytes(10_000)))
        with pytest.raises(ValidationError, match="6 x 4 pixels; at most 20"):
            load_image(encoded(drawn()), MediaPolicy(max_pixels=20))
        with pytest.raises(ValidationError, match="at most 20"):
            load_image(np.zeros((10, 10, 3), np.uint8), MediaPolicy(max_pixels=20))


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_pictures(kind: str) -> None:
    data = encoded(drawn(64, 48), kind)
    for n in (12, 30, len(data) // 2):
        if kind == "JPEG" and n == len(data) // 2:
            continue
        with pytest.raises(ValidationError, match="damaged or truncated"):
            load_image(data[:n])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Pillow.fromarray(noise), kind)
    with pytest.raises(ValidationError, match="damaged or truncated"):
        load_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "is empty: 0 bytes"),
        (b"%PDF-1.7 and so on", "is no PNG, JPEG, WEBP, GIF or BMP picture"),
        (b"II*\0" + bytes(40), "is no PNG"),  # TIFF
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no PNG"),
        ("nowhere.png", "there is no file 'nowhere.png'"),
        ("data:text/html;base64,PGI+", "is text/html, not a picture"),
        ("data:image/png,abc", "must be data:image/…;base64,… with base64"),
        ("data:image/png;base64,@@@@", "is not valid base64"),
        ("ftp://example.org/cat.png", "is no data:, file: or https: URL"),
        ("file://elsewhere/cat.png", "name files of this machine only"),
        ("x\0y", "there is no file|no valid path"),
        (17, "must be bytes, a path, a URL or base64, got int"),
        (None, "got NoneType"),
        (np.zeros((4, 4), np.uint8), r"got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "is empty"),
        (io.StringIO("text"), "opened in binary mode"),
    ],
)
def test_what_is_no_picture(source: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        load_image(source)


def test_limits_of_bytes() -> None:
    data = encoded(drawn(64, 64))
    policy = MediaPolicy(max_image_bytes=50)
    for source in (data, io.BytesIO(data), f"data:image/png;base64,{'A' * 4000}"):
        with pytest.raises(ValidationError, match="has more than 50 bytes"):
            load_image(source, policy)


def test_where_files_may_be(tmp_path: Path) -> None:
    folder, outside = tmp_path / "media", tmp_path / "secret.png"
    folder.mkdir()
    outside.write_bytes(encoded(drawn()))
    (folder / "cat.png").write_bytes(encoded(drawn()))
    (folder / "link.png").symlink_to(outside)
    policy = MediaPolicy(files=folder)
    assert load_image("cat.png", policy).width == 6
    assert load_image(folder / "cat.png", policy).width == 6
    for path in ("../secret.png", "link.png", str(outside), outside.as_uri()):
        with pytest.raises(ValidationError, match="only files in the media folder"):
            load_image(path, policy)
    for path in ("cat.png", str(outside), outside.as_uri()):
        with pytest.raises(ValidationError, match="files are not read here"):
            load_image(path, MediaPolicy(files=False))


def test_policies_are_checked() -> None:
    for options in ({"urls": "example.org"}, {"files": "x"}, {"max_pixels": 0}, {"timeout_s": 0}):
        with pytest.raises(ValidationError):
            MediaPolicy(**options)  # type: ignore[arg-type]


def test_without_pillow_arrays_work(child: Child) -> None:
    code = """
import sys
sys.modules["PIL"] = sys.modules["PIL.Image"] = None
import numpy as np
from llama_cffi import LlamaError
from llama_cffi.media import load_image
assert load_image(np.zeros((2, 3, 3), np.uint8)).width == 3
try:
    load_image(bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes([0, 0, 0, 9] * 4))
except LlamaError as e:
    print(e)
"""
    done = child(code)
    assert "pip install 'llama-cffi[multimodal]'" in done.stdout, done.stderr


def test_images_are_checked() -> None:
    with pytest.raises(ValidationError, match="must be"):
        Image([[1, 2, 3]])  # type: ignore[arg-type]


def test_pictures_are_copies_that_cannot_be_changed() -> None:
    array = np.zeros((4, 5, 3), np.uint8)
    image = load_image(array)
    digest = image.digest
    array[:] = 9
    assert image.pixels.max() == 0
    assert not image.pixels.flags.writeable
    flipped = load_image(array[:, ::-1])
    assert flipped.pixels.flags.c_contiguous
    assert load_image(np.zeros((4, 5, 3), np.uint8)).digest == digest
    assert Image(image.pixels).pixels is image.pixels


def test_pictures_of_pillow_stay_as_they_are() -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Pillow.open(io.BytesIO(data)) as picture:
        picture.seek(1)
        image = load_image(picture)
        assert picture.tell() == 1
    assert abs(image.pixels[0, 0].astype(int) - [0, 128, 0]).max() < 8


def test_pictures_of_pillow_are_checked_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Pillow.open(io.BytesIO(encoded(drawn()))) as picture:
        monkeypatch.setattr(type(picture), "load", lambda _: pytest.fail("decoded"))
        with pytest.raises(ValidationError, match="at most 20"):
            load_image(picture, MediaPolicy(max_pixels=20))
    with pytest.raises(ValidationError, match="at most 20"):
        load_image(load_image(np.zeros((5, 5, 3), np.uint8)), MediaPolicy(max_pixels=20))


def test_what_pillow_would_warn_of_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 20)
    for source in (encoded(drawn()), drawn()):
        with pytest.raises(ValidationError, match="MAX_IMAGE_PIXELS is 20"):
            load_image(source)


def test_exif_data_of_nonsense_is_ignored() -> None:
    random = np.random.default_rng(1)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(drawn(64, 48), "JPEG", exif=exif))
    start, n = data.index(b"Exif\0\0") + 6, len(exif.tobytes()) - 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF data
        for _ in range(200):
            changed = bytearray(data)
            for at in random.integers(start, start + n, 3):
                changed[at] = random.integers(0, 256)
            assert load_image(bytes(changed)).pixels.size == 64 * 48 * 3


def test_16_bits_with_a_transparent_value() -> None:
    wide = Pillow.fromarray(np.array([[40_000, 40_001]], np.uint16))
    out = io.BytesIO()
    wide.save(out, "PNG")
    data = out.getvalue()
    clear = b"tRNS" + struct.pack(">H", 40_000)
    chunk = struct.pack(">I", 2) + clear + struct.pack(">I", zlib.crc32(clear))
    at = data.index(b"IDAT") - 4
    pixels = load_image(data[:at] + chunk + data[at:]).pixels
    assert pixels[0].tolist() == [[255] * 3, [156] * 3]


@pytest.mark.parametrize(
    "body", [b"\xff" * 2**22, b"\xff\xd0" * 2**21, b"\xff\xe0\0\2" * 2**20, bytes(2**22)]
)
def test_headers_that_keep_a_parser_busy(body: bytes) -> None:
    frame = encoded(drawn(), "JPEG")
    at = frame.index(b"\xff\xc0")
    with pytest.raises(ValidationError, match="damaged or truncated"):
        load_image(frame[:2] + b"\xff\xe0\0\2" + body)
    if any(body):
        with pytest.raises(ValidationError, match="damaged or truncated"):
            load_image(frame[: at + 19] + body + frame[at + 19 :])


def test_pictures_that_say_two_sizes() -> None:
    data = encoded(drawn(), "JPEG")
    at = data.index(b"\xff\xc0")
    large = bytearray(data[at : at + 19])
    large[5:9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(ValidationError, match="60000 x 60000 pixels"):
        load_image(data[:at] + data[at : at + 19] + large + data[at + 19 :])


def test_texts_that_unpack_to_much_more() -> None:
    """Pillow refuses more than a megabyte of text in a PNG."""
    text = b"zTXtx\0\0" + zlib.compress(bytes(2**26))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data = encoded(drawn())
    with pytest.raises(ValidationError, match="damaged or truncated"):
        load_image(data[:33] + chunk + data[33:])


@pytest.mark.parametrize(
    "array",
    [
        np.ma.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 3), object),
        np.zeros((4, 4, 3), bool),
        np.float32(1),
    ],
)
def test_arrays_that_are_no_picture(array: Any) -> None:
    with pytest.raises(ValidationError, match=r"must be an array \(height, width, 3\) uint8, got"):
        load_image(array)


def test_files_that_give_less_than_asked_for() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    assert load_image(Slow(encoded(drawn()))).width == 6
    with pytest.raises(ValidationError, match="more than 50 bytes"):
        load_image(Slow(encoded(drawn())), MediaPolicy(max_image_bytes=50))


def test_whether_a_file_exists_is_not_told(tmp_path: Path) -> None:
    """Neither that, nor where the media folder is."""
    secret = tmp_path / ("a" * 40)
    secret.write_bytes(b"x")
    folder = tmp_path / "media"
    folder.mkdir()
    for policy in (MediaPolicy(files=False), MediaPolicy(files=folder)):
        told = set()
        for path in (str(secret), str(secret)[:-1] + "b"):
            with pytest.raises(ValidationError) as e:
                load_image(path, policy)
            told.add(str(e.value).replace(path, ""))
        assert len(told) == 1
    with pytest.raises(ValidationError) as e:
        load_image("nowhere.png", MediaPolicy(files=folder))
    assert str(folder) not in str(e.value)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "file://[x", "file:///%00", "a" * 39])
def test_paths_of_nonsense(text: str) -> None:
    with pytest.raises(ValidationError):
        load_image(text)


@given(st.text(max_size=80))
def test_texts_of_nonsense(text: str) -> None:
    with pytest.raises(ValidationError):
        load_image(text, MediaPolicy(urls=False))


@given(st.binary(max_size=300), st.booleans())
def test_base64_gives_the_bytes_back(data: bytes, padded: bool) -> None:
    text = base64.urlsafe_b64encode(data).decode()
    limits = sources.Limits("image", "a picture", 400)
    if data:
        assert sources.read_encoded(text if padded else text.rstrip("="), limits, "x") == data
    with pytest.raises(ValidationError, match="not valid base64"):
        sources.read_encoded(f"{text}A=A", limits, "x")


def test_the_length_of_base64_is_checked_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    text = "A" * 5_000
    for source in (text, f"data:image/png;base64,{text}"):
        with pytest.raises(ValidationError, match="more than 50 bytes"):
            load_image(source, MediaPolicy(max_image_bytes=50))
