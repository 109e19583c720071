"""Generation of declarations from small headers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cffi
import pytest

from llama_cffi.cdefs import audit, generator
from llama_cffi.cdefs.describe import describe
from llama_cffi.errors import ValidationError

GGML = """
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#ifdef _WIN32
#    define GGML_API __declspec(dllexport) extern
#else
#    define GGML_API extern
#endif
#ifdef __GNUC__
#    define DEPRECATED(func, hint) func __attribute__((deprecated(hint)))
#else
#    define DEPRECATED(func, hint) func
#endif
#define GGML_MAX_DIMS 4
#define GGML_BYTES (GGML_MAX_DIMS * (1 << 4))
#define GGML_MAGIC 0x67676d6cu // "ggml"
#define GGML_NONE (-1)
#define GGML_NAME "ggml"
#define GGML_PAD(x, n) (((x) + (n) - 1) & ~((n) - 1))
#define GGML_UNUSED_MARK
enum ggml_kind { GGML_KIND_A, GGML_KIND_B = GGML_MAX_DIMS + 1, GGML_KIND_C, GGML_KIND_M = -1 };
struct ggml_tensor;
struct ggml_thing {
    enum ggml_kind kind; /* a comment */
    int32_t dims[GGML_MAX_DIMS / sizeof(int32_t)];
    struct { float alpha; bool on; } inner;
    union { int64_t i; double d; };
    void (*call)(void * user, const char ** names);
    const struct ggml_tensor * const * list;
};
static const size_t GGML_THING_SIZE = sizeof(struct ggml_thing);
static inline int ggml_twice(int x) { return 2 * x; }
DEPRECATED(GGML_API void ggml_old(int a[4], const float * restrict b), "use ggml_new");
GGML_API _Noreturn void ggml_abort(const char * fmt, ...);
GGML_API size_t (*ggml_chooser(enum ggml_kind kind))(FILE * file);
GGML_API bool ggml_again(void);
GGML_API bool ggml_again(void);
"""
LLAMA = """
#ifndef LLAMA_H
#define LLAMA_H
#include "ggml.h"
struct llama_model_params { int32_t n; struct ggml_thing thing; };
struct llama_model_params llama_model_default_params(void);
#ifdef __cplusplus
#include <memory>
#endif
#endif
"""
EXPECTED = """
// ---- ggml.h

#define GGML_MAX_DIMS 4
#define GGML_BYTES 64
#define GGML_MAGIC 0x67676d6c
#define GGML_NONE -1
// #define GGML_NAME "ggml"

enum ggml_kind {
    GGML_KIND_A = 0,
    GGML_KIND_B = 5,
    GGML_KIND_C = 6,
    GGML_KIND_M = -1,
};

struct ggml_tensor;

struct ggml_thing {
    enum ggml_kind kind;
    int32_t dims[1];
    struct {
        float alpha;
        bool on;
    } inner;
    union {
        int64_t i;
        double d;
    };
    void (*call)(void *user, const char **names);
    const struct ggml_tensor *const *list;
};

void ggml_old(int a[4], const float *b);
void ggml_abort(const char *fmt, ...);
size_t (*ggml_chooser(enum ggml_kind kind))(FILE *file);
bool ggml_again(void);

// ---- llama.h

struct llama_model_params {
    int32_t n;
    struct ggml_thing thing;
};

struct llama_model_params llama_model_default_params(void);
"""


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A folder with a ggml.h and a llama.h that use the same features as upstream's headers."""
    (tmp_path / "ggml.h").write_text(GGML)
    (tmp_path / "llama.h").write_text(LLAMA)
    return tmp_path


def edit(path: Path, old: str, new: str) -> int:
    """Replace *old* by *new* and return the number of its line."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_generate(headers):
    assert generator.generate(headers) == generator.LICENSE_NOTE + EXPECTED


def test_cffi_accepts_the_result_and_lays_it_out_as_c_does(headers):
    ffi = cffi.FFI()
    ffi.cdef(generator.generate(headers))
    thing = dict(ffi.typeof("struct ggml_thing").fields)
    assert thing["call"].offset == 24
    assert ffi.sizeof("struct ggml_thing") == 40


def test_describe(headers):
    c = describe(generator.generate(headers), "mine", ("b1",))
    assert c.functions == {
        *("ggml_old", "ggml_abort", "ggml_chooser", "ggml_again", "llama_model_default_params")
    }
    assert c.optional == frozenset()
    layout = c.layouts["llama_model_params"]
    assert layout.size == 48
    # n, padding, kind, dims, alpha, on, 3 bytes of padding, then 24 bytes of union and pointers
    holes = {i for i in range(48) if not layout.written[i]}
    assert holes == {*range(4, 8), *range(21, 24)}


def test_backend_headers_are_optional_and_follow_the_core(headers):
    (headers / "ggml-cuda.h").write_text('#include "ggml.h"\nGGML_API void ggml_cuda_x(void);')
    (headers / "ggml-blas.h").write_text('#include "ggml.h"\nGGML_API void ggml_blas_x(void);')
    (headers / "ggml-cpp.h").write_text("this is not C")
    text = generator.generate(headers)
    sections = [line.split()[-1] for line in text.splitlines() if line.startswith("// ----")]
    assert sections == ["ggml.h", "ggml-blas.h", "ggml-cuda.h", "llama.h"]
    assert describe(text).optional == {"ggml_cuda_x", "ggml_blas_x"}


def test_defines_of_the_build_change_the_layout(headers):
    edit(
        headers / "ggml.h",
        "#define GGML_MAX_DIMS 4",
        "#ifndef N\n#define N 4\n#endif\nenum { M = N };\n#define GGML_MAX_DIMS 4",
    )
    assert "    M = 4,\n" in generator.generate(headers)
    assert "    M = 128,\n" in generator.generate(headers, {"N": "128"})
    assert "    M = 7,\n" in run(str(headers), "-D", "N=7").stdout
    assert "    M = 1,\n" in run(str(headers), "-D", "N").stdout


def test_a_source_tree_gives_the_same_as_an_installed_folder(headers, tmp_path_factory):
    tree = tmp_path_factory.mktemp("llama.cpp")
    (tree / "include").mkdir()
    (tree / "ggml" / "include").mkdir(parents=True)
    (tree / "include" / "llama.h").write_text(LLAMA)
    (tree / "ggml" / "include" / "ggml.h").write_text(GGML)
    assert generator.generate(tree) == generator.generate(headers)


def test_tags_without_keyword_as_in_cplusplus(headers):
    edit(
        headers / "ggml.h",
        "GGML_API bool ggml_again(void);\nGGML",
        "void f(ggml_tensor * t);\nGGML",
    )
    assert "void f(struct ggml_tensor *t);" in generator.generate(headers)


def test_windows_line_ends_and_byte_order_mark_change_nothing(headers):
    before = generator.generate(headers)
    for path in headers.glob("*.h"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert generator.generate(headers) == before


@pytest.mark.parametrize("name", ["llama.h", "ggml.h"])
def test_a_missing_header_is_named_with_the_places_searched(headers, name):
    (headers / name).unlink()
    with pytest.raises(ValidationError, match=rf"no {name} in .*include") as caught:
        generator.generate(headers)
    assert str(headers) in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValidationError, match=r"no llama\.h in "):
        generator.generate(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int32_t n;", "foo_t n;", "foo_t|before: n|Invalid"),
        ("int32_t n;", "int32_t n : 3;", "bit-fields have no portable layout"),
        (
            "int32_t n;",
            "int32_t n[sizeof(struct ggml_thing)];",
            "sizeof of a type that is not scalar",
        ),
        ("int32_t n;", "int32_t n[unknown];", "constant expression cannot be evaluated"),
        ("int32_t n;", "int32_t n[1 / 0];", "constant expression cannot be evaluated"),
        ("#ifdef __cplusplus", '#include <x.h>\n#include "gguf.h"\n#ifdef __cplusplus', "gguf.h"),
        ("#ifdef __cplusplus", "#error too old\n#ifdef __cplusplus", "#error too old"),
        ("int32_t n;", "int32_t $ n;", "llama.h"),
    ],
)
def test_broken_headers_are_named_with_the_line(headers, old, new, message):
    line = edit(headers / "llama.h", old, new)
    with pytest.raises(ValidationError, match=message) as caught:
        generator.generate(headers)
    found = str(caught.value)
    assert any(f"llama.h:{n}" in found for n in (line, line + 1))


def test_an_unterminated_condition_is_named(headers):
    (headers / "llama.h").write_text(LLAMA.rstrip().removesuffix("#endif"))
    with pytest.raises(ValidationError, match=r"llama\.h:\d+: Unterminated #ifndef LLAMA_H$"):
        generator.generate(headers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "declares no llama_model_default_params"),
        (b"<html>Not found</html>", r"llama\.h:1"),
        (b"// caf\xe9\n", r"llama\.h:1: not UTF-8"),
        (b"\0\0\0", r"llama\.h:1"),
    ],
)
def test_files_that_are_not_headers(headers, content, message):
    (headers / "llama.h").write_bytes(content)
    with pytest.raises(ValidationError, match=message):
        generator.generate(headers)


def test_describe_rejects_what_cffi_rejects():
    with pytest.raises(ValidationError, match="cffi rejects these declarations"):
        describe("struct x {")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_cffi.cdefs.generator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line_writes_the_same_in_any_process(headers, tmp_path):
    target = tmp_path / "out.h"
    assert run(str(headers), "-o", str(target)).returncode == 0
    answer = run(str(headers))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == target.read_text() == generator.LICENSE_NOTE + EXPECTED


def test_command_line_reports_errors(tmp_path):
    answer = run(str(tmp_path))
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: no llama.h in ")


@pytest.fixture(scope="module")
def cc() -> str:
    found = audit.compiler()
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


def test_audit_agrees_with_the_compiler(headers, cc):
    result = audit.audit(headers, generator.generate(headers), cc)
    assert result.problems == []
    assert result.checks > 40


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float alpha;", "double alpha;"),
        ("float alpha;", "int32_t alpha;"),
        ("GGML_KIND_C = 6", "GGML_KIND_C = 7"),
        ("int32_t n;", "int32_t n;\n    int32_t m;"),
        ("bool ggml_again(void)", "bool ggml_again(int)"),
        ("void ggml_old(int a[4]", "int ggml_old(int a[4]"),
        ("#define GGML_BYTES 64", "#define GGML_BYTES 63"),
        ("const struct ggml_tensor *const *list", "struct ggml_tensor *const *list"),
    ],
)
def test_audit_finds_a_wrong_declaration(headers, cc, old, new):
    text = generator.generate(headers)
    assert old in text
    assert audit.audit(headers, text.replace(old, new), cc).problems
