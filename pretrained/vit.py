"""Vision transformers that others have trained, read from the folders of transformers: a CLIP (CLIPModel) as
image-report consistency, a DINOv2 (Dinov2Model; Rad-DINO is one) as features for FID and its kin.

One network serves both. A class token and the patches of an image, each plus where it stands, pass the layers
of text_encoder.py without their mask; the class token's last state stands for the image. DINOv2 scales each
branch of a layer, channel by channel, and its patches have a bias; CLIP has a layer norm in front. Images are
prepared as preprocessor_config.json says, without leaving the graph: the gradient reaches their pixels.

Dosovitskiy et al. 2021 (arXiv 2010.11929); Radford et al. 2021 (arXiv 2103.00020); Oquab et al. 2023
(arXiv 2304.07193), DINOv2; Perez-Garcia et al. 2025 (arXiv 2401.10815), Rad-DINO.
"""
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from storage.files import read_json, write_json
from storage.weights import is_count, load_strict, parse_config, read_weights, require, write_folder
from text_encoder import EOS, FIXED, CLIPTextModel, Encoder, Layer, TextConfig, Tokenizer

# ------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class Preprocessing:
    """(images: b 1 h w in [0, 1]) -> b 3 h' w'. Names and defaults equal those of transformers'
    CLIPImageProcessor and BitImageProcessor; here, nothing is rounded to whole grey values after resizing."""

    image_processor_type: str = "CLIPImageProcessor"
    size: int | dict = 224                # the shorter side's, or {"height": 224, "width": 224}
    do_center_crop: bool = True
    crop_size: int | dict = 224
    image_mean: tuple = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        kind, size, crop = self.image_processor_type, sides("size", self.size), ()
        require(str(kind).startswith(("CLIP", "Bit")), "image_processor_type", kind, "CLIP's or Bit's")
        if self.do_center_crop:
            crop = sides("crop_size", self.crop_size)
            require(max(crop) <= min(size), "crop_size", self.crop_size, f"at most size = {self.size}")
        for name, least in (("image_mean", -1e6), ("image_std", 1e-6)):
            value = getattr(self, name)
            require(isinstance(value, tuple) and len(value) == 3
                    and all(isinstance(v, (int, float)) and least <= v <= 1e6 for v in value),
                    name, value, "three numbers, above 0 those of image_std")

    def __call__(self, x: Tensor) -> Tensor:
        size, (h, w) = sides("size", self.size), x.shape[2:]
        if len(size) == 1:
            size = [int(size[0] * n / min(h, w)) for n in (h, w)]
        for pixels in ((h, size[-1]), size):   # bicubic overshoots, and Pillow clips after either side
            x = F.interpolate(x, pixels, mode="bicubic", antialias=True).clamp(0, 1)
        if self.do_center_crop:
            crop = sides("crop_size", self.crop_size)
            top, left = (x.shape[2] - crop[0]) // 2, (x.shape[3] - crop[-1]) // 2
            x = x[:, :, top:top + crop[0], left:left + crop[-1]]
        mean, std = x.new_tensor([self.image_mean, self.image_std])[..., None, None]  # 3 1 1 each
        return (x - mean) / std


# Keys of the three files that change the computation, with the only value this file computes (resampling 3
# is Pillow's bicubic one).
IMAGE_FIXED = {"do_resize": True, "resample": 3, "do_pad": False, "do_rescale": True,
               "feature_extractor_type": "CLIPFeatureExtractor",
               "rescale_factor": 1 / 255, "do_normalize": True}
DINO_FIXED = {"model_type": "dinov2", "num_channels": 3, "qkv_bias": True, "use_swiglu_ffn": False}
CLIP_FIXED = {"model_type": "clip_vision_model", "num_channels": 3}


def sides(name: str, value: object) -> tuple[int, ...]:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224} -> one side, or height and width"""
    if isinstance(value, dict) and set(value) in ({"shortest_edge"}, {"height", "width"}):
        found = tuple(value[key] for key in sorted(value))
    else:
        found = (value,)
    require(all(map(is_count, found)), name, value, "pixels, shortest_edge, or height and width")
    return found


def read_preprocessing(folder: Path, default: dict, patch: int) -> Preprocessing:
    """From transformers 5's processor_config.json, or preprocessor_config.json; without them the default,
    which is said: a network sees little in images of another kind than it was trained on."""
    path = folder / "processor_config.json"
    raw = read_json(path, missing={})
    if "image_processor" not in raw:
        path = folder / "preprocessor_config.json"
        raw = read_json(path, missing=default)
        if not path.exists():
            print(f"{folder}: no preprocessor_config.json; images are prepared with {default}")
    found = parse_config(raw.get("image_processor", raw), Preprocessing, IMAGE_FIXED, path)
    side = min(sides("", found.crop_size if found.do_center_crop else found.size))
    require(side >= patch, f"{path}: the side of an image", side, f"at least the patch_size, {patch}")
    return found


# ------------------------------------------------------------------------------------------------ the network


@dataclass(frozen=True)
class VisionConfig:
    """Names and defaults equal those of transformers' CLIPVisionConfig."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 224   # side of the images of its training, (image_size // patch_size)^2 patches
    patch_size: int = 32
    causal = False

    def __post_init__(self):
        TextConfig.__post_init__(self)
        require(self.image_size >= self.patch_size, "image_size", self.image_size,
                f"at least patch_size = {self.patch_size}")


class Embeddings(nn.Module):
    """(x: b 3 h w) -> b 1+n d: the class token and the patches, each plus where it stands."""

    def __init__(self, config: VisionConfig, dino: bool):
        super().__init__()
        d, patch = config.hidden_size, config.patch_size
        self.side = config.image_size // patch
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.patch_embedding = nn.Conv2d(3, d, patch, patch, bias=dino)
        self.position_embedding = nn.Embedding(1 + self.side**2, d)

    def forward(self, x: Tensor) -> Tensor:
        x, positions = self.patch_embedding(x), self.position_embedding.weight        # b d h w, 1+n d
        if x.shape[2:] != (self.side, self.side):   # not the size of its training
            grid = rearrange(positions[1:], "(h w) d -> 1 d h w", h=self.side)
            grid = F.interpolate(grid, x.shape[2:], mode="bicubic")
            positions = torch.cat([positions[:1], rearrange(grid, "1 d h w -> (h w) d")])
        x = rearrange(x, "b d h w -> b (h w) d")
        return torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + positions


class ScaledLayer(Layer):
    def __init__(self, config: VisionConfig):
        super().__init__(config)
        self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size))
        self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1 * self.self_attn(self.layer_norm1(x))
        return x + self.layer_scale2 * self.mlp(self.layer_norm2(x))


class VisionTransformer(nn.Module):
    """(x: b 3 h w, normalised) -> b d; names are the keys of transformers' CLIPVisionModel."""

    def __init__(self, config: VisionConfig, dino: bool = False):
        super().__init__()
        self.embeddings = Embeddings(config, dino)
        self.pre_layrnorm = (nn.Identity() if dino   # every file spells it so
                             else nn.LayerNorm(config.hidden_size, config.layer_norm_eps))
        self.encoder = Encoder(config, ScaledLayer if dino else Layer)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(x)))[:, 0])


# ------------------------------------------------------------------------------------------------ the two

# What Dinov2Config and the DINOv2 folders say where a file says nothing.
DINO = {"hidden_size": 768, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": 14}
DINO_IMAGES = {"size": 256, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# Dinov2Model's names, the published ones, in CLIP's words
DINO_NAMES = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding.weight",
    "patch_embeddings.projection.": "patch_embedding.", "encoder.layer.": "encoder.layers.",
    ".attention.attention.query.": ".self_attn.q_proj.", ".attention.attention.key.": ".self_attn.k_proj.",
    ".attention.attention.value.": ".self_attn.v_proj.", ".attention.output.dense.": ".self_attn.out_proj.",
    ".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".lambda1": "", "layernorm.": "post_layernorm."}


class Dinov2(VisionTransformer):
    prepare: Preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """(images: b 1 h w in [0, 1]) -> b d, transformers' pooler_output"""
        return super().forward(self.prepare(images))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Dinov2":
        """Read a Dinov2Model folder, any float type, as float32, frozen; ValueError names file and key."""
        path = Path(folder) / "config.json"
        raw = DINO | read_json(path)
        width, ratio = raw["hidden_size"], raw["mlp_ratio"]
        require(is_count(width), f"{path}: hidden_size", width, "a positive integer")
        require(is_count(ratio), f"{path}: mlp_ratio", ratio, "a positive integer")
        raw["intermediate_size"] = width * ratio
        config = parse_config(raw, VisionConfig, DINO_FIXED, path)
        weights, path = read_weights(Path(folder), "model")
        weights.pop("embeddings.mask_token", None)   # stood for hidden patches in training
        for key in list(weights):
            value, name = weights.pop(key), key
            for theirs, ours in DINO_NAMES.items():
                name = name.replace(theirs, ours)
            if name.startswith("embeddings.") and value.ndim == 3:   # 1 1 d and 1 1+n d
                value = value.squeeze(0).squeeze(0)
            weights[name] = value
        net = load_strict(lambda: cls(config, dino=True), weights, path)
        net.prepare = read_preprocessing(Path(folder), DINO_IMAGES, raw["patch_size"])
        return net.eval().requires_grad_(False)


class CLIPPair(nn.Module):
    """Text and image tower of a CLIP; names are the keys of transformers' CLIPModel."""

    def __init__(self, text: TextConfig, vision: VisionConfig, dim: int):
        super().__init__()
        self.text_model = CLIPTextModel(text)
        self.vision_model = VisionTransformer(vision)
        self.text_projection = nn.Linear(text.hidden_size, dim, bias=False)
        self.visual_projection = nn.Linear(vision.hidden_size, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))   # of its training; a cosine needs none

    def embed_images(self, images: Tensor) -> Tensor:
        """images: b 1 h w in [0, 1] -> b e, unit length"""
        return F.normalize(self.visual_projection(self.vision_model(self.prepare(images))), dim=-1)

    def embed_reports(self, reports: list[str]) -> Tensor:
        """-> b e, unit length; of the token that closes the report"""
        ids = self.tokenizer(reports)
        # Folders older than transformers 4.31 say 2, which it is not: there the highest id closes a report.
        end = (ids if self.closing == 2 else (ids == self.closing).int()).argmax(1)   # the first such place
        ids = ids[:, :end.max() + 1].to(self.logit_scale.device)   # later tokens never change earlier states
        states = self.text_model(ids)[torch.arange(len(ids)), end]
        return F.normalize(self.text_projection(states), dim=-1)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "CLIPPair":
        """Read a CLIPModel folder with its tokenizer, any float type, as float32, frozen; ValueError names
        file and key."""
        folder, path = Path(folder), Path(folder) / "config.json"
        raw, tokenizer = read_json(path), Tokenizer.from_pretrained(folder)
        require(raw.get("model_type") == "clip", f"{path}: model_type", raw.get("model_type"), "clip")
        parts = {}
        for name in ("text_config", "vision_config"):
            old = raw.get(f"{name}_dict")   # where older versions wrote it, it counts
            parts[name] = raw.get(name, {}) if old is None else old
        text = parse_config(parts["text_config"], TextConfig, FIXED, f"{path}: text_config")
        vision = parse_config(parts["vision_config"], VisionConfig, CLIP_FIXED, f"{path}: vision_config")
        dim, closing = raw.get("projection_dim", 512), parts["text_config"].get("eos_token_id", 49407)
        require(is_count(dim), f"{path}: projection_dim", dim, "a positive integer")
        require(closing in (2, tokenizer.vocab[EOS]), f"{path}: eos_token_id", closing,
                f"the tokenizer's {tokenizer.vocab[EOS]}")
        require(max(tokenizer.vocab.values()) < text.vocab_size, f"{path}: vocab_size", text.vocab_size,
                f"more than the tokenizer's highest id, {max(tokenizer.vocab.values())}")
        tokenizer.max_length = min(tokenizer.max_length, text.max_position_embeddings)
        weights, path = read_weights(folder, "model")
        for tower in ("text", "vision"):
            weights.pop(f"{tower}_model.embeddings.position_ids", None)   # 0, 1, 2, ...: old buffers
        pair = load_strict(lambda: cls(text, vision, dim), weights, path)
        pair.config, pair.tokenizer, pair.closing = raw, tokenizer, closing
        pair.prepare = read_preprocessing(folder, {"size": vision.image_size, "crop_size": vision.image_size},
                                          vision.patch_size)
        return pair.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the same layout, config.json last."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", asdict(self.prepare))
        config = {k: v for k, v in self.config.items() if k not in ("dtype", "torch_dtype")}   # float32 now
        write_folder(folder, self.state_dict(), "model", config)
