"""What each part contributes: a table and a chart, on the phantom, judged by networks that gave no reward.

    python benchmarks/ablation.py [--seeds 3] [--out runs/ablation] [--only NAME ...] [train.py's flags]

For every seed one anchor and one set of reward networks are trained (or found in OUT/seed-S); every variant
starts from that anchor and gets as many reward queries. `supervised` is the anchor trained supervised for as
many seconds as `cxrl` took. Each result is kept in OUT/results as soon as it is there, so the same command
continues; OUT/ablation.md and OUT/ablation.png are written anew after each.
"""
import argparse
import dataclasses
import json
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from supervised_control import last_log  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

import evaluate  # noqa: E402
import loop  # noqa: E402
import train  # noqa: E402
from judge import load_judge  # noqa: E402
from rewards import Rewards  # noqa: E402
from rl import RLConfig, rl_round, start_policy  # noqa: E402
from sample import Pipeline, SampleConfig  # noqa: E402

METRICS = ("posture_deviation", "auroc", "consistency", "fid", "ms_ssim", "recall", "all_labels_right")
POINTS = 4        # of the chart, for each variant
CHART_REPORTS = 128

VARIANTS = {      # name -> what differs from train.py's defaults
    "cxrl": {},
    "no ACE": {"ace": False},
    "no RLCF": {"rlcf": False},
    "RLCF as a verdict": {"feedback": "sign"},
    "no ceiling": {"ceiling": False},
    "own noise for each image": {"same_noise": False},
    "posture alone": {"w_align": 1.0, "w_diag": 0.0, "w_consist": 0.0},
    "diagnosis alone": {"w_align": 0.0, "w_consist": 0.0},
    "consistency alone": {"w_align": 0.0, "w_diag": 0.0},
    "without posture": {"w_align": 0.0},
    "without diagnosis": {"w_diag": 0.0},
    "without consistency": {"w_consist": 0.0},
    "group 1, as DDPO": {"group": 1},     # with as many images a round
    "K = 2": {"ace_tokens": 2},
    "K = 8": {"ace_tokens": 8},
    "K = 16": {"ace_tokens": 16},
    "ACE alone": {"rl_lr": 0.0},          # the denoiser frozen
}


@dataclasses.dataclass
class Bench:
    """What the variants of one seed share."""
    folder: Path
    config: train.TrainConfig
    sampling: SampleConfig
    rl: RLConfig
    sets: dict
    yard: evaluate.Yardstick

    def judge(self, pipe: Pipeline, reports: int | None = None) -> dict[str, Tensor]:
        """-> metric: 1+r, the value and its resamples"""
        yard, resamples = self.yard, evaluate.RESAMPLES
        if reports is not None:
            resamples = 0          # a point of the chart has no interval
        if reports is not None and reports < len(yard.reports):
            yard = dataclasses.replace(yard, index=yard.index[:reports], reports=yard.reports[:reports],
                                       labels=yard.labels[:reports], embeddings=yard.embeddings[:reports],
                                       compared=min(yard.compared, reports),
                                       similar=min(yard.similar, reports // 4))
        drawn = evaluate.draw(pipe, yard, self.sampling.arguments(), "judging")
        rows = evaluate.measure(yard, *drawn, resamples)
        return {name: rows[name].double().contiguous() for name in METRICS}


def open_bench(out: Path, seed: int, flags: list[str]) -> Bench:
    """Train what the seed's folder does not hold yet."""
    folder = out / f"seed-{seed}"
    arguments = [*flags, "--seed", str(seed), "--out", str(folder)]
    for stage in ("vae", "diffusion", "rewards"):
        train.main([*arguments, "--stage", stage])
    config, sampling, rl = train.parse(arguments)
    sets = train.load_sets(config)
    judge = load_judge(folder / "state" / "judge.safetensors", sets["judge"], torch.device("cpu"))
    yard = evaluate.make_yardstick(judge, sets, config.eval_reports, seed)
    return Bench(folder, config, sampling, rl, sets, yard)


def tune(bench: Bench, changes: dict) -> tuple[Pipeline, Tensor, float]:
    """One variant -> tuned pipeline, curve (points 1+metrics: queries, METRICS), seconds of its rounds."""
    images = bench.rl.reports * bench.rl.group
    config = dataclasses.replace(bench.rl, **changes)
    config = dataclasses.replace(config, reports=images // config.group)
    seed, reports = bench.config.seed, bench.sets["train"].reports
    pipe, anchor, _, groups = start_policy(bench.folder / "anchor", torch.device("cpu"), config)
    nets = Rewards.load(bench.folder / "rewards", ceiling=config.ceiling)
    optimizer = loop.adamw(groups, config.rl_lr, torch.device("cpu"), weight_decay=1e-4)
    curve, seconds, every = [], 0.0, max(config.rounds // POINTS, 1)
    for r in tqdm(range(config.rounds), "rounds"):
        start = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(r, config.rounds, group["peak"])
        rows = loop.batch_index(len(reports), config.reports, seed + 2, r).tolist()
        chosen = [reports[i] for i in rows for _ in range(config.group)]
        first = zlib.crc32(f"{seed} rollout {r}".encode())
        rl_round(pipe, anchor, nets, chosen, [first + i for i in range(images)], bench.sampling, config,
                 optimizer)
        seconds += time.monotonic() - start
        if (r + 1) % every == 0:
            values = bench.judge(pipe, CHART_REPORTS)
            curve.append([(r + 1) * images, *(values[name][0].item() for name in METRICS)])
    return pipe, torch.tensor(curve), seconds


def supervised(bench: Bench, seconds: float) -> Pipeline:
    """The anchor, trained on for so many seconds."""
    line = last_log(bench.folder, "diffusion")
    steps = max(round(seconds * line["step"] / line["time"]), 1)
    run = loop.Run(bench.folder, {}, torch.device("cpu"), bench.config.seed, 60.0)
    pipe = Pipeline.load(bench.folder / "anchor")
    latents = train.latent_cache(run, pipe.vae, bench.sets["train"])
    loss = train.diffusion_loss(run, bench.config, pipe.unet, pipe.text, pipe.schedule, latents,
                                pipe.tokenizer, bench.sets["train"].reports, first=line["step"])
    loop.fit(run, "control", {"unet": pipe.unet}, loss, steps, bench.config.diffusion_lr,
             bench.config.diffusion_batch, ema_decay=train.EMA_DECAY)
    return pipe


def keep(path: Path, rows: dict[str, Tensor], curve: Tensor, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**rows, "curve": curve}, path.with_suffix(".tmp"), {"seconds": json.dumps(seconds)})
    path.with_suffix(".tmp").replace(path)


def seconds_of(path: Path) -> float:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["seconds"])


def results(out: Path) -> dict[str, list[dict[str, Tensor]]]:
    """-> variant: one entry for each seed"""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name in ("anchor", "supervised", *VARIANTS):
        paths = sorted((out / "results").glob(f"seed-*/{file_name(name)}"))
        if paths:
            found[name] = [load_file(path) for path in paths]
    return found


def file_name(variant: str) -> str:
    return variant.replace(" ", "_").replace(",", "") + ".safetensors"


def table(found: dict[str, list[dict[str, Tensor]]]) -> str:
    """Markdown: the mean over seeds, and the bootstrap interval of that mean over held-out reports."""
    lines = ["| | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name, seeds in found.items():
        cells = []
        for metric in METRICS:
            entry = evaluate.summary(torch.stack([rows[metric] for rows in seeds]).mean(0))
            cells.append("{:.3f} [{:.3f}, {:.3f}]".format(entry["value"], *entry["ci95"]))
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def chart(found: dict[str, list[dict[str, Tensor]]]) -> Image.Image:
    """Judged metrics against reward queries, a panel for each of the paper's five metrics."""
    curves = {name: torch.stack([rows["curve"] for rows in seeds]).mean(0) for name, seeds in found.items()}
    wide, high, legend = 300, 240, 200
    image = Image.new("RGB", (5 * wide + legend, high + 40), "white")
    draw = ImageDraw.Draw(image)
    colours = {name: f"hsl({360 * i // max(len(curves), 1)}, 75%, 45%)" for i, name in enumerate(curves)}
    most = max((curve[-1, 0].item() for curve in curves.values() if len(curve)), default=1.0)
    for panel, metric in enumerate(METRICS[:5]):
        column, left = METRICS.index(metric) + 1, panel * wide + 50
        begin = torch.stack([rows[metric][0] for rows in found["anchor"]]).mean().item()
        values = [begin, *(v for curve in curves.values() if len(curve) for v in curve[:, column].tolist())]
        low, top = min(values), max(values)
        draw.rectangle((left, 20, left + wide - 70, high), outline="grey")
        draw.text((left, 4), f"{metric} (anchor {begin:.3f})", "black")
        draw.text((left - 45, 20), f"{top:.3f}", "black")
        draw.text((left - 45, high - 12), f"{low:.3f}", "black")
        draw.text((left, high + 4), f"0 .. {most:.0f} reward queries", "black")
        for name, curve in curves.items():
            if not len(curve):
                continue
            points = [(0.0, begin), *map(tuple, curve[:, [0, column]].tolist())]
            places = [(left + (wide - 70) * q / most, high - (high - 20) * (v - low) / max(top - low, 1e-9))
                      for q, v in points]
            draw.line(places, colours[name], 2)
    for i, name in enumerate(name for name, curve in curves.items() if len(curve)):
        draw.text((5 * wide + 10, 10 + 14 * i), name, colours[name])
    return image


def report(out: Path) -> None:
    found = results(out)
    (out / "ablation.md").write_text(table(found))
    chart(found).save(out / "ablation.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=["supervised", *VARIANTS], metavar="NAME",
                        help="; ".join(VARIANTS))
    args, flags = parser.parse_known_args(argv)
    train.parse(flags)
    wanted = {n: c for n, c in VARIANTS.items() if args.only is None or n in args.only or n == "cxrl"}
    for seed in range(args.seeds):
        kept = args.out / "results" / f"seed-{seed}"
        names = ["anchor", *wanted] + ["supervised"] * (args.only is None or "supervised" in args.only)
        missing = [name for name in names if not (kept / file_name(name)).exists()]
        bench = open_bench(args.out, seed, flags) if missing else None
        for name in missing:
            print(f"seed {seed}: {name}")
            pipe, curve, seconds = Pipeline.load(bench.folder / "anchor"), torch.empty(0), 0.0
            if name in wanted:
                pipe, curve, seconds = tune(bench, wanted[name])
            elif name == "supervised":
                pipe = supervised(bench, seconds_of(kept / file_name("cxrl")))
            keep(kept / file_name(name), bench.judge(pipe), curve, seconds)
            report(args.out)
    print(table(results(args.out)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
