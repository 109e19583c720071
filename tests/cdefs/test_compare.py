"""Deep comparison of declarations: small examples, then known changes upstream."""

from __future__ import annotations

import pytest

from llama_cffi import cdefs
from llama_cffi.cdefs.compare import Difference, differences
from llama_cffi.errors import ValidationError

BASE = """
// ---- ggml.h

#define GGML_MAX 4

enum kind {
    KIND_A = 0,
    KIND_B = 1,
    KIND_COUNT = 2,
};

struct opaque;
typedef struct opaque *handle_t;

struct leaf {
    enum kind kind;
    float x[4];
};

struct node {
    struct node *next;
    struct leaf *leaf;
    int32_t n;
};

typedef void (*callback_t)(struct node *node, void *user);
void llama_walk(handle_t handle, callback_t callback, const char *name);
struct node llama_make(size_t n);
int32_t llama_plain(int32_t a, uint8_t b);
void mtmd_only(struct leaf leaf);
"""


def changed(old: str, new: str, **options: bool) -> dict[str, str]:
    """Replace *old* by *new* in BASE and return the kind of difference by function."""
    assert old in BASE
    found = differences(BASE, BASE.replace(old, new), **options)
    return {d.function: d.kind for d in found}


def test_declarations_equal_themselves():
    assert differences(BASE, BASE) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int32_t a, uint8_t b", "int x, unsigned char y"),
        ("const char *name", "char *name"),
        ("size_t n", "uint64_t n"),
        ("handle_t handle", "struct opaque *handle"),
        ("callback_t callback", "void (*f)(struct node *, void *)"),
        ("#define GGML_MAX 4", "#define GGML_MAX 5"),
    ],
)
def test_spelling_is_ignored(old, new):
    assert changed(old, new) == {}


def test_own_signature():
    assert changed("uint8_t b", "int8_t b") == {"llama_plain": "signature"}
    assert changed("int32_t llama_plain", "int64_t llama_plain") == {"llama_plain": "signature"}
    assert changed("int32_t a, ", "") == {"llama_plain": "signature"}
    assert changed("handle_t handle, ", "struct other *handle, ") == {"llama_walk": "signature"}


def test_missing_function():
    (found,) = differences(BASE, BASE.replace("int32_t llama_plain(int32_t a, uint8_t b);", ""))
    assert found == Difference("llama_plain", "missing", "", "not declared")
    assert differences(BASE.replace("int32_t llama_plain(int32_t a, uint8_t b);", ""), BASE) == []


def test_a_changed_struct_affects_every_function_that_reaches_it():
    # through a callback's argument, and by value
    both = {"llama_walk": "struct", "llama_make": "struct"}
    assert changed("int32_t n;", "int64_t n;") == both
    assert changed("int32_t n;", "int32_t m;") == both
    assert changed("int32_t n;", "int32_t n;\n    bool last;") == both
    # through two pointers
    assert changed("float x[4]", "float x[5]") == {**both, "mtmd_only": "struct"}


def test_opaque_on_one_side():
    assert changed("struct opaque;", "struct opaque { int32_t n; };") == {"llama_walk": "struct"}


def test_enum_values():
    three = ("llama_walk", "llama_make", "mtmd_only")
    assert changed("KIND_B = 1", "KIND_B = 7") == dict.fromkeys(three, "enum")
    assert changed("    KIND_B = 1,\n", "") == dict.fromkeys(three, "enum")
    more = "KIND_B = 1,\n    KIND_C = 2,\n    KIND_COUNT = 3"
    assert changed("KIND_B = 1,\n    KIND_COUNT = 2", more) == dict.fromkeys(three, "enum-added")


def test_mtmd_is_left_out_on_request():
    assert changed("struct leaf leaf", "struct leaf *leaf", mtmd=False) == {}
    assert changed("struct leaf leaf", "struct leaf *leaf") == {"mtmd_only": "signature"}


def test_the_detail_names_the_member():
    (first, *_) = differences(BASE, BASE.replace("int32_t n;", "int32_t m;"))
    assert first.where == "struct node"
    assert first.detail == "member 2: n int32_t -> m int32_t (3 -> 3 members)"


def test_input_that_is_not_c():
    with pytest.raises(ValidationError, match="cannot parse the C declarations"):
        differences(BASE, "not C")


def between(old: str, new: str) -> list[Difference]:
    return differences(cdefs.declarations(old), cdefs.declarations(new))


def test_dry_run_in_the_padding_of_the_quantize_params():
    found = between("b8095", "b8121")
    assert {d.where for d in found} == {"struct llama_model_quantize_params"}
    assert {d.function for d in found} == {
        *("llama_model_quantize", "llama_model_quantize_default_params")
    }


def test_classes_that_only_gained_functions():
    assert between("b4529", "b4600") == []
    assert between("b5590", "b5640") == []
    assert between("b4600", "b4529") != []


def test_functions_that_kept_their_name_and_changed_their_type():
    signatures = {d.function for d in between("b10068", "b10361") if d.kind == "signature"}
    assert signatures == {"llama_sampler_init_dry", "llama_sampler_init_penalties"}
    assert "llama_batch_get_one" in {d.function for d in between("b3889", "b3995")}
    assert ("llama_n_vocab", "signature") in {
        (d.function, d.kind) for d in between("b4435", "b4529")
    }
    flash = [d for d in between("b6301", "b6431") if d.function == "llama_context_default_params"]
    assert "struct llama_context_params" in {d.where for d in flash}
