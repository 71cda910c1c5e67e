"""The UNet of Stable Diffusion 1.x and 2.x: noisy latent, timestep and text embeddings in, noise (or v) out.

Module names equal the keys of the weight files. What is written here opens in diffusers, and the reverse.

Rombach et al. 2022 (arXiv 2112.10752) describe the network, Vaswani et al. 2017 the attention, Shazeer 2020
(arXiv 2002.05202) the gated feed-forward layer, Hu et al. 2021 (arXiv 2106.09685) LoRA.
"""
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from storage.files import keep_tensors, read_json
from storage.weights import is_count, load_strict, read_config, read_weights, require, write_folder

# -------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class UNetConfig:
    """Names and defaults equal those of diffusers' unet/config.json; lists go from the finest level down."""

    sample_size: int | None = None                 # side of the latents it is trained on; any side works
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3   # coarsest first
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2                      # on the way down; one more on the way up
    norm_num_groups: int = 32
    cross_attention_dim: int = 1280                # width of the text embeddings
    attention_head_dim: int | tuple[int, ...] = 8  # NUMBER of heads: a misnomer that every file keeps
    use_linear_projection: bool = False            # around the transformers: Linear (SD 2) or 1x1 convolution

    @classmethod
    def tiny(cls):
        """64 px on two CPU cores."""
        return cls(sample_size=16, block_out_channels=(32, 64, 96),
                   down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",),
                   up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * 2, layers_per_block=1,
                   norm_num_groups=16,
                   cross_attention_dim=128, attention_head_dim=4, use_linear_projection=True)

    @classmethod
    def small(cls):
        """256 px from scratch on one GPU."""
        return cls(sample_size=32, block_out_channels=(192, 384, 576), cross_attention_dim=512,
                   down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                   up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), attention_head_dim=(3, 6, 9),
                   use_linear_projection=True)

    @classmethod
    def sd15(cls):
        return cls(sample_size=64, cross_attention_dim=768)

    @classmethod
    def sd21(cls):
        return cls(sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
                   use_linear_projection=True)

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads at each resolution."""
        n = self.attention_head_dim
        return n if isinstance(n, tuple) else (n,) * len(self.block_out_channels)

    def __post_init__(self):
        counts = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim")
        for name in counts:
            require(is_count(getattr(self, name)), name, getattr(self, name), "a positive integer")
        require(self.sample_size is None or is_count(self.sample_size) and self.sample_size <= 512,
                "sample_size", self.sample_size, "a positive integer up to 512: images are square")
        widths, groups = self.block_out_channels, self.norm_num_groups
        require(isinstance(widths, tuple) and len(widths) > 0 and all(map(is_count, widths)),
                "block_out_channels", widths, "a list of positive integers")
        require(all(width % groups == 0 and width % 2 == 0 for width in widths),
                "block_out_channels", widths, f"even multiples of norm_num_groups = {groups}")
        for name, way in (("down_block_types", "Down"), ("up_block_types", "Up")):
            kinds, known = getattr(self, name), (f"CrossAttn{way}Block2D", f"{way}Block2D")
            require(isinstance(kinds, tuple) and len(kinds) == len(widths) and set(kinds) <= set(known),
                    name, kinds, f"{len(widths)} entries, each {known[0]} or {known[1]}")
        require(len(self.heads) == len(widths) and all(map(is_count, self.heads))
                and all(width % heads == 0 for width, heads in zip(widths, self.heads, strict=True)),
                "attention_head_dim", self.attention_head_dim, f"one divisor of each width in {widths}")


# Keys of config.json that change the computation, with the only value this file computes.
FIXED = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "norm_eps": 1e-05, "flip_sin_to_cos": True,
    "freq_shift": 0, "center_input_sample": False, "mid_block_scale_factor": 1, "downsample_padding": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "dropout": 0.0,
    "mid_block_only_cross_attention": None, "dual_cross_attention": False, "num_attention_heads": None,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "class_embed_type": None, "num_class_embeds": None,
    "addition_embed_type": None, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "attention_type": "default", "cross_attention_norm": None,
    "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None,
}


# -------------------------------------------------------------------------------- blocks


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """(t: b) -> b dim, float32: cosines, then sines, of t at dim/2 frequencies from 1 to nearly 1/10000."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def layout(device: torch.device | str) -> torch.memory_format:
    """Channels last, the faster one for convolutions, where group norms keep it. CUDA's return channels first
    (pytorch issue 111824): before each norm, and behind it, such a network would copy."""
    x = torch.zeros(1, 2, 2, 2, device=device).to(memory_format=torch.channels_last)
    kept = F.group_norm(x, 1).is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if kept else torch.contiguous_format


def rows(x: Tensor, many: int) -> Tensor:
    """(x: b ...) -> many ...; a batch that was still one for both branches of guidance is put twice."""
    return x if len(x) == many else torch.cat([x] * (many // len(x)))


class TimestepEmbedding(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, emb: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(emb)))


class ResBlock(nn.Module):
    """(x: b c h w, temb: b e) -> b out h w. The timestep enters as one offset for each channel."""

    def __init__(self, channels: int, out: int, temb: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-5)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb, out)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-5)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + rows(rearrange(self.time_emb_proj(temb), "b c -> b c 1 1"), len(h))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """(x: b n d, of the context: keys, values: b heads m d) -> b n d: n tokens look at the context's m."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(context: b m e) -> its keys and values"""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(self.split(self.to_q(x)), keys, values)
        return self.to_out[0](rearrange(out, "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))   # 1: dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(dim), Attention(dim, dim, heads)
        self.norm2, self.attn2 = nn.LayerNorm(dim), Attention(dim, context_dim, heads)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        h = self.norm1(x).to(x.dtype)                   # under autocast a norm's answer is float32
        x = x + self.attn1(h, *self.attn1.read(h))      # pixels look at pixels
        x = rows(x, len(text[0]))                       # from here on branches of guidance differ
        x = x + self.attn2(self.norm2(x), *text)        # pixels look at the report
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """(x: b c h w, text: keys and values of the report) -> b c h w. Pixels become tokens and pixels again."""

    def __init__(self, channels: int, context_dim: int, heads: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)   # not the 1e-5 of the other norms
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        h, x = self.norm(x), rows(x, len(text[0]))
        if self.linear:       # SD 2 projects the tokens, SD 1 the pixels
            h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
            h = self.proj_out(self.transformer_blocks[0](h, text))
            return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
        h = rearrange(self.proj_in(h), "b c h w -> b (h w) c").contiguous()   # else each norm copies it
        h = rearrange(self.transformer_blocks[0](h, text), "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h)


class Resample(nn.Module):
    """Halves the side by a convolution of stride 2, or repeats pixels up to `size` before one of stride 1."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.conv(x if size is None else F.interpolate(x, size=size, mode="nearest"))


class Stage(nn.Module):
    """The layers of one resolution: `inputs` are their input widths, `layer(i, ...)` runs the i-th one."""

    def __init__(self, inputs: list[int], out: int, config: UNetConfig, heads: int, resample: str | None):
        super().__init__()
        groups, temb = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList([ResBlock(c, out, temb, groups) for c in inputs])
        self.attentions = nn.ModuleList([
            Transformer(out, config.cross_attention_dim, heads, groups, config.use_linear_projection)
            for _ in inputs] if heads else [])
        self.downsamplers = nn.ModuleList([Resample(out, 2)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Resample(out, 1)] if resample == "up" else [])

    def layer(self, i: int, x: Tensor, temb: Tensor, text: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.resnets[i](x, temb)
        return self.attentions[i](x, text[i]) if i < len(self.attentions) else x


# -------------------------------------------------------------------------------- the network


class UNet2DConditionModel(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False   # True: backward computes layers again; less memory, more time
        widths, heads, n = config.block_out_channels, config.heads, config.layers_per_block
        first, last, steps = widths[0], widths[-1], len(widths) - 1
        # 0 heads: a level without attention
        heads_down = [k * ("Cross" in kind) for k, kind in zip(heads, config.down_block_types, strict=True)]
        heads_up = [k * ("Cross" in kind) for k, kind in zip(heads[::-1], config.up_block_types, strict=True)]

        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, 4 * first)
        self.down_blocks, skips, width = nn.ModuleList(), [first], first   # skips: widths that forward keeps
        for i, out in enumerate(widths):
            inputs = [width] + [out] * (n - 1)
            self.down_blocks.append(Stage(inputs, out, config, heads_down[i], "down" if i < steps else None))
            skips += [out] * (n + (i < steps))
            width = out
        self.mid_block = Stage([last, last], last, config, heads[-1], None)
        del self.mid_block.attentions[1]      # ResBlock, Transformer, ResBlock
        self.up_blocks = nn.ModuleList()
        for i, out in enumerate(reversed(widths)):
            inputs = [(width if j == 0 else out) + skips.pop() for j in range(n + 1)]
            self.up_blocks.append(Stage(inputs, out, config, heads_up[i], "up" if i < steps else None))
            width = out
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first, eps=1e-5)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        # As in latent diffusion, every residual branch starts at zero, and so does the output.
        for name, module in self.named_modules():
            if name.rpartition(".")[2] in ("conv2", "proj_out", "conv_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def read(self, context: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
        """(context: b n d) -> keys and values of each attention of each stage. They are the same at every
        denoising step: whoever takes many steps reads once, and gives `forward` this instead."""
        return [[attention.transformer_blocks[0].attn2.read(context) for attention in stage.attentions]
                for stage in (*self.down_blocks, self.mid_block, *self.up_blocks)]

    def forward(self, x: Tensor, t: Tensor, context: Tensor | list) -> Tensor:
        """(x: b c h w, t: b in 0..999, context: b n d) -> b c h w. Sizes in the comments: SD at 512 px.

        A context of 2 b rows has guidance's two branches for each x; until the text is first looked at, they
        are one computation. The result then has 2 b rows, too.
        """
        texts = iter(self.read(context) if isinstance(context, Tensor) else context)   # one for each stage
        layer = Stage.layer
        if self.gradient_checkpointing and torch.is_grad_enabled():
            layer = partial(checkpoint, Stage.layer, use_reentrant=False)
        temb = timestep_embedding(t, self.config.block_out_channels[0]).to(x.dtype)
        temb = F.silu(self.time_embedding(temb))             # b 320 -> b 1280; every ResBlock wants its SiLU

        h = self.conv_in(x)                                  # b 4 64 64 -> b 320 64 64
        skips = [h]
        for stage in self.down_blocks:                       # b 320 64 64 -> 640 32 32 -> ... -> 1280 8 8
            text = next(texts)
            for i in range(len(stage.resnets)):
                h = layer(stage, i, h, temb, text)
                skips.append(h)
            for downsample in stage.downsamplers:
                h = downsample(h)
                skips.append(h)

        text = next(texts)
        for i in range(len(self.mid_block.resnets)):         # b 1280 8 8
            h = layer(self.mid_block, i, h, temb, text)

        for stage in self.up_blocks:                         # b 1280 8 8 -> 1280 16 16 -> ... -> 320 64 64
            text = next(texts)
            for i in range(len(stage.resnets)):
                h = torch.cat([h, rows(skips.pop(), len(h))], dim=1)
                h = layer(stage, i, h, temb, text)
            for upsample in stage.upsamplers:
                h = upsample(h, skips[-1].shape[2:])         # the skip's size, which may be odd

        return self.conv_out(F.silu(self.conv_norm_out(h)))  # b 320 64 64 -> b 4 64 64

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "UNet2DConditionModel":
        """Read a diffusers unet/ folder, any float type, as float32; ValueError names file and key."""
        config = read_config(folder, UNetConfig, FIXED)
        return load_strict(lambda: cls(config), *read_weights(folder, "diffusion_pytorch_model"))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, as diffusers does."""
        require(not lora_layers(self), "LoRA", "in this UNet", "merge_lora or save_lora")
        write_folder(folder, self.state_dict(), "diffusion_pytorch_model", {**FIXED, **asdict(self.config)})


def read_unet_config(folder: Path | str) -> UNetConfig:
    """FOLDER/config.json as StableDiffusionPipeline takes it, which puts 64 in place of a smaller sample_size
    in files of diffusers below 0.9."""
    config = read_config(folder, UNetConfig, FIXED)
    version = read_json(Path(folder) / "config.json").get("_diffusers_version")
    old = isinstance(version, str) and re.match(r"0\.[0-8]\.", version)
    return replace(config, sample_size=64) if old and (config.sample_size or 64) < 64 else config


# -------------------------------------------------------------------------------- LoRA


class LoRALinear(nn.Linear):
    """y = W x + b + B A x, with W and b frozen (Hu et al. 2021, eq. 3; alpha = rank); B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias        # the very same parameters, not copies
        # Trained, so float32 whatever the type of the frozen weights.
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        x = x if torch.is_autocast_enabled(x.device.type) else x.float()   # autocast would take it back
        return out + self.lora_B(self.lora_A(x)).to(out.dtype)


def lora_layers(unet: UNet2DConditionModel) -> dict[str, LoRALinear]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoRALinear)}


def add_lora(unet: UNet2DConditionModel, rank: int) -> nn.ModuleList:
    """Freeze the UNet, give each Linear layer of its attentions a LoRA; returns what is trained."""
    require(not lora_layers(unet), "LoRA", "in this UNet already", "one at a time")
    unet.requires_grad_(False)
    for name, module in list(unet.named_modules()):
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            unet.set_submodule(name, LoRALinear(module, rank))
    layers = lora_layers(unet).values()
    return nn.ModuleList([half for layer in layers for half in (layer.lora_A, layer.lora_B)])


class LoRASnapshot:
    """A UNet with its LoRA as it is now (a new one changes nothing: the anchor), whatever becomes of it:
    frozen, without a second copy of the weights."""

    def __init__(self, unet: UNet2DConditionModel):
        self.unet, self.config = unet, unet.config
        self.lora = {name: p.detach().clone() for name, p in unet.named_parameters() if ".lora_" in name}

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return torch.func.functional_call(self.unet, self.lora, (x, t, context))

    def read(self, context: Tensor) -> Tensor:
        return context   # keys and values are read anew, by its own weights


def save_lora(unet: UNet2DConditionModel, folder: Path | str) -> None:
    """Write pytorch_lora_weights.safetensors, as diffusers' `load_lora_weights` reads it."""
    weights = {f"unet.{key}": value for key, value in unet.state_dict().items() if ".lora_" in key}
    rank = next(len(value) for key, value in weights.items() if ".lora_A." in key)
    metadata = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": sorted(lora_layers(unet))}
    keep_tensors(Path(folder) / "pytorch_lora_weights.safetensors", weights,
                 {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})


@torch.no_grad()
def merge_lora(unet: UNet2DConditionModel, folder: Path | str) -> UNet2DConditionModel:
    """The UNet of a folder, with this one's LoRA put into its float32 weights: an ordinary UNet."""
    plain = UNet2DConditionModel.from_pretrained(folder)
    plain.config = unet.config   # as the pipeline takes it (read_unet_config)
    for name, layer in lora_layers(unet).items():
        plain.get_submodule(name).weight += layer.lora_B.weight.cpu() @ layer.lora_A.weight.cpu()   # no TF32
    return plain
