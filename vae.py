"""The image autoencoder of Stable Diffusion: an X-ray in [-1, 1] to a small latent, and back.

Module names equal the keys of the weight files. Latents here are unscaled: whoever diffuses them multiplies
by `config.scaling_factor`, which brings their standard deviation near 1, and divides again before `decode`.

Kingma & Welling 2014 (arXiv 1312.6114); Rombach et al. 2022 (arXiv 2112.10752), section 3.1.
"""
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from storage.weights import is_count, load_strict, read_config, read_weights, require, write_folder

# -------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class VAEConfig:
    """Names and defaults equal those of diffusers' vae/config.json."""

    sample_size: int = 32                          # side of its training images; multiples of `factor` work
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)    # one entry per resolution, full size first
    layers_per_block: int = 1                      # in the encoder; the decoder has one more
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215                # 1 / standard deviation of the latents

    @classmethod
    def tiny(cls):
        """Grey 64 px images on two CPU cores: 16 x 16 places keep the ribs, which 8 x 8 lose."""
        return cls(sample_size=64, in_channels=1, out_channels=1, block_out_channels=(16, 32, 64),
                   norm_num_groups=8, scaling_factor=1.0)

    @classmethod
    def small(cls):
        """Grey 256 px images on one GPU."""
        return cls(sample_size=256, in_channels=1, out_channels=1, block_out_channels=(64, 128, 256, 256),
                   scaling_factor=1.0)

    @classmethod
    def sd15(cls):
        return cls(sample_size=512, block_out_channels=(128, 256, 512, 512), layers_per_block=2)

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __post_init__(self):
        for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups"):
            require(is_count(getattr(self, name)), name, getattr(self, name), "a positive integer")
        widths = self.block_out_channels
        require(isinstance(widths, tuple) and len(widths) > 0 and all(is_count(c) for c in widths)
                and all(c % self.norm_num_groups == 0 for c in widths), "block_out_channels", widths,
                f"multiples of norm_num_groups = {self.norm_num_groups}")
        require(isinstance(self.scaling_factor, (int, float)) and 1e-3 <= self.scaling_factor <= 1e3,
                "scaling_factor", self.scaling_factor, "a number from 0.001 to 1000")


# Keys of config.json that change the computation, with the only value this file computes.
FIXED = {"_class_name": "AutoencoderKL", "act_fn": "silu", "mid_block_add_attention": True,
         "use_quant_conv": True, "use_post_quant_conv": True,
         "shift_factor": None, "latents_mean": None, "latents_std": None}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}   # at every level
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}   # until early 2023


# -------------------------------------------------------------------------------- blocks


def norm(channels: int, config: VAEConfig) -> nn.GroupNorm:
    # Not the UNet's 1e-5: black borders have almost no variance, so the difference would show there.
    return nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """(x: b c h w) -> b out h w"""

    def __init__(self, channels: int, out: int, config: VAEConfig):
        super().__init__()
        self.norm1 = norm(channels, config)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = norm(out, config)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """(x: b c h w) -> b c h w: one head, every pixel looks at every pixel."""

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.group_norm = norm(channels, config)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + rearrange(self.to_out[0](h), "b 1 (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Padding on the right and below only: an even side halves exactly, and the weights were trained so.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """The layers of one resolution, then the way to the next."""

    def __init__(self, channels: int, out: int, layers: int, config: VAEConfig, resample: str | None):
        super().__init__()
        inputs = [channels] + [out] * (layers - 1)
        self.resnets = nn.ModuleList([ResBlock(c, out, config) for c in inputs])
        self.downsamplers = nn.ModuleList([Downsample(out)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(out)] if resample == "up" else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = module(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(channels, channels, config) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, config)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """(x: b c h w) -> b 2*latent h/f w/f, shapes below are SD's at 512 px."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            Stage(widths[max(i - 1, 0)], width, config.layers_per_block, config,
                  "down" if i < len(widths) - 1 else None) for i, width in enumerate(widths)])
        self.mid_block = MidBlock(widths[-1], config)
        self.conv_norm_out = norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)                                     # b 3 512 512 -> b 128 512 512
        for stage in self.down_blocks:
            h = stage(h)                                        # -> 128 256 256 -> 256 128 128 -> 512 64 64
        h = self.mid_block(h)                                   # b 512 64 64
        return self.conv_out(F.silu(self.conv_norm_out(h)))     # -> b 8 64 64


class Decoder(nn.Module):
    """(z: b latent h w) -> b c f*h f*w, shapes below are SD's at 512 px."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], config)
        self.up_blocks = nn.ModuleList([
            Stage(widths[max(i - 1, 0)], width, config.layers_per_block + 1, config,
                  "up" if i < len(widths) - 1 else None) for i, width in enumerate(widths)])
        self.conv_norm_out = norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))                     # b 4 64 64 -> b 512 64 64
        for stage in self.up_blocks:
            h = stage(h)                                        # -> 512 128 128 -> 512 256 256 -> 128 512 512
        return self.conv_out(F.silu(self.conv_norm_out(h)))     # -> b 3 512 512


# -------------------------------------------------------------------------------- the autoencoder


def at_once(side: int, device: torch.device) -> int:
    """How many images of this side pass an autoencoder together: on a GPU 2 of 512 px, for its activations
    are the largest of all; on a CPU 32 of 64 px, as more leave the caches and take 1.4 times as long."""
    return max((2**17 if device.type == "cpu" else 2**19) // side**2, 1)


class AutoencoderKL(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        if not self.quant_conv.weight.is_meta:
            self.start()

    def start(self) -> None:
        """Initial weights: residual branches zero, the other convolutions orthogonal, little latent noise.

        Pixels pass nearly undistorted from the first step on: worth 1 dB in a short run.
        """
        for name, module in self.named_modules():
            if name.endswith(("conv2", "to_out.0")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.quant_conv.bias[self.config.latent_channels:], -6)   # noise std exp(-3)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(image: b c h w in [-1, 1]) -> mean and logvar of the latent, each b latent h/f w/f, unscaled.
        Grey images, b 1 h w, will do for any c.

        A sample is mean + exp(logvar / 2) * noise. logvar is kept in [-30, 20], so that exp stays finite.
        """
        image = image.expand(-1, self.config.in_channels, -1, -1)
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """(z: b latent h w, unscaled) -> image: b c f*h f*w, in about [-1, 1]"""
        return self.decoder(self.post_quant_conv(z))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "AutoencoderKL":
        """Read a diffusers vae/ folder, any float type, as float32; ValueError names file and key."""
        config = read_config(folder, VAEConfig, FIXED | BLOCKS)
        weights, path = read_weights(folder, "diffusion_pytorch_model")
        for key in [k for k in weights if ".attentions.0." in k]:
            *parents, name, parameter = key.split(".")
            value = weights.pop(key)
            if value.ndim == 4:                      # the oldest files have 1x1 convolutions here: c c 1 1
                value = value.squeeze(3).squeeze(2)
            weights[".".join([*parents, OLD_NAMES.get(name, name), parameter])] = value
        return load_strict(lambda: cls(config), weights, path)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, as diffusers does."""
        kinds = {key: [kind] * len(self.config.block_out_channels) for key, kind in BLOCKS.items()}
        write_folder(folder, self.state_dict(), "diffusion_pytorch_model",
                     {**FIXED, **kinds, **asdict(self.config)})
