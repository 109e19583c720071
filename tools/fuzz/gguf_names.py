"""Names that GGUF files of many models have: architectures, keys and tensors."""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "FLAG_KEYS",
    "INTEGER_KEYS",
    "LAYER_TENSORS",
    "PRETOKENIZERS",
    "REAL_KEYS",
    "TOKENIZER_FLAGS",
    "TOKEN_KEYS",
    "TOP_TENSORS",
]


def _words(text: str) -> list[str]:
    return text.split()


ARCHITECTURES = _words(
    """
    llama qwen2 qwen3 qwen2moe qwen3moe gemma gemma2 gemma3 gpt2 phi2 phi3 phimoe mamba mamba2 lfm2
    glm4moe bert nomic-bert jina-bert-v2 t5 t5encoder falcon mpt starcoder bloom stablelm baichuan
    grok dbrx command-r olmo olmo2 olmoe deepseek2 minicpm3 rwkv6 rwkv7 granite granitehybrid jamba
    plamo2 falcon-h1 nemotron_h exaone chameleon gpt-oss llama4 smollm3 bitnet arctic orion
    internlm2 gptj gptneox xverse refact chatglm openelm wavtokenizer-dec dream llada modern-bert
    neo-bert
    """
)
PRETOKENIZERS = _words(
    """
    default llama-bpe llama3 deepseek-llm falcon mpt starcoder gpt-2 refact command-r qwen2
    stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe viking jais tekken smollm codeshell bloom
    gpt-4o superbpe exaone minerva-7b seed-coder hunyuan kimi-k2 grok-2 megrez x
    """
)
INTEGER_KEYS = _words(
    """
    attention.key_length attention.value_length rope.dimension_count expert_count expert_used_count
    expert_feed_forward_length expert_shared_count expert_group_count expert_group_used_count
    expert_shared_feed_forward_length expert_gating_func leading_dense_block_count
    nextn_predict_layers attention.sliding_window attention.sliding_window_pattern
    attention.head_count_kv pooling_type vocab_size context_length
    rope.scaling.original_context_length attention.kv_lora_rank attention.q_lora_rank
    attention.relative_buckets_count ssm.conv_kernel ssm.inner_size ssm.state_size
    ssm.time_step_rank ssm.group_count shortconv.l_cache decoder_start_token_id decoder_block_count
    attention.group_norm_groups interleave_moe_layer_step full_attention_interval token_shift_count
    wkv.head_size n_swa embedding_length_out attention.key_length_mla attention.value_length_mla
    attention.key_length_swa attention.value_length_swa attention.shared_kv_layers altup.num_inputs
    time_mix_extra_dim time_decay_extra_dim rescale_every_n_layers dense_2_feat_out
    classifier.output_labels
    """
)
REAL_KEYS = _words(
    """
    rope.freq_base rope.scaling.factor rope.scaling.attn_factor rope.freq_base_swa
    rope.scale_linear attn_logit_softcapping final_logit_softcapping logit_scale residual_scale
    embedding_scale attention.scale attention.clamp_kqv attention.max_alibi_bias
    attention.layer_norm_epsilon attention.group_norm_epsilon expert_weights_scale
    rope.scaling.yarn_log_multiplier
    """
)
FLAG_KEYS = _words(
    """
    use_parallel_residual attention.causal expert_weights_norm swin_norm
    """
)
TOKEN_KEYS = _words(
    """
    bos_token_id eos_token_id unknown_token_id separator_token_id padding_token_id mask_token_id
    eot_token_id eom_token_id fim_pre_token_id fim_suf_token_id fim_mid_token_id cls_token_id
    seperator_token_id prefix_token_id middle_token_id token_type_count
    """
)
TOKENIZER_FLAGS = _words(
    """
    add_bos_token add_eos_token add_sep_token add_space_prefix remove_extra_whitespaces
    escape_whitespaces
    """
)
LAYER_TENSORS = _words(
    """
    attn_q.bias attn_k.bias attn_v.bias attn_output.bias attn_qkv.bias attn_qkv.weight
    attn_norm.bias attn_norm_2.weight attn_q_norm.weight attn_k_norm.weight attn_sinks.weight
    attn_rot_embd.weight ffn_norm.bias ffn_gate.bias ffn_up.bias ffn_down.bias ffn_act
    ffn_gate.weight ffn_gate_inp.weight ffn_gate_inp_shexp.weight ffn_gate_exps.weight
    ffn_up_exps.weight ffn_down_exps.weight ffn_gate_shexp.weight ffn_up_shexp.weight
    ffn_down_shexp.weight exp_probs_b.bias post_attention_norm.weight post_ffw_norm.weight
    layer_output_norm.weight attn_sub_norm.weight ffn_sub_norm.weight attn_q.scale
    attn_output.scale ffn_up.scale ssm_dt.bias ssm_norm.weight ssm_conv1d.bias
    shortconv.conv.weight attn_gate.weight
    """
)
TOP_TENSORS = _words(
    """
    output.weight output.bias output_norm.weight output_norm.bias rope_freqs.weight
    rope_factors_long.weight rope_factors_short.weight token_embd_norm.weight token_embd_norm.bias
    token_types.weight position_embd.weight cls.weight cls.bias cls.output.weight cls.output.bias
    output_scale per_layer_token_embd.weight
    """
)
