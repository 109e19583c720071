"""Reading the sizes in C's log; the lines are those of builds from b7836 to v0.5.0."""

from __future__ import annotations

from llama_cffi.binding.memory_lines import is_about_memory, parse_lines

_MIB = 2**20
_LINES = """\
load_tensors: layer   0 assigned to device CPU, is_swa = 0
load_tensors: layer   1 assigned to device CUDA0, is_swa = 0
load_tensors: layer   2 assigned to device CUDA0, is_swa = 0
tensor blk.0.ffn_up_exps.weight (16 MiB f16) buffer type overridden to CPU
done_getting_tensors: tensor 'token_embd.weight' (f32) (and 20 others) cannot be used with \
preferred buffer type CPU_REPACK, using CPU instead
load_tensors:          CPU model buffer size =     0.00 MiB
llama_context:        CPU  output buffer size =     0.25 MiB
llama_kv_cache: layer   0: dev = CPU
llama_kv_cache: layer   1: dev = CUDA0
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =    2.00 MiB (  4096 cells,   2 layers,  2/2 seqs), K (f16):    1.00 MiB, \
V (f16):    1.00 MiB
llama_memory_recurrent, layer   0: dev = CPU
llama_memory_recurrent: layer   1: skipped
llama_memory_recurrent: size =    0.50 MiB (     2 cells,   2 layers,  2 seqs  0 rs_seq), \
R (f32):    0.25 MiB, S (f32):    0.25 MiB
sched_reserve:      CUDA0 compute buffer size =   300.75 MiB
sched_reserve:  CUDA_Host compute buffer size =     4.00 MiB
""".splitlines()


def test_sizes_and_places() -> None:
    found = parse_lines(_LINES)
    assert found.layers == {0: "CPU", 1: "CUDA0", 2: "CUDA0"}
    assert found.overrides == {"blk.0.ffn_up_exps.weight": "CPU"}
    assert found.caches == {
        ("KV", "CPU"): _MIB,
        ("KV", "CUDA0"): _MIB,
        ("RS", "CPU"): _MIB // 2,
    }
    assert found.buffers["compute", "CUDA0"] == int(300.75 * _MIB)
    assert found.buffers["compute", "CUDA_Host"] == 4 * _MIB
    assert found.buffers["output", "CPU"] == _MIB // 4
    assert found.n_not_repacked == 21


def test_other_lines_are_left_out() -> None:
    others = ["print_info: n_ctx_train = 4096", "llama_kv_cache: layer   0: filtered", "size = 1"]
    assert not any(map(is_about_memory, others))
    assert parse_lines(others) == parse_lines([])
