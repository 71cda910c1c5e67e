"""Judge a run: anchor and CXRL against held-out real images, by a network that gave no reward in training.

    python evaluate.py                              # the newest run under runs/
    python evaluate.py runs/phantom --reports 512
    python evaluate.py runs/phantom --control DIR   # and another pipeline, say the anchor trained longer
    python evaluate.py runs/phantom --images DIR    # and images from elsewhere, with their metadata.csv or
                                                    # prompt_INFO.csv, as CheXGenBench and sample.py write it
    python evaluate.py runs/phantom --features DIR  # FID and its kin on other features, say Rad-DINO's

Prompts are the reports of the test split (val where there is no test). Anchor, CXRL and control draw the same
reports with the same seeds; `real`, the images that truly belong to those reports, is scored by the same code
and is the floor or ceiling of each metric. evaluation/judge.py: what the judge is, and why it is independent.

    posture_deviation       mean of |psi - (1, 1, 0, 0, 0)|_1, theta in radians
    auroc                   macro over findings: the prompt's labels against the judge's probabilities
    label_accuracy          share of an image's labels on the right side of 0.5
    all_labels_right        share of images without a wrong label
    consistency             mean cosine of the judge's embeddings of image and report
    fine_detail             amplitude of what has wavelengths of 2 to 8 pixels; below real's: blurred
    texture_fid             FID on how much detail of three octaves is where (metrics.octaves): features that
                            were not taught to overlook blur, as the judge's are
    fid, kid                against a reference set of other real images, on the judge's features (or, with
                            --features, on those of a DenseNet-121 after its last ReLU: torchxrayvision's
                            features2, as RoentGen; or on a DINOv2's class token; see docs/recipes.md)
    precision ... coverage  likewise, k = 5
    nearest_train_distance  mean distance to the nearest training image, on features; far below real's: copied
    closer_to_train         share of images nearer to a training image than to any held-out real one, on
                            features, among equal numbers of both. Two sets drawn alike: 0.5. `real` shows
                            what unseen images get (phantoms: below 0.5, as only training films are badly
                            positioned); above that, at a distance no larger than real's: learned by heart
    ms_ssim                 mean over pairs of 4 images of a report; `real`: of 2 to 4 with its labels

RUN/prompts.txt holds the prompts, one a line: where the reports of --images are these, in this order, their
difference to the anchor is paired, too. RUN/samples/nearest_pairs.png shows the generated images that are
nearest to a training image, and that image below each: of a real data set, pictures of patients, under its
licence. The file is for your eyes; do not pass it on.

judge.prompt_labels says what a label is; findings that the judge's training data does not show both present
and absent are left out. Intervals: bootstrap over the prompts, the same resamples for every system; reference
and training sets and the neighbourhoods of precision ... coverage stay fixed. Those of recall and coverage
are over the reference images, which they are means of: other prompts would move them as much again.
"""
from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("no result is written yet; the same command evaluates anew", status=2)

import argparse
import inspect
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data as chest_data
import sample
from chests.findings import LABELS
from evaluation import metrics
from evaluation.judge import BATCH, IDENTITY, Judge, judge_quality, load_judge, look, ngrams, prompt_labels
from evaluation.metrics import FEWEST
from evaluation.report import write_report
from evaluation.results import entry, gains, table
from pretrained.vit import Dinov2
from rewards import DiagnosisNet
from storage.files import git_revision, holding, naming, read_json, strict, write_json, write_text
from storage.pictures import grey, picture_grid, save_png, unit
from storage.weights import is_count
from training.loop import read_log

REPORTS = 512          # prompts, where the test split has as many
COPIES = 4             # images of one report for MS-SSIM: 6 pairs, as RoentGen
SSIM_REPORTS = 64      # reports with that many images
RESAMPLES = 1000       # bootstrap
FID_RESAMPLES = 200    # of them; each is an eigenvalue problem
NEAREST = 8192         # training images that are looked at, at most
PAIRS = 8              # generated images in nearest_pairs.png, of each of anchor and cxrl

# ------------------------------------------------------------------------------------------------ measuring


@dataclass
class Yardstick:
    """What every system is measured against."""

    judge: Judge
    index: Tensor          # n rows of the test split: the prompts, and the images that truly belong to them
    reports: list[str]     # n
    labels: Tensor         # n 14 in {1, 0, nan ignored}
    embeddings: Tensor     # n e, of the reports
    compared: int          # the first images of a set are compared with the reference set, so many
    reference: Tensor      # m d, features of other real images
    texture: Tensor        # m 48, of the same images
    train: Tensor          # t d, features of training images
    train_index: Tensor    # t, their rows in the train split
    similar: int           # the first prompts have COPIES images, so many
    seed: int
    eyes: nn.Module        # whose features are compared: the judge's, or another network's


def load_eyes(path: Path) -> nn.Module:
    """--features -> a network b 1 h w in [0, 1] -> b d: the DINOv2 of a folder, or a DenseNet-121 with
    torchxrayvision's `features2` (ReLU, then the mean over places)"""
    if path.is_dir():
        return Dinov2.from_pretrained(path)
    eyes = DiagnosisNet.from_densenet(path)
    eyes.head = nn.Identity()   # features, not labels
    return eyes


def check_prompts(flag: str, reports: int, test) -> None:
    """Raise ValueError where the test split has fewer reports than asked for; where the default is too many,
    all are taken."""
    if len(test) < FEWEST:
        raise ValueError(f"{flag} {reports}: the {test.name} split has {len(test)} images; "
                         f"an evaluation needs {FEWEST}")
    if reports > len(test):
        if reports != REPORTS:
            raise ValueError(f"{flag} {reports}: the {test.name} split has {len(test)}")
        print(f"{flag} {reports}: the {test.name} split has {len(test)}, all of which are taken")


@torch.no_grad()
def make_yardstick(judge: Judge, sets: dict, reports: int, seed: int,
                   eyes: nn.Module | None = None) -> Yardstick:
    """Draw the prompts; the rest of the test split is the reference set.

    Where fewer images than prompts would be left, only the first half of each set is compared, with the true
    images of the other prompts: `real` is never compared with itself, and all systems with equally many.
    """
    test, train = sets["test"], sets["train"]
    n = min(reports, len(test))
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    compared = n if len(test) >= 2 * n else n // 2
    prompts = [test.reports[i] for i in order[:n].tolist()]
    nearest = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:NEAREST]

    def features(chests, index: Tensor) -> Tensor:
        parts = (chests.images(part) for part in index.split(BATCH))
        return torch.cat([look(eyes or judge, images)["features"] for images in parts])

    textures = [metrics.texture(metrics.octaves(unit(test.images(part))))
                for part in order[compared:].split(BATCH)]
    return Yardstick(judge, order[:n], **asked(judge, prompts, test.labels[order[:n]]), compared=compared,
                     reference=features(test, order[compared:]), texture=torch.cat(textures),
                     train=features(train, nearest), train_index=nearest,
                     similar=min(SSIM_REPORTS, n), seed=seed, eyes=eyes or judge)


def asked(judge: Judge, reports: list[str], labels: Tensor) -> dict:
    """What prompts ask for: the fields reports, labels and embeddings of a Yardstick"""
    labels = prompt_labels(labels)
    labels[:, ~judge.judged.cpu()] = math.nan
    grams = [ngrams(report, judge.config.buckets) for report in reports]
    return {"reports": reports, "labels": labels, "embeddings": judge.embed_reports(grams).cpu()}


def measure(yard: Yardstick, images: Tensor, groups: list[Tensor],
            resamples: int = RESAMPLES) -> dict[str, Tensor]:
    """(images: n 1 h w, one a prompt; groups: k 1 h w each, of one report) -> metric: 1+r rows of resamples;
    those that evaluation/results.py lists in BETTER are reported.

    Beside them "by_finding", 1+r 14: the AUROC of each finding; "nearest", 2 n: of each image the distance to
    its nearest training image, and which of yard.train that is.
    """
    def resampling(count: int) -> Tensor:
        return metrics.resampling(count, resamples, yard.seed)

    seen = look(yard.judge, images)
    probability = seen["findings"].sigmoid().double()
    all_features = (seen if yard.eyes is yard.judge else look(yard.eyes, images))["features"]
    features, distance = all_features[:yard.compared], metrics.nearest(all_features, yard.train)
    every, part, fixed = resampling(len(images)), resampling(yard.compared), resampling(len(yard.reference))
    near = metrics.neighbourhoods(yard.reference, features)
    alike, energies = similarity(groups), metrics.octaves(images)
    by_finding = metrics.auroc(probability, yard.labels, every)
    return {
        "posture_deviation": metrics.mean((seen["psi"] - IDENTITY).abs().sum(1), every),
        "auroc": metrics.macro(by_finding),
        "label_accuracy": metrics.mean(metrics.label_accuracy(probability, yard.labels), every),
        "all_labels_right": metrics.mean(metrics.all_labels_right(probability, yard.labels), every),
        "consistency": metrics.mean((seen["embedding"] * yard.embeddings).sum(1), every),
        "fine_detail": metrics.mean(metrics.fine_detail(energies), every),
        "texture_fid": metrics.fid(metrics.texture(energies[:yard.compared]), yard.texture,
                                   part[:1 + FID_RESAMPLES]),
        "fid": metrics.fid(features, yard.reference, part[:1 + FID_RESAMPLES]),
        "kid": metrics.kid(features, yard.reference, part),
        "ms_ssim": metrics.mean(alike, resampling(len(alike))),
        "precision": metrics.mean(near["precision"], part), "recall": metrics.mean(near["recall"], fixed),
        "density": metrics.mean(near["density"], part), "coverage": metrics.mean(near["coverage"], fixed),
        "nearest_train_distance": metrics.mean(distance[0], every),
        "closer_to_train": metrics.mean(metrics.closer(features, yard.train, yard.reference), part),
        "by_finding": by_finding, "nearest": torch.stack([distance[0], distance[1].double()]),
    }


def similarity(groups: list[Tensor]) -> Tensor:
    """groups of k 1 h w images -> one value each, the mean MS-SSIM over all pairs of the group"""
    values = []
    for group in groups:
        first, second = torch.combinations(torch.arange(len(group))).T
        values.append(metrics.ms_ssim(group[first], group[second]).mean().double())
    return torch.stack(values) if values else torch.tensor([math.nan], dtype=torch.float64)


def real_groups(yard: Yardstick, test) -> list[Tensor]:
    """For each MS-SSIM prompt its true image and those of up to 3 other patients with the same findings."""
    findings, patients, groups = [tuple(row) for row in (test.labels == 1).tolist()], test.patients, []
    for own in yard.index[:yard.similar].tolist():
        members = [own]
        for other in [*range(own + 1, len(test)), *range(own)]:   # starts at `own`: nobody serves every group
            if findings[other] == findings[own] and patients[other] not in {patients[m] for m in members}:
                members.append(other)
            if len(members) == COPIES:
                break
        if len(members) > 1:
            groups.append(unit(test.images(members)))
    return groups


def draw(pipe: sample.Pipeline, yard: Yardstick, settings: dict, name: str,
         batch: int) -> tuple[Tensor, list[Tensor]]:
    """-> images: n 1 h w, one a prompt, and the MS-SSIM groups. Seeds do not depend on `pipe`."""
    first = 10**12 + 10**7 * yard.seed   # torch keeps the low 32 bits
    jobs = [(i, 0) for i in range(len(yard.reports))]
    jobs += [(i, copy) for i in range(yard.similar) for copy in range(1, COPIES)]
    images = draw_all(pipe, [yard.reports[i] for i, _ in jobs],
                      [first + COPIES * i + copy for i, copy in jobs], settings, name, batch)
    images, extra = images[:len(yard.reports)], images[len(yard.reports):].split(COPIES - 1)
    return images, [torch.cat([images[i:i + 1], extra[i]]) for i in range(yard.similar)]


def draw_all(pipe: sample.Pipeline, reports: list[str], seeds: list[int], settings: dict, name: str,
             batch: int) -> Tensor:
    """-> n 1 h w in [0, 1] on the CPU, `batch` at a time. Raises ValueError where one is not finite."""
    batches = []
    with tqdm(total=len(reports), desc=name, unit="image") as bar:
        for start in range(0, len(reports), batch):
            part = slice(start, start + batch)
            images = sample.generate(pipe, reports[part], seeds[part], **settings)
            batches.append(grey(images).float().cpu())
            bar.update(len(images))
    images = torch.cat(batches)
    broken = (~images.isfinite()).flatten(1).any(1).sum().item()
    if broken:
        raise ValueError(f"{name}: {broken} of {len(images)} images are not finite")
    return images


def nearest_pairs(yard: Yardstick, images: Tensor, nearest: Tensor, train,
                  name: str) -> list[tuple[str, Tensor]]:
    """(images: n 1 h w, one a prompt; nearest: 2 n, of measure) -> two rows of picture_grid: the PAIRS
    of them that are nearest to a training image, on features, and these training images."""
    distance, which = nearest[0], nearest[1].long()
    order = distance.argsort(stable=True)[:PAIRS]
    there = yard.train_index[which[order]]
    apart = ", ".join(f"{d:.2f}" for d in distance[order].tolist())
    lines = ", ".join(str(i + 1) for i in order.tolist())
    rows = ", ".join(map(str, there.tolist()))
    return [(f"{name}, generated: nearest of {len(images)} to a training image; lines {lines} of "
             f"prompts.txt; distances {apart}; mean {distance.mean():.2f}", images[order]),
            (f"their nearest of {len(yard.train)} TRAINING images: rows {rows}",
             unit(train.images(there)))]


def judge_pipelines(pipes: dict[str, sample.Pipeline], yard: Yardstick, settings: dict, train,
                    batch: int) -> tuple[dict[str, dict[str, Tensor]], list[tuple[str, Tensor]]]:
    """-> system: measure(its images); rows of picture_grid: nearest_pairs of anchor and CXRL"""
    rows, pairs = {}, []
    for name, pipe in pipes.items():
        images, groups = draw(pipe, yard, settings, name, batch)
        rows[name] = measure(yard, images, groups)
        if name in ("anchor", "cxrl"):
            pairs += nearest_pairs(yard, images, rows[name]["nearest"], train, name)
    return rows, pairs


# Keys of evaluation.json beside the systems.
ABOUT = {"data", "n", "images", "seed", "git", "device", "seconds", "run_git", "sampling", "controls",
         "features", "real", "judge", "findings"}


def read_images(folders: tuple[Path, ...], size: int, config: dict, taken: set[str]) -> list:
    """Folders of images with metadata.csv, read as a run's config says; each is a system by its name."""
    sets, taken = [], taken | ABOUT | {f"{name}_vs_anchor" for name in taken}
    for folder in folders:
        chests = chest_data.load_images(Path(folder), size, config.get("fit", "crop"),
                                        config.get("prompt", "report"))
        if {chests.name, f"{chests.name}_vs_anchor"} & taken:
            raise ValueError(f"--images {folder}: the name is taken; expected another folder name")
        if len(chests) < FEWEST:
            raise ValueError(f"--images {folder}: {len(chests)} usable images; expected {FEWEST} or more")
        taken |= {chests.name, f"{chests.name}_vs_anchor"}
        sets.append(chests)
    return sets


def judge_folder(yard: Yardstick, chests) -> dict[str, Tensor]:
    """Score images from elsewhere, with reports of their own; MS-SSIM over 2 to 4 images of one report."""
    own = replace(yard, compared=min(yard.compared, len(chests)),
                  **asked(yard.judge, chests.reports, chests.labels))
    # A table of labels says more of the run's own prompts than the prompt that was composed from it.
    known = dict(zip(map(one_line, yard.reports), yard.labels, strict=True))
    own.labels = torch.stack([known.get(one_line(report), labels)
                              for report, labels in zip(chests.reports, own.labels, strict=True)])
    rows: dict[str, list[int]] = {}
    for i, report in enumerate(chests.reports):
        rows.setdefault(report, []).append(i)
    several = [same[:COPIES] for same in rows.values() if len(same) > 1][:SSIM_REPORTS]
    return measure(own, unit(chests.images(torch.arange(len(chests)))),
                   [unit(chests.images(same)) for same in several])


def one_line(report: str) -> str:
    return " ".join(report.split())


# ------------------------------------------------------------------------------------------------ a run


def evaluate_run(run: Path, data: dict | None = None, reports: int = REPORTS, seed: int = 0,
                 device: torch.device | str = "cpu", controls: tuple[Path, ...] = (),
                 images: tuple[Path, ...] = (), features: Path | None = None) -> dict:
    """Score RUN/anchor, RUN/cxrl, `controls` (pipeline folders) and `images` (folders with metadata.csv)
    -> RUN/evaluation.json, and return it; RUN/report.html shows it. features: see load_eyes.

    data: the sets of data.load; if None they are loaded as RUN/config.json says. Raises ValueError for an
    unfinished run, unusable data, and values out of range.
    """
    start, run, device = time.monotonic(), Path(run), torch.device(device)
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: expected 0 to 2^31 - 1")
    if reports < FEWEST:
        raise ValueError(f"--reports {reports}: expected at least {FEWEST}")
    config, log = read_config(run), read_log(run / "log.jsonl")
    with naming("--features ", ValueError):
        eyes = None if features is None else load_eyes(features).to(device)
    settings = sample.run_settings(run).arguments()
    folders = {"anchor": run / "anchor", "cxrl": run / "cxrl"}
    folders |= {f"control_{i}" if i > 1 else "control": Path(folder) for i, folder in enumerate(controls, 1)}
    pipes = {name: sample.Pipeline.load(folder, device) for name, folder in folders.items()}
    sets = data or load_sets(run, config, pipes["anchor"])
    test = sets["test"]
    for name, pipe in pipes.items():
        if (side := pipe.latent_shape[1] * pipe.vae.config.factor) != test.size:
            raise ValueError(f"{folders[name]}: draws images of {side} pixels; expected {test.size}")
    check_prompts("--reports", reports, test)
    foreign = read_images(images, test.size, config, taken={*pipes})
    judge = load_judge(run / "state" / "judge.safetensors", sets["judge"], device)
    yard = make_yardstick(judge, sets, reports, seed, eyes)
    rows = {"real": measure(yard, unit(test.images(yard.index)), real_groups(yard, test))}
    drawn, pairs = judge_pipelines(pipes, yard, settings, sets["train"], config.get("rl_batch", BATCH))
    rows, paired = rows | drawn, list(pipes)[1:]
    for chests in foreign:
        rows[chests.name] = judge_folder(yard, chests)
        same_prompts = list(map(one_line, chests.reports)) == list(map(one_line, yard.reports))
        paired += [chests.name] * same_prompts
    unpaired = {"ms_ssim": torch.tensor(math.nan)}   # in a folder, of other groups of pictures
    result = strict({
        "data": config["data"], "n": len(yard.reports), "seed": seed, "git": git_revision(),
        "device": device_name(device), "seconds": round(time.monotonic() - start, 1),
        "run_git": config.get("git", "unknown"), "sampling": settings,
        "controls": [str(folder) for folder in controls],
        "features": "judge" if features is None else str(features),
        **{name: entry(r) for name, r in rows.items()},
        **({"images": {chests.name: len(chests) for chests in foreign}} if foreign else {}),
        **{f"{name}_vs_anchor": gains(rows[name] if name in pipes else rows[name] | unpaired,
                                      rows["anchor"], rows["real"]) for name in paired},
        "judge": judge_quality(judge, sets["train"], NEAREST, rows["real"], seed),
        "findings": [name for name, used in zip(LABELS, judge.judged.tolist(), strict=True) if used],
    })
    write_text(run / "prompts.txt", "".join(one_line(r) + "\n" for r in yard.reports))
    save_png(picture_grid(pairs), run / "samples" / "nearest_pairs.png",
             synthetic="the first and third row; the other rows are training images")
    write_report(run, config, result, log)
    write_json(run / "evaluation.json", result)   # last: it marks the run as judged
    print(table(result))
    return result


def read_config(run: Path) -> dict:
    """RUN/config.json. Raises ValueError where the run folder is missing or not finished."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder; train one with: python train.py")
    for needed in ("config.json", "anchor/model_index.json", "cxrl/model_index.json"):
        if not (run / needed).is_file():
            raise ValueError(f"{run}: not a finished run, {needed} is missing; train.py continues it")
    config = read_json(run / "config.json")
    if not isinstance(config.get("data"), str):
        raise ValueError(f"{run / 'config.json'}: expected an object with the key `data`")
    if not is_count(batch := config.get("rl_batch", BATCH)):
        raise ValueError(f"{run / 'config.json'}: rl_batch is {batch!r}, expected a positive integer")
    return config


def load_sets(run: Path, config: dict, pipe: sample.Pipeline) -> dict:
    """The data of a run as train.py loaded it: its options by name, the pipeline's image size, and what the
    run keeps of real images."""
    size = pipe.latent_shape[1] * pipe.vae.config.factor
    options = {name: config[name] for name in inspect.signature(chest_data.load).parameters if name in config}
    sets = chest_data.load(**{**options, "size": size, "cache": run / "state"})
    digest = {name: chests.digest for name, chests in sets.items()}
    if config.get("data_digest", digest) != digest:   # who is held out may have changed, too
        raise ValueError(f"{config['data']}: its images, reports or labels are not those that {run} was "
                         "trained on (images of a large set go by size and time: cp -p keeps them)")
    return sets


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


# ----------------------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score a run with a judge that gave no reward in training.")
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: the newest under runs/)")
    parser.add_argument("--reports", type=int, default=REPORTS,
                        help=f"prompts from the test split [{REPORTS}]")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, sampling noise and resamples [0]")
    parser.add_argument("--control", type=Path, action="append", default=[],
                        help="also score this pipeline folder, for example the anchor trained longer")
    parser.add_argument("--images", type=Path, action="append", default=[],
                        help="also score the images of this folder, which has metadata.csv (image, report) "
                             "or prompt_INFO.csv (img_savename, prompt)")
    parser.add_argument("--features", type=Path, metavar="FILE|DIR",
                        help="compare sets of images on the features of this DenseNet-121 (FILE.safetensors, "
                             "its labels in FILE.json) or DINOv2 (a folder) instead of the judge's")
    args = command.arguments(parser, argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = args.run or sample.newest_run()
    read_config(run)
    with holding(run):
        evaluate_run(run, reports=args.reports, seed=args.seed, device=device, controls=tuple(args.control),
                     images=tuple(args.images), features=args.features)
    print(f"written to {run / 'evaluation.json'}; to look at: {run / 'report.html'}")


if __name__ == "__main__":
    main()
