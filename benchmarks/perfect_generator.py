"""How alike the images of one report would be, drawn by a perfect generator: what MS-SSIM can be asked for.

    python benchmarks/perfect_generator.py [RUN: newest under runs/]

For the reports that evaluate.py uses for MS-SSIM, the phantom itself draws four other patients with the very
same findings, and RUN's autoencoder encodes and decodes the films. One row for each share of badly positioned
films: the judge's posture deviation, and MS-SSIM. A model as varied as the data moves down this table as it
repairs posture. Less alike at the same posture is only one that draws what the data do not have, or findings
that were not asked for.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import evaluate  # noqa: E402
from chests import phantom  # noqa: E402
from chests.patients import ANATOMY, patients, uniform  # noqa: E402
from evaluation.judge import IDENTITY, load_judge, look  # noqa: E402
from sample import Pipeline, newest_run  # noqa: E402
from storage.pictures import grey  # noqa: E402

SHARES = (0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0)
STRANGERS = 10**7     # indices that no split uses


def films(findings: list, number: int, seed: int, share: float, size: int = 64) -> Tensor:
    """One patient's findings -> COPIES 1 h w in [0, 1], in other patients, a share badly positioned."""
    index = STRANGERS + evaluate.COPIES * number + np.arange(evaluate.COPIES)
    bodies = uniform(seed, index, ANATOMY, len(phantom.RANGES)).tolist()
    poses = phantom.postures(seed, index, share).tolist()
    drawn = [phantom.draw(size, pose, u, findings) + phantom.NOISE * phantom.grain(seed, int(i), size)
             for pose, u, i in zip(poses, bodies, index, strict=True)]
    return torch.from_numpy(np.stack(drawn)).float().clamp(0, 1)[:, None]


@torch.no_grad()
def through(pipe: Pipeline, images: Tensor) -> Tensor:
    """b 1 h w -> b 1 h w, what the autoencoder keeps of them"""
    mean, _ = pipe.vae.encode(images.expand(-1, pipe.vae.config.in_channels, -1, -1) * 2 - 1)
    return grey(pipe.decode(mean * pipe.vae.config.scaling_factor))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    run = parser.parse_args(argv).run or newest_run()
    config, pipe = evaluate.read_config(run), Pipeline.load(run / "anchor")
    if config["data"] != "phantom":
        raise ValueError(f"{run}: made with --data {config['data']}; expected a run on phantoms")
    sets = evaluate.load_sets(run, config, pipe)
    judge = load_judge(run / "state" / "judge.safetensors", sets["judge"], torch.device("cpu"))
    yard, test = evaluate.make_yardstick(judge, sets, config["eval_reports"], config["seed"]), sets["test"]
    asked = patients(test.seed, test.start + yard.index[:yard.similar].numpy())
    print("| badly positioned | posture_deviation | ms_ssim |\n|---|---|---|")
    for share in SHARES:
        groups = [through(pipe, films(findings, i, test.seed, share, test.size))
                  for i, findings in enumerate(asked)]
        deviation = (look(judge, torch.cat(groups))["psi"] - IDENTITY).abs().sum(1).mean()
        print(f"| {share:.2f} | {deviation:.3f} | {evaluate.similarity(groups).mean():.3f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
