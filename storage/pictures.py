"""Pictures for people: labelled grids, and PNG files that say how they were made."""
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from storage.files import replacing


def unit(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """b 1 h w uint8 -> float32 in [0, 1] on the device"""
    return images.to(device, non_blocking=True).float() / 255


def grey(images: Tensor) -> Tensor:
    """b c h w -> b 1 h w; X-rays have one channel, Stable Diffusion's VAE has three."""
    return images.mean(1, keepdim=True)


def picture_grid(rows: list[tuple[str, Tensor]], cell: int = 160) -> Image.Image:
    """Rows of (label, images: n c h w; below 0 is black, above 1 white) -> one labelled picture;
    every image is drawn cell pixels wide."""
    font = ImageFont.load_default(13)
    width = max(len(images) for _, images in rows) * cell
    blocks = []
    for label, images in rows:
        lines = textwrap.wrap(label, max(width // 7, 20)) or [""]
        block = Image.new("L", (width, 18 * len(lines) + 6 + cell), 255)
        ImageDraw.Draw(block).multiline_text((4, 2), "\n".join(lines), fill=0, font=font)
        for i, image in enumerate((grey(images)[:, 0].clamp(0, 1) * 255).round().byte().cpu()):
            tile = Image.fromarray(image.numpy()).resize((cell, cell), Image.Resampling.BICUBIC)
            block.paste(tile, (i * cell, block.height - cell))
        blocks.append(np.asarray(block))
    return Image.fromarray(np.concatenate(blocks))


def save_png(image: Image.Image, path: Path, **text: object) -> None:
    """Write a PNG whose text chunks say that it is synthetic and how to make it again."""
    info = PngInfo()
    for key, value in {"synthetic": "true", **text}.items():
        info.add_itxt(key, str(value))
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def png_text(path: Path) -> dict[str, str] | None:
    """The text chunks of a picture, which a PNG alone has; None where it is absent or damaged."""
    with suppress(OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError):
        if path.is_file():   # a pipe would never end
            with Image.open(path) as image:
                image.load()
                return dict(getattr(image, "text", {}))
    return None


def read_png(path: Path) -> Tensor:
    """-> 1 1 h w in [0, 1]"""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("L")))[None, None] / 255
