"""Write both files: ``python -m tools.train_demo.pictures.export --work DIR [FOLDER]``."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray

from llama_cffi.demo import model_path

from ..export import export as export_text
from ..restore import read_model, read_tokenizer
from .model import PictureModel, Vision, VisionConfig

TEXT_NAME, PROJECTOR_NAME = "pictures.gguf", "pictures-mmproj.gguf"
DESCRIPTION = (
    "A very small vision encoder for trying and testing pictures with llama_cffi: coloured shapes "
    "on plain backgrounds. Trained from scratch on synthetic pictures by "
    "tools/train_demo/pictures."
)


def load_checkpoint(path: Path) -> PictureModel:
    """Load the weights that ``train.py`` saved; the head of the training is left out."""
    text = read_model(gguf.GGUFReader(model_path()))
    model = PictureModel(Vision(VisionConfig()), text)
    saved = torch.load(path, weights_only=True)["model"]
    own = {n.removeprefix("model."): w for n, w in saved.items() if n.startswith("model.")}
    model.load_state_dict(own)
    return model.eval()


def tensors(vision: Vision) -> dict[str, NDArray[np.float32]]:
    """Name the weights as llama.cpp does."""
    config, found = vision.config, {}
    for name, weight in vision.state_dict().items():
        values = weight.detach().float().numpy()
        if name.startswith("mm_"):
            found[name.replace("mm_", "mm.")] = values
        elif name == "position_embd":
            found["v.position_embd.weight"] = values
        elif name == "patch_embd.weight":
            size = config.patch_size
            found["v.patch_embd.weight"] = values.reshape(config.n_embd, 3, size, size)
        else:
            found[f"v.{name}"] = values
    return found


def export_vision(vision: Vision, path: Path, kind: str = "f16") -> None:
    """Write the encoder as a projector file.

    Args:
        vision: The trained encoder.
        path: The file to write.
        kind: ``f16`` or ``f32``: the type of the matrices; the others stay F32.
    """
    config = vision.config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("llama_cffi demo pictures")
    writer.add_author("The llama_cffi authors")
    writer.add_description(DESCRIPTION)
    writer.add_license("mit")
    f16 = kind == "f16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("janus_pro")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.n_embd)
    writer.add_vision_feed_forward_length(config.n_ff)
    writer.add_vision_block_count(config.n_layer)
    writer.add_vision_head_count(config.n_head)
    writer.add_vision_projection_dim(config.n_out)
    writer.add_vision_attention_layernorm_eps(config.norm_eps)
    writer.add_vision_image_mean([config.mean] * 3)
    writer.add_vision_image_std([config.std] * 3)
    for name, values in tensors(vision).items():
        half = f16 and values.ndim > 1 and "position" not in name
        wanted = Quant.F16 if half else Quant.F32
        writer.add_tensor(name, gguf.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def export(model: PictureModel, folder: Path, exact: bool = False) -> tuple[Path, Path]:
    """Write language model (Q8_0) and projector (F16), or both as F32; return their paths."""
    tokenizer = read_tokenizer(gguf.GGUFReader(model_path()))
    text, projector = folder / TEXT_NAME, folder / PROJECTOR_NAME
    export_text(model.text, tokenizer, text, "f32" if exact else "q8_0", pictures=True)
    export_vision(model.vision, projector, "f32" if exact else "f16")
    return text, projector


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    parser.add_argument("folder", type=Path, nargs="?", default=model_path().parent)
    args = parser.parse_args()
    for path in export(load_checkpoint(args.work / "model.pt"), args.folder):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
