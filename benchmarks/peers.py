"""Speed beside peers on the CPU: the same weights and the same work, at 2.5 and at 12 million parameters.

    python benchmarks/peers.py [--work sampling step round] [--size tiny large] [--repeats 7]

    sampling   guided images (w = 5) with diffusers' pipeline: text encoder, DDIM steps, decoder
    step       one supervised step with a plain diffusers loop: UNet2DConditionModel, torch's AdamW, clipping,
               EMAModel; latents and embeddings are given to both
    round      one round of reinforcement learning with trl 0.23.1's DDPOTrainer (gpu.ddpo_rounds)

One thread. Ours and theirs alternate; a row has both medians, and the median of the ratios of neighbours: on
a busy machine the last holds longest. trl imports after `pip install --no-deps trl==0.23.1 peft accelerate
datasets`, in an environment of its own; where a peer is not installed its row is left out.
"""
import dataclasses
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

import torch
from gpu import REPORT, ddpo_rounds, diffusers_unet, random_pipeline, random_rewards
from torch import nn

from rl import RLConfig
from sample import Pipeline, generate, seeded_noise
from training import loop, options

WIDEN = {"tiny": 1, "large": 2.25}   # the preset's UNet, and a wider one
Pair = tuple[Callable, Callable]


def paired(ours: Callable, theirs: Callable, repeats: int) -> tuple[float, float, float]:
    """-> median seconds of each, and the median of theirs / ours; one call of each is not counted"""
    times = []
    for _ in range(repeats + 1):
        row = []
        for work in (ours, theirs):
            start = time.perf_counter()
            work()
            row.append(time.perf_counter() - start)
        times.append(row)
    first, second = zip(*times[1:], strict=True)
    ratios = [b / a for a, b in times[1:]]
    return statistics.median(first), statistics.median(second), statistics.median(ratios)


def sampling(folder: Path, images: int, steps: int) -> Pair:
    import diffusers
    pipe = Pipeline.load(folder)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    reports, seeds = [REPORT] * images, list(range(images))
    start = seeded_noise(seeds, 1, pipe.latent_shape)[:, 0]

    def draw() -> torch.Tensor:
        return theirs(reports, latents=start.clone(), num_inference_steps=steps, eta=0.0, guidance_scale=5.0,
                      output_type="pt").images

    def ours() -> torch.Tensor:
        return generate(pipe, reports, seeds, steps, 5.0, 0.0)

    assert (ours() - draw()).abs().max() < 1e-3   # seeded_noise begins with the same x_T for any steps
    return ours, draw


def step(folder: Path, images: int, steps: int) -> Pair:
    """Both minimise the same loss on the same batch; ours as training/loop.py does."""
    from diffusers.training_utils import EMAModel
    pipe = Pipeline.load(folder)
    unet, theirs = pipe.unet.train(), diffusers_unet(pipe, torch.device("cpu")).train()
    ema = [p.detach().clone() for p in unet.parameters()]
    moving = EMAModel(theirs.parameters(), decay=0.995)
    optimizer = loop.make_optimizer(unet.parameters(), 1e-6)
    plain = torch.optim.AdamW(theirs.parameters(), 1e-6)
    side, context = pipe.latent_shape, pipe.embed([REPORT] * images).detach()
    x, target = torch.randn(2, images, *side)
    t = torch.randint(1000, (images,))

    def update(network, optimizer, predict: Callable) -> None:
        loss = (predict(x, t, context) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def our_step() -> None:
        update(unet, optimizer, unet)
        torch._foreach_lerp_(ema, [p.detach() for p in unet.parameters()], 0.005)

    def their_step() -> None:
        update(theirs, plain, lambda x, t, c: theirs(x, t, c).sample)
        moving.step(theirs.parameters())

    return our_step, their_step


def a_round(folder: Path, images: int, steps: int) -> Pair | None:
    sizes, device = options.preset("tiny"), torch.device("cpu")
    nets = random_rewards(sizes, Pipeline.load(folder).tokenizer, device)
    return ddpo_rounds(folder, nets, images, steps, RLConfig(), device)


WORK = {"sampling": sampling, "step": step, "round": a_round}


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--size", nargs="+", choices=WIDEN, default=list(WIDEN))
    parser.add_argument("--images", type=int, default=16, help="a batch, and a round")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, CPU, 1 thread, {args.images} images, {args.steps} steps, "
          f"{args.repeats} pairs\n\n| work | parameters | ours, s | theirs, s | theirs / ours |\n"
          + "|---" * 5 + "|")
    for size in args.size:
        sizes = options.preset("tiny")
        widths = tuple(int(WIDEN[size] * width) for width in sizes.unet.block_out_channels)
        groups = math.gcd(*widths, sizes.unet.norm_num_groups)
        unet = dataclasses.replace(sizes.unet, block_out_channels=widths, norm_num_groups=groups)
        with tempfile.TemporaryDirectory() as folder:
            pipe = random_pipeline(dataclasses.replace(sizes, unet=unet), torch.device("cpu"))
            pipe.save(Path(folder))
            million = sum(p.numel() for p in pipe.unet.parameters()) / 1e6
            for name in args.work:
                try:
                    pair = WORK[name](Path(folder), args.images, args.steps)
                except ImportError:
                    pair = None
                if pair is not None:
                    ours, theirs, ratio = paired(*pair, args.repeats)
                    print(f"| {name} | {million:.1f} M | {ours:.3f} | {theirs:.3f} | {ratio:.2f} |",
                          flush=True)


if __name__ == "__main__":
    main()
