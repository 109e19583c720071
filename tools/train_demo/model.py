"""The llama architecture in PyTorch, with the rotary layout that llama.cpp uses for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- the name everybody reads


@dataclass(frozen=True)
class Config:
    """Shape of the model; the names follow llama.cpp's metadata."""

    n_vocab: int = 1536
    n_ctx: int = 1024
    n_embd: int = 192
    n_layer: int = 4
    n_head: int = 6
    n_ff: int = 512
    rope_freq_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


def _rope(config: Config) -> tuple[Tensor, Tensor]:
    """Compute cos and sin, each (n_ctx, head_dim / 2), float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.outer(
        torch.arange(config.n_ctx, dtype=torch.float64), config.rope_freq_base**-exponents
    )
    return angles.cos().float(), angles.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x, (batch, n_head, n_tokens, head_dim).

    llama.cpp rotates (0, 1), (2, 3), ... for this architecture; training in that layout means that
    the export does not have to permute Q and K.
    """
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    pairs = (even * cos - odd * sin, even * sin + odd * cos)
    return torch.stack(pairs, -1).flatten(-2).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over (batch, n_head, n_tokens, head_dim), written out; causal without a mask.

    At these widths and lengths it takes half the time of PyTorch's fused kernel on a CPU.
    """
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is None:
        index = torch.arange(q.shape[2], device=q.device)
        mask = index[:, None] >= index
    scores = torch.where(mask, scores, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class Layer(nn.Module):
    """One block: attention and a SwiGLU feed-forward, each behind an RMS norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n, f = config.n_embd, config.n_ff
        self.n_head = config.n_head
        self.eps = config.norm_eps
        self.attn_norm = nn.Parameter(torch.ones(n))
        self.attn_q = nn.Linear(n, n, bias=False)
        self.attn_k = nn.Linear(n, n, bias=False)
        self.attn_v = nn.Linear(n, n, bias=False)
        self.attn_output = nn.Linear(n, n, bias=False)
        self.ffn_norm = nn.Parameter(torch.ones(n))
        self.ffn_gate = nn.Linear(n, f, bias=False)
        self.ffn_up = nn.Linear(n, f, bias=False)
        self.ffn_down = nn.Linear(f, n, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x, (batch, n_tokens, n_embd), to the same shape."""
        h = F.rms_norm(x, x.shape[-1:], self.attn_norm, self.eps)
        # One product over joined matrices instead of three: the backward pass saves two additions.
        joined = torch.cat((self.attn_q.weight, self.attn_k.weight, self.attn_v.weight))
        heads = F.linear(h, joined).reshape(*x.shape[:-1], 3, self.n_head, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = _attend(q, k, v, mask)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(-2))
        h = F.rms_norm(x, x.shape[-1:], self.ffn_norm, self.eps)
        gate, up = F.linear(h, torch.cat((self.ffn_gate.weight, self.ffn_up.weight))).chunk(2, -1)
        added: Tensor = self.ffn_down(F.silu(gate) * up)
        return x + added


class Llama(nn.Module):
    """Token ids in, logits out; input and output embeddings are one matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.n_vocab, config.n_embd)
        self.blk = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.output_norm = nn.Parameter(torch.ones(config.n_embd))
        cos, sin = _rope(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * config.n_layer) ** -0.5 if "output" in name or "down" in name else 1.0
                nn.init.normal_(
                    weight, std=0.02 if "embd" in name else scale * weight.shape[1] ** -0.5
                )

    def hidden(self, tokens: Tensor) -> Tensor:
        """Map tokens, (batch, n_tokens), to normed states, (batch, n_tokens, n_embd)."""
        n_tokens = tokens.shape[1]
        x = self.token_embd(tokens)
        for layer in self.blk:
            x = layer(x, self.cos[:n_tokens], self.sin[:n_tokens])
        return F.rms_norm(x, x.shape[-1:], self.output_norm, self.config.norm_eps)

    def forward(self, tokens: Tensor, where: Tensor | None = None) -> Tensor:
        """Compute logits.

        Args:
            tokens: Ids, (batch, n_tokens).
            where: Positions wanted, bool of the same shape; None for all.

        Returns:
            (batch, n_tokens, n_vocab), or (number wanted, n_vocab).
        """
        h = self.hidden(tokens)
        return F.linear(h if where is None else h[where], self.token_embd.weight)
