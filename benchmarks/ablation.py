"""What each part contributes: a table and a chart, on the phantom, judged by networks that gave no reward.

    python benchmarks/ablation.py [--seeds 3] [--out runs/ablation] [--only NAME ...] [train.py's flags]

For every seed one anchor and one set of reward networks are trained (or found in OUT/seed-S); every variant
starts from that anchor and gets, unless its name says otherwise, as many rounds of as many images (by
default seven reward queries an image, one where the end alone is scored). `supervised` is the anchor trained
supervised for as many seconds as `cxrl`, the defaults, took; both are kept, as OUT/seed-S/control and
OUT/seed-S/cxrl. Each result is kept in OUT/results as soon as it is there, so the same command continues, and
the command given several times at once shares the work; OUT/ablation.md and OUT/ablation.png are written anew
after each.
"""
import argparse
import copy
import dataclasses
import fcntl
import functools
import json
import statistics
import sys
import time
from contextlib import contextmanager
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
import train  # noqa: E402
from evaluation import metrics  # noqa: E402
from evaluation.judge import load_judge  # noqa: E402
from evaluation.results import BETTER  # noqa: E402
from rewards import Rewards  # noqa: E402
from rl import RLConfig, queries_per_round, rl_round, save_policy, start_policy, step_back  # noqa: E402
from sample import Pipeline, SampleConfig  # noqa: E402
from training import loop, options  # noqa: E402
from training.latents import latent_cache  # noqa: E402

METRICS = ("posture_deviation", "auroc", "consistency", "fid", "ms_ssim", "recall", "all_labels_right")
POINTS = 2        # of the chart, for each variant, between the anchor and the end
CHART_REPORTS = 256

VARIANTS = {      # name -> what differs from train.py's defaults
    "cxrl": {},
    "no ACE": {"ace": False},
    "ACE alone": {"rl_lr": 0.0},          # the denoiser frozen
    "the end alone": {"values": 0},       # no credit for single steps
    "steps alike": {"balance": False},
    "the end alone, steps alike": {"values": 0, "balance": False},
    "part of the way": {"mix": 0.6},
    "without the last 3 steps": {"skip_last": 3},
    "half as many rounds": {"rounds": 6},
    "posture alone": {"w_align": 1.0, "w_diag": 0.0, "w_consist": 0.0},
    "diagnosis alone": {"w_align": 0.0, "w_consist": 0.0},
    "consistency alone": {"w_align": 0.0, "w_diag": 0.0},
    "without posture": {"w_align": 0.0},
    "without diagnosis": {"w_diag": 0.0},
    "without consistency": {"w_consist": 0.0},
    "group 1, as DDPO": {"group": 1},     # with as many images a round
    "group 1, no RLCF": {"group": 1, "rlcf": False},
    "RLCF as a verdict": {"feedback": "sign"},
    "own noise for each image": {"same_noise": False},
    "no KL": {"kl": 0.0},
    "with a ceiling": {"ceiling": True},
    "own unit each round": {"unit": "round", "kl": 0.1},
    "4 of the 9 steps": {"fraction": 0.44},
    "K = 2": {"ace_tokens": 2},
    "K = 8": {"ace_tokens": 8},
    "K = 16": {"ace_tokens": 16},
}
ROWS = ("real", "anchor", "supervised", *VARIANTS)


@contextmanager
def claim(path: Path, wait: bool = False):
    """Yields whether the work that ends in `path` is this process's to do: not there yet, and nobody's."""
    lock = path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))   # ends with the process
        except BlockingIOError:
            yield False
        else:
            yield not path.exists()


@dataclasses.dataclass
class Bench:
    """What the variants of one seed share."""
    folder: Path
    config: options.TrainConfig
    sampling: SampleConfig
    rl: RLConfig
    sets: dict
    yard: evaluate.Yardstick

    def judge(self, pipe: Pipeline) -> dict[str, Tensor]:
        """-> metric: 1+r, the value and its resamples"""
        return numbers(evaluate.measure(self.yard, *self.draw(pipe, self.yard)))

    def point(self, pipe: Pipeline, queries: int) -> list[float]:
        """One point of the chart: queries, and METRICS over fewer reports."""
        yard, n = self.yard, min(CHART_REPORTS, len(self.yard.reports))
        yard = dataclasses.replace(yard, index=yard.index[:n], reports=yard.reports[:n],
                                   labels=yard.labels[:n], embeddings=yard.embeddings[:n],
                                   compared=min(yard.compared, n), similar=min(yard.similar, n // 8))
        values = numbers(evaluate.measure(yard, *self.draw(pipe, yard), resamples=0))
        return [float(queries), *(values[name][0].item() for name in METRICS)]

    def draw(self, pipe: Pipeline, yard: evaluate.Yardstick) -> tuple[Tensor, list[Tensor]]:
        return evaluate.draw(pipe, yard, self.sampling.arguments(), "judging")

    def judge_real(self) -> dict[str, Tensor]:
        test = self.sets["test"]
        images = test.images(self.yard.index).float() / 255
        return numbers(evaluate.measure(self.yard, images, evaluate.real_groups(self.yard, test)))


def numbers(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows[name].double().contiguous() for name in METRICS}


@functools.cache
def open_bench(out: Path, seed: int, flags: tuple[str, ...]) -> Bench:
    """Train what the seed's folder does not hold yet."""
    folder = out / f"seed-{seed}"
    arguments = [*flags, "--seed", str(seed), "--out", str(folder)]
    with claim(folder / "training", wait=True):
        for stage in ("vae", "diffusion", "rewards"):
            train.main([*arguments, "--stage", stage])
        config, sampling, rl = options.parse(arguments)
        sets = train.load_sets(config)
        judge = load_judge(folder / "state" / "judge.safetensors", sets["judge"], torch.device("cpu"))
    yard = evaluate.make_yardstick(judge, sets, config.eval_reports, seed)
    return Bench(folder, config, sampling, rl, sets, yard)


def tune(bench: Bench, changes: dict) -> tuple[Pipeline, Tensor, float]:
    """One variant -> tuned pipeline, curve (points 1+metrics: Bench.point), seconds of its rounds if all were
    as its median one: what else the machine does for a while must not lengthen the control's training."""
    images = bench.rl.reports * bench.rl.group
    config = dataclasses.replace(bench.rl, **changes)
    config = dataclasses.replace(config, reports=images // config.group)
    reports = bench.sets["train"].reports
    pipe, anchor, _, groups = start_policy(bench.folder / "anchor", torch.device("cpu"), config)
    nets = Rewards.load(bench.folder / "rewards", ceiling=config.ceiling)
    optimizer = loop.adamw(groups, config.rl_lr, weight_decay=1e-4)
    curve, seconds = [], []
    stops = {config.rounds * i // (POINTS + 1) for i in range(1, POINTS + 1)} - {0} | {config.rounds}
    for r in tqdm(range(config.rounds), "rounds"):
        start = time.monotonic()
        chosen, seeds = train.begin_round(r, reports, bench.config.seed, config, optimizer)
        rl_round(pipe, anchor, nets, chosen, seeds, bench.sampling, config, optimizer)
        seconds.append(time.monotonic() - start)
        if r + 1 in stops:
            tuned = dataclasses.replace(pipe, unet=copy.deepcopy(pipe.unet))
            step_back(tuned, anchor, config.mix)
            queries = (r + 1) * queries_per_round(bench.sampling.sample_steps, config)
            curve.append(bench.point(tuned, queries))
    return tuned, torch.tensor(curve), config.rounds * statistics.median(seconds)


def supervised(bench: Bench, seconds: float) -> Pipeline:
    """The anchor, trained on for so many seconds, at the pace of its first steps here."""
    run = loop.Run(bench.folder, {}, torch.device("cpu"), bench.config.seed, 60.0)
    pipe = Pipeline.load(bench.folder / "anchor")
    latents = latent_cache(run, pipe.vae, bench.sets["train"])
    loss = train.diffusion_loss(run, bench.config, pipe, latents, bench.sets["train"].reports,
                                first=last_log(bench.folder, "diffusion")["step"])
    paces = []
    for step in range(10):
        start = time.monotonic()
        loss(step, slice(bench.config.diffusion_batch))[0].backward()
        paces.append(time.monotonic() - start)
    steps = max(round(seconds / statistics.median(paces)), 1)
    loop.fit(run, "control", {"unet": pipe.unet}, loss, steps, bench.config.diffusion_lr,
             bench.config.diffusion_batch, ema_decay=bench.config.ema_decay)
    return pipe


def result(bench: Bench, name: str, cxrl: Path) -> tuple[dict[str, Tensor], Tensor, float]:
    """One row of one seed -> judged metrics, curve, seconds of training; cxrl: where that row is kept."""
    if name == "real":
        return bench.judge_real(), torch.empty(0), 0.0
    if name == "anchor":
        anchor = Pipeline.load(bench.folder / "anchor")
        return bench.judge(anchor), torch.tensor([bench.point(anchor, 0)]), 0.0
    if name == "supervised":
        with claim(cxrl, wait=True):
            seconds = seconds_of(cxrl)
        control = supervised(bench, seconds)
        control.save(bench.folder / "control")
        return bench.judge(control), torch.empty(0), seconds
    pipe, curve, seconds = tune(bench, VARIANTS[name])
    if name == "cxrl":
        save_policy(pipe, bench.folder / "anchor", bench.folder / "cxrl")
    return bench.judge(pipe), curve, seconds


def keep(path: Path, rows: dict[str, Tensor], curve: Tensor, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**rows, "curve": curve}, path.with_suffix(".tmp"), {"seconds": json.dumps(seconds)})
    path.with_suffix(".tmp").replace(path)


def seconds_of(path: Path) -> float:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["seconds"])


def results(out: Path) -> dict[str, dict[int, dict[str, Tensor]]]:
    """-> row: seed: judged metrics and curve; rows without a result are left out."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name in ROWS:
        for path in sorted((out / "results").glob(f"seed-*/{file_name(name)}")):
            found.setdefault(name, {})[int(path.parent.name.removeprefix("seed-"))] = load_file(path)
    return found


def file_name(row: str) -> str:
    return row.replace(" ", "_").replace(",", "") + ".safetensors"


def table(found: dict[str, dict[int, dict[str, Tensor]]]) -> str:
    """Markdown: mean over seeds, its bootstrap interval over held-out reports, and a sign (SIGNS)."""
    lines = ["| | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name, seeds in found.items():
        cells = []
        for metric in METRICS:
            rows = torch.stack([rows[metric] for rows in seeds.values()]).mean(0)
            entry = evaluate.summary(rows)
            sign = compared(seeds, found.get("cxrl", {}), metric) if name != "cxrl" else ""
            cells.append("{:.3f} [{:.3f}, {:.3f}]{}".format(entry["value"], *entry["ci95"], sign))
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + SIGNS


SIGNS = ("Mean over seeds, and its 95 % interval over held-out reports. + (better) or - (worse) than cxrl: "
         "so in every seed, and the interval of the paired difference leaves out 0.\n")


def compared(seeds: dict[int, dict[str, Tensor]], cxrl: dict[int, dict[str, Tensor]], metric: str) -> str:
    """" +", " -" or "": better or worse than cxrl, paired by seed, report and resample."""
    both = [seed for seed in seeds if seed in cxrl]
    if not both:
        return ""
    difference = torch.stack([seeds[seed][metric] - cxrl[seed][metric] for seed in both])
    low, high = metrics.interval(difference.mean(0))
    if not (low > 0 and (difference[:, 0] > 0).all() or high < 0 and (difference[:, 0] < 0).all()):
        return ""
    return " +" if (low > 0) == (BETTER[metric] == "higher") else " -"


def chart(found: dict[str, dict[int, dict[str, Tensor]]]) -> Image.Image:
    """Judged metrics against reward queries, a panel for each of the paper's five metrics."""
    curves = {name: torch.stack([rows["curve"] for rows in seeds.values()]).mean(0)
              for name, seeds in found.items() if name in VARIANTS}
    wide, high, legend = 300, 240, 200
    image = Image.new("RGB", (5 * wide + legend, high + 40), "white")
    draw = ImageDraw.Draw(image)
    colours = {name: f"hsl({360 * i // max(len(curves), 1)}, 75%, 45%)" for i, name in enumerate(curves)}
    colours["cxrl"] = "black"
    most = max((curve[-1, 0].item() for curve in curves.values()), default=1.0)
    start = torch.stack([rows["curve"][0] for rows in found["anchor"].values()]).mean(0)
    for panel, metric in enumerate(METRICS[:5]):
        column, left = METRICS.index(metric) + 1, panel * wide + 50
        begin = start[column].item()
        values = [begin, *(v for curve in curves.values() for v in curve[:, column].tolist())]
        low, top = min(values), max(values)
        draw.rectangle((left, 20, left + wide - 70, high), outline="grey")
        draw.text((left, 4), f"{metric} (anchor {begin:.3f})", "black")
        draw.text((left - 45, 20), f"{top:.3f}", "black")
        draw.text((left - 45, high - 12), f"{low:.3f}", "black")
        draw.text((left, high + 4), f"0 .. {most:.0f} reward queries", "black")
        for name, curve in sorted(curves.items(), key=lambda item: item[0] == "cxrl"):   # that one on top
            points = [(0.0, begin), *map(tuple, curve[:, [0, column]].tolist())]
            places = [(left + (wide - 70) * q / most, high - (high - 20) * (v - low) / max(top - low, 1e-9))
                      for q, v in points]
            draw.line(places, colours[name], 4 if name == "cxrl" else 2)
    for i, name in enumerate(curves):
        draw.text((5 * wide + 10, 10 + 14 * i), name, colours[name])
    return image


def report(out: Path) -> None:
    found = results(out)
    if "anchor" in found:
        (out / "ablation.md").write_text(table(found))
        chart(found).save(out / "ablation.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=["supervised", *VARIANTS], metavar="NAME",
                        help="rows beside real, anchor and cxrl: supervised; " + "; ".join(VARIANTS))
    args, flags = parser.parse_known_args(argv)
    options.parse(flags)
    wanted = [name for name in ("real", "anchor", "cxrl", "supervised", *VARIANTS)
              if args.only is None or name in ("real", "anchor", "cxrl", *args.only)]
    for name in dict.fromkeys(wanted):
        for seed in range(args.seeds):
            kept = args.out / "results" / f"seed-{seed}"
            with claim(kept / file_name(name)) as mine:
                if mine:
                    bench = open_bench(args.out, seed, tuple(flags))
                    print(f"{name}, seed {seed}")
                    keep(kept / file_name(name), *result(bench, name, kept / file_name("cxrl")))
                    report(args.out)
    print(table(results(args.out)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
