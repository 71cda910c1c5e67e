"""What each part contributes: a table, on the phantom, judged by networks that gave no reward.

    python benchmarks/ablation.py [--seeds 0 1 2] [--out runs/ablation] [--only NAME ...] [train.py's flags]

For every seed one anchor and one set of reward networks are trained (or found in OUT/seed-S/base); every
variant is `train.py --stage rl` from there, in a folder of its own that begins with links to them, and is
judged as evaluate.py does. Those that differ in the policy gradient alone begin with what the archive taught
`cxrl`. `supervised` is the anchor, trained on all pairs for as many seconds as `cxrl`,
the defaults, took. What is done is kept in OUT, so the same command continues, and, given several times at
once, shares the work; other flags than OUT was begun with are refused.
"""
import fcntl
import functools
import json
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command goes on")

import torch
from safetensors.torch import load_file
from supervised_control import train_control
from torch import Tensor

import evaluate
import train
from evaluation import metrics
from evaluation.judge import load_judge
from evaluation.results import BETTER, cell, summary
from sample import Pipeline
from storage.files import keep_tensors, read_json, write_json, write_text
from storage.pictures import unit
from storage.weights import read_kept
from training import loop, options
from training.ranks import start_ranks

METRICS = ("posture_deviation", "auroc", "consistency", "fid", "ms_ssim", "precision", "recall", "coverage",
           "all_labels_right")
SCORE = ["--gradient", "score"]
DDPO = [*SCORE, "--rwr-steps", "0", "--credit", "end", "--group", "1", "--reports", "256", "--mix", "1"]
VARIANTS = {      # name -> what differs from train.py's defaults
    "cxrl": [],
    "no ACE": ["--no-ace"],
    "archive alone": ["--rounds", "0"],            # no policy gradient
    "all the way": ["--mix", "1"],
    "gradient alone": ["--rwr-steps", "0"],        # nothing from the archive
    "ACE alone": ["--rl-lr", "0", "--rwr-steps", "0", "--rounds", "12", "--kl", "1", "--mix", "1",
                  "--ace-tokens", "16", "--ace-lr", "0.2"],   # the denoiser frozen
    "score": SCORE,
    "score, all the way": [*SCORE, "--mix", "1"],
    "score, no RLCF": [*SCORE, "--no-rlcf"],
    "score alone": [*SCORE, "--rwr-steps", "0"],
    "DDPO": [*DDPO, "--no-rlcf", "--no-ace"],
    "DDPO + RLCF": [*DDPO, "--no-ace"],
    "DDPO + RLCF + ACE": DDPO,                     # nearest to what is published
    "posture alone": ["--w-diag", "0", "--w-consist", "0"],
    "diagnosis alone": ["--w-align", "0", "--w-consist", "0"],
    "consistency alone": ["--w-align", "0", "--w-diag", "0"],
    "no KL": ["--kl", "0"],
}
GRADIENT = {"gradient", "rounds", "rollout_steps", "reports", "group", "updates", "rl_lr", "kl", "mix",
            "credit", "clip", "rlcf"}   # options that the archive's part does not see
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


def file_name(row: str) -> str:
    return row.replace(" ", "_").replace(",", "") + ".safetensors"


@functools.cache
def base_run(out: Path, seed: int, flags: tuple[str, ...]) -> Path:
    """Anchor and reward networks of a seed, trained where they are not there yet."""
    base = out / f"seed-{seed}" / "base"
    with claim(base.with_name("base.done"), wait=True):
        for stage in ("vae", "diffusion", "rewards"):
            train.main([*flags, "--seed", str(seed), "--out", str(base), "--stage", stage])
    return base


def tuned(base: Path, name: str, seed: int, flags: list[str]) -> Path:
    """The run of a variant: what comes before RL is linked from the base."""
    run = base.with_name(name.replace(" ", "_"))
    (run / "state").mkdir(parents=True, exist_ok=True)
    latents = (str(path.relative_to(base)) for path in base.glob("state/latents-*"))
    for part in ("anchor", "rewards", *latents):
        if not (run / part).exists():
            (run / part).symlink_to((base / part).resolve())
    begin_from_archive(base.with_name("cxrl"), run, flags, VARIANTS[name])
    train.main([*flags, *VARIANTS[name], "--seed", str(seed), "--out", str(run), "--stage", "rl"])
    return run


def begin_from_archive(cxrl: Path, run: Path, flags: list[str], own: list[str]) -> None:
    """Give the run what the archive taught `cxrl`, where it would be taught the same: where nothing but
    options of the policy gradient differs."""
    usual, wanted = ({name: value for part in options.parse(words) for name, value in vars(part).items()}
                     for words in (flags, [*flags, *own]))
    changed = {name: value for name, value in wanted.items() if value != usual[name]}
    state = Path("state", "rwr.safetensors")
    if train.finished(cxrl, "rl") and wanted["rwr_steps"] and changed and changed.keys() <= GRADIENT:
        if not (run / state).exists():
            tensors, header = read_kept(cxrl / state)
            known = json.loads(header["options"]) | changed
            keep_tensors(run / state, tensors, header | {"options": json.dumps(known)})


@functools.cache
def measures(base: Path, seed: int, flags: tuple[str, ...]) -> tuple[dict, evaluate.Yardstick, dict, int]:
    """-> data, yardstick and sampling of a seed, the same for all its rows, and images at a time"""
    config, sampling, rl = options.parse([*flags, "--seed", str(seed), "--out", str(base)])
    sets = train.load_sets(config)
    judge = load_judge(base / "state" / "judge.safetensors", sets["judge"], start_ranks())
    yard = evaluate.make_yardstick(judge, sets, config.eval_reports, seed)
    return sets, yard, sampling.arguments(), rl.rl_batch


def judged(base: Path, row: str, seed: int, flags: list[str]) -> dict[str, Tensor]:
    """One row of one seed -> metric: 1+r, the value and its resamples"""
    sets, yard, sampling, batch = measures(base, seed, tuple(flags))
    if row == "real":
        images = unit(sets["test"].images(yard.index))
        rows = evaluate.measure(yard, images, evaluate.real_groups(yard, sets["test"]))
    else:
        folder = {"anchor": base / "anchor", "supervised": base.with_name("cxrl") / "control"}.get(
            row, base.with_name(row.replace(" ", "_")) / "cxrl")
        pipe = Pipeline.load(folder, start_ranks())
        rows = evaluate.measure(yard, *evaluate.draw(pipe, yard, sampling, row, batch))
    return {name: rows[name].double().contiguous() for name in METRICS}


def results(out: Path) -> dict[str, dict[int, dict[str, Tensor]]]:
    """-> row: seed: judged metrics; rows without a result are left out."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name in ROWS:
        for path in sorted(out.glob(f"seed-*/results/{file_name(name)}")):
            found.setdefault(name, {})[int(path.parts[-3].removeprefix("seed-"))] = load_file(path)
    return found


def table(found: dict[str, dict[int, dict[str, Tensor]]]) -> str:
    """Markdown: mean over seeds, its bootstrap interval over held-out reports, and a sign (SIGNS)."""
    lines = ["| | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name, seeds in found.items():
        cells = []
        for metric in METRICS:
            rows = torch.stack([rows[metric] for rows in seeds.values()]).mean(0)
            sign = compared(seeds, found.get("cxrl", {}), metric) if name != "cxrl" else ""
            cells.append(cell(summary(rows)) + sign)
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


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=["supervised", *VARIANTS], metavar="NAME",
                        help="rows beside real, anchor and cxrl: supervised; " + "; ".join(VARIANTS))
    args, flags = parser.parse_known_args(argv)
    now = {name: str(value) for part in options.parse(flags) for name, value in vars(part).items()
           if name not in loop.NOT_RESULT - {"data", "eval_reports", "sample_steps"}}
    kept = read_json(args.out / "flags.json", missing=now)
    for name in now:
        loop.refuse_another(name, kept, now, args.out, "choose another --out")
    write_json(args.out / "flags.json", now)
    wanted = [name for name in ("real", "anchor", "cxrl", "supervised", *VARIANTS)
              if args.only is None or name in ("real", "anchor", "cxrl", *args.only)]
    for name in dict.fromkeys(wanted):
        for seed in args.seeds:
            kept = args.out / f"seed-{seed}" / "results" / file_name(name)
            with claim(kept) as mine:
                if not mine:
                    continue
                base = base_run(args.out, seed, tuple(flags))
                print(f"{name}, seed {seed}")
                if name in VARIANTS:
                    tuned(base, name, seed, flags)
                elif name == "supervised":
                    train_control(base.with_name("cxrl"), [*flags, "--seed", str(seed)])
                keep_tensors(kept, judged(base, name, seed, flags))
                write_text(args.out / "ablation.md", table(results(args.out)))
    print(table(results(args.out)))


if __name__ == "__main__":
    main()
