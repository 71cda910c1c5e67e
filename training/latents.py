"""The training images' latents, encoded once: float16 in RUN/state/latents-KEY/*.npy, SHARD images a file.
The key names images, autoencoder and SHARD; latents of others are removed.

A shard appears when it is whole; those that are there are not made again. Ranks share the shards out. Files
are memory-mapped: a batch touches its own images and no others.
"""
import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from storage.files import naming, replacing
from storage.pictures import unit
from training.loop import Run
from training.ranks import rank, ranks, wait_for_ranks
from vae import AutoencoderKL, at_once

SHARD = 4096   # images; an open file and its buffer each, 134 MB at 512 px


class Latents:
    """latents[index: b] -> b c h w, float32"""

    def __init__(self, paths: list[Path]):
        self.folder, self.shards = paths[0].parent, []
        for path in paths:
            with naming(f"{path}: damaged; delete it to encode anew: ", ValueError, OSError, EOFError):
                self.shards.append(np.load(path, mmap_mode="r"))

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = np.stack([self.shards[i // SHARD][i % SHARD] for i in index.tolist()])
        if not np.isfinite(rows).all():   # looked at here: all at once they would be read from end to end
            raise ValueError(f"{self.folder}: not finite; delete it to encode the images anew")
        return torch.from_numpy(rows).float()


@torch.no_grad()
def latent_cache(run: Run, vae: AutoencoderKL, train) -> Latents:
    """-> the training images' latents, scaled; what is missing of them is encoded, by all ranks."""
    n, side, few = len(train), train.size // vae.config.factor, at_once(train.size, run.device)
    shape = (vae.config.latent_channels, side, side)
    key = hashlib.sha256(next(vae.parameters()).detach().cpu().numpy().tobytes())
    key.update(f"{train.digest} {vae.config} {SHARD}".encode())
    folder = run.path("state", f"latents-{key.hexdigest()[:16]}")
    for other in set(run.path("state").glob("latents*")) - {folder} if rank() == 0 else ():
        print(f"latents: those in {other} are of other images or another autoencoder; made again")
        shutil.rmtree(other, ignore_errors=True)
    paths = [folder / f"{first:07d}.npy" for first in range(0, n, SHARD)]
    missing = [i for i in range(rank(), len(paths), ranks()) if not paths[i].is_file()]
    parts = [part for i in missing for part in torch.arange(n).split(SHARD)[i].split(few)]
    draw = train.stream(lambda step: parts[min(step, len(parts) - 1)])   # a step ahead
    steps = iter(tqdm(range(len(parts)), "latents", unit="batch", disable=rank() > 0 or not parts))
    for i in missing:
        rows = np.empty((min(SHARD, n - i * SHARD), *shape), np.float16)
        for first in range(0, len(rows), few):
            x = unit(draw(next(steps)), run.device) * 2 - 1
            mean, _ = vae.encode(x)
            rows[first:first + few] = (mean * vae.config.scaling_factor).cpu().numpy()
        with replacing(paths[i]) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    wait_for_ranks()   # all shards are there
    return Latents(paths)
