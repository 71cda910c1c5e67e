"""How fast images of an archive's size are decoded for training.

    python benchmarks/decoding.py [--images 128] [--size 256]

Writes made-up JPEG files of MIMIC-CXR-JPG's size (3056 x 2544; 2 MB) to a temporary folder and reads them as
train.py reads a large set (FolderChests.stream, batches of 8). Prints images a second, and what one image
costs in processor time.
"""
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

import numpy as np
import torch
from PIL import Image

import data
from chests.images import Row

BATCH = 8


def write_images(folder: Path, images: int) -> list[Row]:
    """Grain over a soft background, which compresses like a film."""
    rows, draw = [], np.random.default_rng(0)
    for i in range(images):
        soft = Image.fromarray(draw.integers(40, 215, (48, 40), dtype=np.uint8)).resize((2544, 3056))
        grain = draw.normal(0, 4, (3056, 2544))
        pixels = (np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=92)
        rows.append(Row(f"{i}.jpg", "", (0.0,) * 14, f"p{i}"))
    return rows


def speed(chests: data.FolderChests) -> float:
    """-> images a second, from the first batch asked for to the last"""
    batches = [*torch.arange(len(chests)).split(BATCH), torch.arange(0)]   # nothing follows the last
    stream = chests.stream(lambda step: batches[step])
    start = time.monotonic()
    for step in range(len(batches) - 1):
        stream(step)
    return len(chests) / (time.monotonic() - start)


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=256, help="pixels a side of what comes out [256]")
    args = parser.parse_args(argv)
    if args.images < BATCH:
        raise ValueError(f"--images {args.images}: expected {BATCH} or more")
    print("| images a second | processor milliseconds an image |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = write_images(Path(folder), args.images)
        chests = data.FolderChests("decoding", Path(folder), rows, args.size, "crop", None)
        before = time.process_time()
        rate = speed(chests)
        print(f"| {rate:.1f} | {1000 * (time.process_time() - before) / args.images:.0f} |")


if __name__ == "__main__":
    main()
