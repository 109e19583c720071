"""The classes of whisper.cpp: the stored files agree, and hold what whisper.h needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cffi import cdefs
from llama_cffi.cdefs import class_files, generator
from llama_cffi.cdefs.describe import describe
from llama_cffi.errors import AbiMismatchError, ValidationError

NAMES = cdefs.WHISPER.names()

GGML = """
#include <stdint.h>
#define GGML_MAX_DIMS 4
enum ggml_log_level { GGML_LOG_LEVEL_INFO = 2, GGML_LOG_LEVEL_WARN };
enum ggml_type { GGML_TYPE_F32 };
struct ggml_tensor { enum ggml_type type; int64_t ne[GGML_MAX_DIMS]; };
typedef void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * data);
typedef bool (*ggml_abort_callback)(void * data);
size_t ggml_nbytes(const struct ggml_tensor * tensor);
"""
WHISPER = """
#include "ggml.h"
#define WHISPER_SAMPLE_RATE 16000
struct whisper_context;
struct whisper_full_params { bool translate; ggml_log_callback log; };
struct whisper_full_params whisper_full_default_params(int strategy);
"""


@pytest.mark.parametrize("name", NAMES)
def test_the_table_describes_the_declarations(name: str) -> None:
    stored = cdefs.WHISPER.get(name)
    text = cdefs.WHISPER.declarations(name)
    assert describe(text, name, stored.builds) == stored
    assert "whisper.cpp is Copyright (c) 2023-2026 The ggml authors" in text
    assert not stored.optional
    assert {"whisper_full_with_state", "whisper_log_set"} <= stored.functions
    assert not any(f.startswith("ggml_") for f in stored.functions)


def test_files_are_reproducible(tmp_path: Path) -> None:
    classes = [(c, cdefs.WHISPER.declarations(c.name)) for c in cdefs.WHISPER.classes()]
    class_files.write(classes, tmp_path, cdefs.WHISPER)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"table.json", "classes.tar.xz", f"{NAMES[-1]}.h"}
    for name in names - {"classes.tar.xz"}:  # whose compression may differ between versions of xz
        assert (tmp_path / name).read_bytes() == (cdefs.WHISPER.folder / name).read_bytes()


def test_an_unknown_class() -> None:
    with pytest.raises(AbiMismatchError, match=r"no ABI class 'v9'; the known ones are v1.6.0"):
        cdefs.WHISPER.get("v9")
    with pytest.raises(AbiMismatchError, match="no ABI class 'v9'"):
        cdefs.WHISPER.declarations("v9")


def test_of_ggml_only_the_types_in_use_are_kept(tmp_path: Path) -> None:
    (tmp_path / "ggml.h").write_text(GGML)
    (tmp_path / "whisper.h").write_text(WHISPER)
    text = generator.generate(tmp_path, header_set=generator.WHISPER_HEADERS)
    assert "enum ggml_log_level {" in text
    assert "ggml_log_callback)" in text
    assert "#define WHISPER_SAMPLE_RATE 16000" in text
    for name in ("ggml_tensor", "ggml_type", "ggml_abort_callback", "ggml_nbytes", "GGML_MAX_DIMS"):
        assert name not in text
    described = describe(text)
    assert described.functions == {"whisper_full_default_params"}
    assert described.layouts["whisper_full_params"].size == 16
    assert generator.main([str(tmp_path), "--whisper", "-o", str(tmp_path / "out.h")]) == 0
    assert (tmp_path / "out.h").read_text("utf-8") == text


def test_headers_of_another_project(tmp_path: Path) -> None:
    (tmp_path / "ggml.h").write_text(GGML)
    with pytest.raises(ValidationError, match=r"no whisper.h in .* whisper.cpp's headers"):
        generator.generate(tmp_path, header_set=generator.WHISPER_HEADERS)
    (tmp_path / "whisper.h").write_text('#include "ggml.h"\nint whisper_lang_max_id(void);\n')
    with pytest.raises(ValidationError, match="declares no whisper_full_default_params"):
        generator.generate(tmp_path, header_set=generator.WHISPER_HEADERS)
