"""What the generated images are good for: a classifier taught by them, tested on real held-out X-rays.

    python benchmarks/utility.py [RUN: newest under runs/] [--images N] [--steps 400] [--seed 0]

One small network (rewards.DiagnosisNet, freshly initialised, the same weights each time) learns the findings

    real            from N training images
    anchor, cxrl    from N images that RUN/anchor or RUN/cxrl draws for the reports of these N images
    real + ...      from both

in equally many optimizer steps of equally many images: "both" has more to see but no more time. Labels are
those of the reports, whatever the image (uncertain ones left out, not mentioned is absent). The test is the
macro AUROC on all images of the test split, against the truth where the data has it (phantoms) and else
against their reports. Intervals are bootstrapped over test images, the same resamples for each row, so the
differences to `real` are paired; chance in training is not in them: other seeds show it.

Prints a Markdown table and writes RUN/utility.json.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew", 2)

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import evaluate
import sample
from evaluation import metrics
from evaluation.judge import prompt_labels
from evaluation.metrics import FEWEST
from evaluation.results import by_finding, cell, summary
from rewards import DiagnosisNet, RewardConfig
from storage.files import git_revision, write_json
from storage.pictures import unit
from training import loop

IMAGES = 1024
SIDE = 224              # px; larger images are reduced
BATCH, RATE = 64, 2e-3  # images a step; peak learning rate


def reduced(images: Tensor) -> Tensor:
    """b 1 h w in [0, 1] or uint8 -> b 1 h w uint8, at most SIDE pixels a side"""
    if not images.is_floating_point():
        images = unit(images)
    if images.shape[-1] > SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (images * 255).round().clamp(0, 255).byte()


def pictures(chests, index: Tensor) -> Tensor:
    """-> n 1 h w uint8 of these rows, a batch at a time in full size"""
    return torch.cat([reduced(chests.images(part)) for part in index.split(BATCH)])


def taught(images: Tensor, labels: Tensor, steps: int, seed: int, device: torch.device,
           name: str) -> DiagnosisNet:
    """(images: n 1 h w uint8, labels: n 14 in {1, 0, nan ignored}) -> a network that learned them"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DiagnosisNet(RewardConfig.tiny()).to(device)
    optimizer = loop.make_optimizer(net.parameters(), RATE)
    targets = labels.nan_to_num(-1)   # what DiagnosisNet.loss leaves out
    for step in tqdm(range(steps), name, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(step, steps, RATE)
        index = loop.batch_index(len(images), BATCH, seed, step)
        loss, _ = net.loss(unit(images[index], device), targets[index].to(device))
        if not math.isfinite(loss.item()):
            raise ValueError(f"{name}: loss is {loss.item()} at step {step}, seed {seed}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def tested(net: DiagnosisNet, images: Tensor, labels: Tensor, seed: int, device: torch.device) -> Tensor:
    """(images: n 1 h w uint8, labels: n 14) -> 1+r 14, the AUROC of each finding and its resamples"""
    scores = torch.cat([net(unit(x, device)).float().cpu() for x in images.split(BATCH)])
    return metrics.auroc(scores, labels, metrics.resampling(len(images), evaluate.RESAMPLES, seed))


def draw(run: Path, pipes: dict[str, sample.Pipeline], reports: list[str], seed: int) -> dict[str, Tensor]:
    """-> system: n 1 h w uint8, one image a report, from the same noise for each"""
    settings = sample.run_settings(run).arguments()
    first = 2 * 10**12 + 10**7 * seed   # far from the seeds of training and of evaluate.py
    seeds = [first + i for i in range(len(reports))]
    batch = evaluate.read_config(run).get("rl_batch", evaluate.BATCH)
    return {name: reduced(evaluate.draw_all(pipe, reports, seeds, settings, name, batch))
            for name, pipe in pipes.items()}


def measure(run: Path, images: int | None, steps: int, seed: int, device: torch.device) -> dict:
    """-> what RUN/utility.json holds. ValueError for an unfinished run and for values out of range."""
    if steps < 1:
        raise ValueError(f"--steps {steps}: expected 1 or more")
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: expected 0 to 2^31 - 1")
    config = evaluate.read_config(run)
    pipes = {name: sample.Pipeline.load(run / name, device) for name in ("anchor", "cxrl")}
    sets = evaluate.load_sets(run, config, pipes["anchor"])
    train, test = sets["train"], sets["test"]
    n = min(IMAGES, len(train)) if images is None else images
    if not FEWEST <= n <= len(train):
        raise ValueError(f"--images {n}: expected {FEWEST} to {len(train)}, the images of the train split")
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
    real, labels = pictures(train, index), prompt_labels(train.labels[index])
    truth = prompt_labels(test.labels) if test.truth is None else test.truth
    held_out = pictures(test, torch.arange(len(test)))
    drawn = draw(run, pipes, [train.reports[i] for i in index.tolist()], seed)
    lessons = {"real": real, **drawn, **{f"real + {name}": torch.cat([real, x]) for name, x in drawn.items()}}
    rows = {}
    for name, x in lessons.items():
        net = taught(x, labels.repeat(len(x) // n, 1), steps, seed, device, name)
        rows[name] = tested(net, held_out, truth, seed, device)
    return {"data": config["data"], "images": n, "steps": steps, "batch": BATCH, "seed": seed,
            "test": test.name, "test_images": len(test), "git": git_revision(),
            "run_git": config.get("git", "unknown"), "device": evaluate.device_name(device),
            "systems": {name: entry(x, rows["real"], len(lessons[name])) for name, x in rows.items()}}


def entry(rows: Tensor, real: Tensor, images: int) -> dict:
    """(1+r 14 each) -> macro AUROC, its difference to the classifier taught by real images, and by finding"""
    auroc = metrics.macro(rows)
    return {"images": images, "auroc": summary(auroc), "auroc_by_finding": by_finding(rows),
            "difference_to_real": summary(auroc - metrics.macro(real))}


def table(result: dict) -> str:
    """utility.json -> a Markdown table"""
    lines = ["| taught by | images | AUROC on real images | difference to real |", "|---|---|---|---|"]
    for name, system in result["systems"].items():
        difference = "" if name == "real" else cell(system["difference_to_real"], "+")
        lines.append(f"| {name} | {system['images']} | {cell(system['auroc'])} | {difference} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: the newest under runs/)")
    parser.add_argument("--images", type=int, help=f"training images, and as many drawn [{IMAGES}, or all]")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each classifier [400]")
    parser.add_argument("--seed", type=int, default=0, help="of the images chosen, noise and weights [0]")
    args = parser.parse_args(argv)
    run = args.run or sample.newest_run()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(run, args.images, args.steps, args.seed, device)
    write_json(run / "utility.json", result)
    print(table(result))


if __name__ == "__main__":
    main()
