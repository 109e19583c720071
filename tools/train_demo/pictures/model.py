"""The vision encoder in PyTorch: the graph that llama.cpp builds for ``janus_pro`` projectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- the name everybody reads

from ..model import Llama


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the encoder; the names follow llama.cpp's metadata."""

    image_size: int = 96
    patch_size: int = 16
    n_embd: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_ff: int = 384
    n_out: int = 192
    norm_eps: float = 1e-6
    mean: float = 0.5
    std: float = 0.5

    @property
    def n_patches(self) -> int:
        """Number of patches, which is the number of tokens per picture."""
        return (self.image_size // self.patch_size) ** 2


class Block(nn.Module):
    """One block: attention over all patches and a feed-forward, each behind a layer norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        n = config.n_embd
        self.n_head = config.n_head
        self.ln1 = nn.LayerNorm(n, config.norm_eps)
        self.attn_q = nn.Linear(n, n)
        self.attn_k = nn.Linear(n, n)
        self.attn_v = nn.Linear(n, n)
        self.attn_out = nn.Linear(n, n)
        self.ln2 = nn.LayerNorm(n, config.norm_eps)
        self.ffn_up = nn.Linear(n, config.n_ff)
        self.ffn_down = nn.Linear(config.n_ff, n)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, (batch, n_patches, n_embd), to the same shape."""
        h = self.ln1(x)
        q, k, v = (
            part(h).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for part in (self.attn_q, self.attn_k, self.attn_v)
        )
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        mixed = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(-2))
        up = F.gelu(self.ffn_up(self.ln2(x)), approximate="tanh")
        added: Tensor = self.ffn_down(up)
        return x + added


class Vision(nn.Module):
    """Pictures in, one embedding of the language model's width per patch out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        n, size = config.n_embd, config.patch_size
        self.patch_embd = nn.Linear(3 * size * size, n)
        self.position_embd = nn.Parameter(torch.randn(config.n_patches, n) * 0.1)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.post_ln = nn.LayerNorm(n, config.norm_eps)
        self.mm_0 = nn.Linear(n, config.n_out)
        self.mm_1 = nn.Linear(config.n_out, config.n_out)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            pictures: RGB, uint8, (batch, image_size, image_size, 3).

        Returns:
            (batch, n_patches, n_out), row by row.
        """
        config, size = self.config, self.config.patch_size
        x = (pictures.float() / 255 - config.mean) / config.std
        n = config.image_size // size
        x = x.unflatten(2, (n, size)).unflatten(1, (n, size)).permute(0, 1, 3, 5, 2, 4)
        x = self.patch_embd(x.flatten(3).flatten(1, 2)) + self.position_embd
        for block in self.blk:
            x = block(x)
        x = F.gelu(self.mm_0(self.post_ln(x)), approximate="tanh")
        projected: Tensor = self.mm_1(x)
        return projected


class PictureModel(nn.Module):
    """The encoder and the language model that reads its embeddings."""

    def __init__(self, vision: Vision, text: Llama) -> None:
        super().__init__()
        self.vision = vision
        self.text = text

    def hidden(
        self, pictures: Tensor, tokens: Tensor, where: Tensor, positions: Tensor, mask: Tensor
    ) -> Tensor:
        """Compute the states behind the last norm.

        Args:
            pictures: uint8, (batch, image_size, image_size, 3).
            tokens: Ids, (batch, n_tokens), of any value where a picture stands.
            where: First position of the picture, (batch,).
            positions: Position of every token, (batch, n_tokens).
            mask: Whether a token (row) sees another one (column), (batch, n_tokens, n_tokens).

        Returns:
            (batch, n_tokens, n_embd).
        """
        text, seen = self.text, self.vision(pictures)
        x = text.token_embd(tokens)
        rows = where[:, None] + torch.arange(seen.shape[1])
        x = x.scatter(1, rows[..., None].expand_as(seen), seen.to(x.dtype))
        cos, sin = text.cos[positions][:, None], text.sin[positions][:, None]
        for layer in text.blk:
            x = layer(x, cos, sin, mask[:, None])
        return F.rms_norm(x, x.shape[-1:], text.output_norm, text.config.norm_eps)
