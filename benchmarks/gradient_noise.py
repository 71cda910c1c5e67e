"""How much of a round's gradient is signal: the cosine of the policy gradients of independent rounds.

    python benchmarks/gradient_noise.py RUN [--rounds 4]

Each round has its own reports and noise; all start at RUN/anchor, and none moves it. Of a gradient g + noise
the cosine of two is |g|^2 / (|g|^2 + |noise|^2): 1 without noise. KL and ACE are left out. Prints, for each
way to credit the steps, the mean cosine over all pairs of rounds, its standard error over rounds (jackknife),
and seconds a round.
"""
import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import evaluate  # noqa: E402
from rewards import Rewards  # noqa: E402
from rl import RLConfig, rl_round, start_policy  # noqa: E402
from sample import Pipeline, SampleConfig  # noqa: E402
from training.loop import batch_index  # noqa: E402

VARIANTS = {
    "the end alone, steps alike (DDPO)": {"values": 0, "balance": False},
    "the end alone, steps balanced": {"values": 0, "balance": True},
    "promises, steps alike": {"balance": False},
    "promises, steps balanced": {"balance": True},
}


class Gradient:
    """Stands where the optimizer does and keeps what it is given."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        self.param_groups = [{"params": parameters}]

    def step(self) -> None:
        self.found = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])


def gradients(run: Path, reports: list[str], sampling: SampleConfig, config: RLConfig,
              rounds: int) -> tuple[Tensor, float]:
    """-> the gradient of each round: r n, of unit length; seconds a round"""
    config = dataclasses.replace(config, updates=1, inner_epochs=1, kl=0.0, ace=False)
    pipe, anchor, _, groups = start_policy(run / "anchor", torch.device("cpu"), config)
    nets, optimizer, found = Rewards.load(run / "rewards"), Gradient(groups[0]["params"]), []
    images, start = config.reports * config.group, time.monotonic()
    for r in range(rounds):
        rows = batch_index(len(reports), config.reports, 1, r).tolist()
        chosen = [reports[i] for i in rows for _ in range(config.group)]
        rl_round(pipe, anchor, nets, chosen, list(range(r * images, (r + 1) * images)), sampling, config,
                 optimizer)
        found.append(optimizer.found / optimizer.found.norm())
    return torch.stack(found), (time.monotonic() - start) / rounds


def cosine(units: Tensor) -> tuple[float, float]:
    """r n -> mean cosine over pairs, jackknife standard error"""
    def mean(of: Tensor) -> Tensor:
        return (of.sum() - of.trace()) / (len(of) * (len(of) - 1))

    products, r = units @ units.T, len(units)
    without = torch.stack([mean(products[keep][:, keep]) for keep in
                           (torch.arange(r) != i for i in range(r))])
    return mean(products).item(), ((r - 1) * without.var(unbiased=False)).sqrt().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with anchor and rewards")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each kind, at least 3 [4]")
    args = parser.parse_args(argv)
    if args.rounds < 3:
        raise ValueError(f"--rounds {args.rounds}: expected 3 or more")
    config = evaluate.read_config(args.run)
    sampling, rl = (kind(**{f.name: config[f.name] for f in dataclasses.fields(kind) if f.name in config})
                    for kind in (SampleConfig, RLConfig))
    reports = evaluate.load_sets(args.run, config, Pipeline.load(args.run / "anchor"))["train"].reports
    print("| credit | cosine of two rounds' gradients | seconds a round |\n|---|---|---|")
    for name, changes in VARIANTS.items():
        units, seconds = gradients(args.run, reports, sampling, dataclasses.replace(rl, **changes),
                                   args.rounds)
        value, error = cosine(units)
        print(f"| {name} | {value:.3f} +- {error:.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
