"""Judge a run: anchor and CXRL against held-out real images, by networks that gave no reward in training.

    python evaluate.py                                # the newest run under runs/
    python evaluate.py runs/phantom --reports 512
    python evaluate.py runs/phantom --control DIR     # also score another pipeline folder, e.g. the anchor trained longer

The judge is independent of the rewards in three ways: another architecture (ConvNeXt-like, where rewards.py has ResNets,
and a bag of hashed n-grams for the text), another seed, other data (data.load's "judge": phantoms of another seed with
their true factors; of real sets patients that no stage saw). It is trained once a run and kept in RUN/state.

Protocol. Prompts are the reports of the test split (val where there is no test). Anchor, CXRL and control draw the same
reports with the same seeds; `real`, the images that truly belong to those reports, is scored by the same code.

    posture_deviation       mean over images of |psi - (1, 1, 0, 0, 0)|_1, theta in radians
    auroc                   macro over findings: the prompt's labels against the judge's probabilities
    label_accuracy          share of an image's labels on the right side of 0.5; all_labels_right: images with no error
    consistency             mean cosine of the judge's embeddings of image and report
    fid, kid, precision, recall, density, coverage      against a reference set of other real images, on judge features
    nearest_train_distance  mean distance to the nearest training image, on judge features; far below real's: memorised
    ms_ssim                 mean over pairs of 4 images of one report; for `real`: of 4 patients with the same findings

Labels: a finding counts as 1 if the report affirms it, 0 if the report denies or does not mention it, and is left out
where the report is uncertain; findings without both classes in the judge's training data are left out altogether.
Intervals: 1000 bootstrap resamples of the prompts, the same ones for every system, hence paired differences. The
reference set, the training set and the neighbourhoods of precision ... coverage are held fixed.
"""
import argparse
import inspect
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import data as chest_data
import metrics
import sample
from judge import (
    BATCH,
    IDENTITY,
    Judge,
    features_of,
    jitter,
    load_judge,
    look,
    native_posture,
    ngrams,
    prompt_labels,
    reposition,
)
from labels import LABELS

COPIES = 4                                           # images of one report for MS-SSIM: 6 pairs (RoentGen)
SSIM_REPORTS = 64                                    # reports with that many images
RESAMPLES = 1000                                     # bootstrap
FID_RESAMPLES = 200                                  # each one is an eigenvalue problem
NEAREST = 8192                                       # training images that nearest_train_distance looks at

# ------------------------------------------------------------------------------------------------ measuring


@dataclass
class Yardstick:
    """What every system is measured against: prompts, their labels and embeddings, reference images, resamples."""

    judge: Judge
    index: Tensor              # n rows of the test split: prompts and their true images
    reports: list[str]         # n
    labels: Tensor             # n 14 in {1, 0, nan}
    embeddings: Tensor         # n e
    compared: int              # the first images of a set that are compared with the reference set
    reference: Tensor          # m d features of other real images
    train: Tensor              # features of training images
    ssim_index: list[int]      # prompts with COPIES images
    seed: int


@torch.no_grad()
def make_yardstick(judge: Judge, sets: dict, reports: int, seed: int) -> Yardstick:
    """Draw the prompts; the rest of the test split is the reference set.

    If fewer images than prompts would be left, the prompts' own images are the reference: then only the first half of
    each set is compared, with the second half of the real images, so that `real` is never compared with itself.
    """
    test, train = sets["test"], sets["train"]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    n = min(reports, len(test))
    compared = n if len(test) >= 2 * n else n // 2
    if compared < 10:
        raise ValueError(f"{len(test)} test images and {reports} reports: at least 20 of each are needed")
    index = order[:n]
    prompts = [test.reports[i] for i in index.tolist()]
    labels = prompt_labels(test.labels[index])
    labels[:, ~judge.judged.cpu()] = math.nan
    nearest = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:NEAREST]
    embeddings = judge.embed_reports([ngrams(r, judge.config.buckets) for r in prompts]).cpu()
    return Yardstick(judge, index, prompts, labels, embeddings, compared,
                     features_of(judge, test, order[compared if compared < n else n:]),
                     features_of(judge, train, nearest), list(range(min(SSIM_REPORTS, n))), seed)


def similarity(groups: list[Tensor]) -> Tensor:
    """groups of k 1 h w images -> one value each, the mean MS-SSIM over all pairs of a group"""
    values = []
    for group in groups:
        a, b = zip(*combinations(range(len(group)), 2), strict=True)
        values.append(metrics.ms_ssim(group[list(a)], group[list(b)]).mean())
    return torch.stack(values).double() if values else torch.full((1,), math.nan)


def measure(yard: Yardstick, images: Tensor, groups: list[Tensor]) -> dict[str, Tensor]:
    """(images: n 1 h w, one for each prompt; groups: images of one report) -> metric: 1+r (see metrics.resampling)."""
    seen = look(yard.judge, images)
    p, features = seen["findings"].sigmoid().double(), seen["features"][:yard.compared]
    weights = metrics.resampling(len(images), RESAMPLES, yard.seed)
    part = metrics.resampling(yard.compared, RESAMPLES, yard.seed)
    fixed = metrics.resampling(len(yard.reference), RESAMPLES, yard.seed)
    similar = similarity(groups)
    near = metrics.neighbourhoods(yard.reference, features)
    per_finding = metrics.auroc(p, yard.labels, weights)
    return {
        "posture_deviation": metrics.mean((seen["psi"] - IDENTITY).abs().sum(1), weights),
        "auroc": metrics.macro(per_finding),
        "label_accuracy": metrics.mean(metrics.label_accuracy(p, yard.labels), weights),
        "all_labels_right": metrics.mean(metrics.all_labels_right(p, yard.labels), weights),
        "consistency": metrics.mean((seen["embedding"] * yard.embeddings).sum(1), weights),
        "fid": metrics.fid(features, yard.reference, part[:1 + FID_RESAMPLES]),
        "kid": metrics.kid(features, yard.reference, part),
        "ms_ssim": metrics.mean(similar, metrics.resampling(len(similar), RESAMPLES, yard.seed)),
        "precision": metrics.mean(near["precision"], part), "recall": metrics.mean(near["recall"], fixed),
        "density": metrics.mean(near["density"], part), "coverage": metrics.mean(near["coverage"], fixed),
        "nearest_train_distance": metrics.mean(metrics.nearest_distance(seen["features"], yard.train), weights),
        "per_finding": per_finding,
    }


def real_groups(yard: Yardstick, test) -> list[Tensor]:
    """For each MS-SSIM prompt its own image and those of up to 3 other patients with the same positive findings."""
    findings = [tuple(row) for row in (test.labels == 1).tolist()]
    groups = []
    for i in yard.ssim_index:
        own, seen = yard.index[i].item(), {test.patients[yard.index[i]]}
        members = [own]
        for j in range(own + 1, own + len(test)):     # from the own image on, so that no patient serves every group
            j %= len(test)
            if findings[j] == findings[own] and test.patients[j] not in seen and len(members) < COPIES:
                members.append(j)
                seen.add(test.patients[j])
        if len(members) > 1:
            groups.append(test.images(members).float() / 255)
    return groups


def draw(pipe: sample.Pipeline, yard: Yardstick, settings: dict, name: str) -> tuple[Tensor, list[Tensor]]:
    """-> images: n 1 h w, one for each prompt, and the MS-SSIM groups. Seeds depend on prompt and copy, not on `pipe`."""
    first = 10**12 + 10**7 * yard.seed       # far from every seed of the training stages
    jobs = [(i, 0) for i in range(len(yard.reports))]
    jobs += [(i, copy) for i in yard.ssim_index for copy in range(1, COPIES)]
    images = []
    with tqdm(total=len(jobs), desc=name, unit="image") as bar:
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start:start + BATCH]
            reports, seeds = [yard.reports[i] for i, _ in batch], [first + COPIES * i + copy for i, copy in batch]
            images.append(sample.grey(sample.generate(pipe, reports, seeds, **settings)).float().cpu())
            bar.update(len(batch))
    images, extra = torch.cat(images).split([len(yard.reports), len(jobs) - len(yard.reports)])
    if not images.isfinite().all():
        raise ValueError(f"{name}: {int((~images.isfinite()).flatten(1).any(1).sum())} images are not finite")
    extra = extra.split(COPIES - 1)
    return images, [torch.cat([images[i:i + 1], more]) for i, more in zip(yard.ssim_index, extra, strict=True)]


# ------------------------------------------------------------------------------------------------ a run


def summary(rows: Tensor) -> dict:
    """1+r -> {"value": v, "ci95": [lo, hi]}, null where undefined"""
    numbers = [rows[0].item(), *metrics.interval(rows)]
    value, low, high = [number if math.isfinite(number) else None for number in numbers]
    return {"value": value, "ci95": [low, high]}


def report_metrics(rows: dict[str, Tensor]) -> dict:
    """Metric rows -> the entry of evaluation.json, with the AUROC of each finding that has both classes."""
    findings = {name: summary(column) for name, column in zip(LABELS, rows["per_finding"].T, strict=True)
                if not column[0].isnan()}
    return {name: summary(r) for name, r in rows.items() if name != "per_finding"} | {"auroc_by_finding": findings}


def gains(system: dict[str, Tensor], anchor: dict[str, Tensor], real: dict[str, Tensor]) -> dict:
    """What a system gained on the anchor, paired by prompt and resample; the figures of CXRL's Table 1, relative."""
    def gap_closed(name: str) -> Tensor:
        return (system[name] - anchor[name]) / (real[name] - anchor[name])

    return {"posture_deviation_ratio": summary(system["posture_deviation"] / anchor["posture_deviation"]),
            "auroc_gap_closed": summary(gap_closed("auroc")),
            "consistency_gap_closed": summary(gap_closed("consistency")),
            "difference": {name: summary(system[name] - anchor[name]) for name in system if name != "per_finding"}}


def judge_quality(judge: Judge, sets: dict, yard: Yardstick, real: dict[str, Tensor]) -> dict:
    """How far the judge itself can be trusted, on the held-out real images that belong to the prompts.

    posture_error is the mean L1 of psi against the truth. For sets without true posture: against known random warps of
    the images nearest to the mean chest, which is also how the judge was taught.
    """
    test = sets["test"]
    images = test.images(yard.index).float() / 255
    psi = native_posture(test)[yard.index]
    posed = ~psi.isnan().any(1)
    images, psi = images[posed], psi[posed]
    if test.posture is None:
        new = jitter(psi, torch.Generator().manual_seed(yard.seed))
        images, psi = reposition(images, psi, new), new
    error = (look(judge, images)["psi"] - psi).abs()
    return {"train_seed": judge.config.seed, "train_images": len(sets["judge"]), "settings": asdict(judge.config),
            "accuracy_on_real": real["label_accuracy"][0].item(), "auroc_on_real": real["auroc"][0].item(),
            "posture_error": error.sum(1).mean().item(),
            "posture_error_by_parameter": dict(zip(("s_x", "s_y", "t_x", "t_y", "theta"), error.mean(0).tolist(),
                                                   strict=True)),
            "posture_taught_by": "true posture" if test.posture is not None else "known warps of well-positioned images"}


def read_config(run: Path) -> dict:
    """RUN/config.json. Raises ValueError where the run folder is missing or incomplete."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder; train one with: python train.py")
    for needed in ("config.json", "anchor/model_index.json", "cxrl/model_index.json"):
        if not (run / needed).is_file():
            raise ValueError(f"{run}: not a finished run, {needed} is missing; continue it with: "
                             f"python train.py --out {run}")
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("data"), str):
        raise ValueError(f"{run / 'config.json'}: expected an object with the key data")
    return config


def load_sets(config: dict, pipe: sample.Pipeline) -> dict:
    """The data of a run, as train.py loaded it; the image size is the pipeline's own."""
    size = pipe.latent_shape[1] * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    known = inspect.signature(chest_data.load).parameters
    options = {k: v for k, v in config.items() if k in known and k not in ("data", "size", "cache")}
    return chest_data.load(config["data"], size=size, **options)


def git_revision() -> str:
    try:
        found = subprocess.run(["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return "unknown"     # git is not installed
    return found.stdout.strip() or "unknown"


def evaluate_run(run: Path, data: dict | None = None, reports: int = 512, seed: int = 0,
                 device: torch.device | str = "cpu", controls: tuple[Path, ...] = ()) -> dict:
    """Score RUN/anchor, RUN/cxrl and `controls` (pipeline folders) -> RUN/evaluation.json, also returned and printed.

    data: the sets of data.load, loaded as config.json says if None. Raises ValueError for an unfinished run, unusable
    data or fewer than 20 reports.
    """
    start, run, device = time.monotonic(), Path(run), torch.device(device)
    if reports < 20:
        raise ValueError(f"--reports {reports}: expected at least 20")
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: expected 0 to 2^31 - 1")
    config, settings = read_config(run), sample.run_settings(run)
    settings = {name: settings[name] for name in ("steps", "guidance", "eta")}
    folders = {"anchor": run / "anchor", "cxrl": run / "cxrl"}
    folders |= {"control" if i == 0 else f"control_{i + 1}": Path(folder) for i, folder in enumerate(controls)}
    pipes = {name: sample.Pipeline.load(folder, device) for name, folder in folders.items()}
    sets = data or load_sets(config, pipes["anchor"])
    judge = load_judge(run / "state" / "judge.safetensors", sets["judge"], device)
    yard = make_yardstick(judge, sets, reports, seed)
    rows = {"real": measure(yard, sets["test"].images(yard.index).float() / 255, real_groups(yard, sets["test"]))}
    for name, pipe in pipes.items():
        rows[name] = measure(yard, *draw(pipe, yard, settings, name))
    result = {
        "data": config["data"], "n": len(yard.reports), "seed": seed, "git": git_revision(),
        "device": device_name(device), "seconds": round(time.monotonic() - start, 1),
        "run_git": config.get("git", "unknown"), "sampling": settings,
        **{name: report_metrics(r) for name, r in rows.items()},
        **{f"{name}_vs_anchor": gains(rows[name], rows["anchor"], rows["real"])
           for name in pipes if name != "anchor"},
        "judge": judge_quality(judge, sets, yard, rows["real"]),
        "protocol": protocol(yard, sets) | {"control": [str(folder) for folder in controls]},
    }
    sample.write_json(run / "evaluation.json", result)
    print(table(result))
    return result


def protocol(yard: Yardstick, sets: dict) -> dict:
    """The choices behind the numbers, for whoever reads evaluation.json without this file."""
    judged = yard.judge.judged.tolist()
    return {"prompts": f"reports of the {sets['test'].name} split", "images_compared": yard.compared,
            "reference_images": len(yard.reference), "train_images_searched": len(yard.train),
            "ms_ssim_reports": len(yard.ssim_index), "ms_ssim_images_each": COPIES, "resamples": RESAMPLES,
            "fid_resamples": FID_RESAMPLES, "fid_floor": "fid of real: real images against other real images",
            "findings": [name for name, used in zip(LABELS, judged, strict=True) if used],
            "uncertain_labels": "ignored", "labels_not_mentioned": "negative"}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


BETTER = {"posture_deviation": "lower", "auroc": "higher", "label_accuracy": "higher", "all_labels_right": "higher",
          "consistency": "higher", "fid": "lower", "kid": "lower", "ms_ssim": "lower", "precision": "higher",
          "recall": "higher", "density": "higher", "coverage": "higher", "nearest_train_distance": "as real"}


def table(result: dict) -> str:
    """evaluation.json -> text: a row for each metric, value [95 % interval] for each system."""
    def cell(entry: dict) -> str:
        if entry["value"] is None:
            return "undefined"
        low, high = ("?" if bound is None else f"{bound:.3f}" for bound in entry["ci95"])
        return f"{entry['value']:.3f} [{low}, {high}]"

    systems = [name for name, entry in result.items() if isinstance(entry, dict) and "fid" in entry]
    lines = [["", "better", *systems]]
    lines += [[name, better, *(cell(result[system][name]) for system in systems)] for name, better in BETTER.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    gain = result["cxrl_vs_anchor"]
    return (f"{text}\n\ncxrl against anchor: posture deviation x {cell(gain['posture_deviation_ratio'])}, of the gap to "
            f"real closed: auroc {cell(gain['auroc_gap_closed'])}, consistency {cell(gain['consistency_gap_closed'])}\n"
            f"judge on real images: accuracy {result['judge']['accuracy_on_real']:.3f}, auroc "
            f"{result['judge']['auroc_on_real']:.3f}, posture error {result['judge']['posture_error']:.3f}; "
            f"n = {result['n']}, {result['seconds']:.0f} s on {result['device']}")


# ------------------------------------------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score a run with networks that gave no reward in training.")
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: the newest under runs/)")
    parser.add_argument("--reports", type=int, default=512, help="prompts from the test split [512]")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, sampling noise and resamples [0]")
    parser.add_argument("--control", type=Path, action="append", default=[], help="another pipeline folder to score")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = args.run or sample.newest_run()
    evaluate_run(run, reports=args.reports, seed=args.seed, device=device, controls=tuple(args.control))
    print(f"written to {run / 'evaluation.json'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
