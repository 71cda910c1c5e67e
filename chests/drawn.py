"""Sets of pictures drawn for reports: which reports, which files, which of them are missing, and the table
that CheXGenBench (arXiv 2505.10496) reads beside them."""
import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from chests.tables import Tally, read_table
from storage.files import naming, read_text, write_text
from storage.pictures import grey, png_text, save_png
from training.ranks import rank, ranks

MOST_ROWS = 256   # reports in a grid


def read_reports(path: Path) -> list[str]:
    """One report a line, UTF-8; of a CSV its column report, prompt or annotated_prompt (CheXGenBench's), each
    text once. Raises ValueError."""
    with naming("--reports ", ValueError):
        if path.suffix.lower() in (".tsv", ".json", ".jsonl", ".xlsx"):
            raise ValueError(f"{path}: expected a text file with one report a line, or a CSV")
        if path.name.lower().endswith((".csv", ".csv.gz")):
            notes = Tally()
            rows = [next(filter(None, row.values()), "")
                    for row in read_table(path, notes, ["report|prompt|annotated_prompt"])]
            reports = [*dict.fromkeys(filter(None, rows))]
            if notes:
                print(notes.lines("noted"))
            if len(reports) < len(rows):
                print(f"{path}: {len(rows)} rows, {rows.count('')} of them blank, {len(reports)} different "
                      "reports; the others are left out")
        else:
            lines = read_text(path).removeprefix("\ufeff").split("\n")   # U+2028 parts no reports
            reports = [line.strip() for line in lines if line.strip()]
        if not reports:
            raise ValueError(f"{path}: no report in it")
        return reports


class Job(NamedTuple):
    """One picture to be drawn, of the best liked of the seeds."""
    path: Path
    report: str
    seeds: range

    def text(self, about: dict) -> dict[str, str]:
        """What its file says of it, beside the seed that was taken."""
        about = {"report": self.report, "seeds": f"{self.seeds[0]}-{self.seeds[-1]}", **about}
        return {"synthetic": "true", **{name: str(value) for name, value in about.items()}}


def plan(out: Path, grid: bool, reports: list[str], n: int, first: int, best_of: int) -> list[Job]:
    """-> n pictures of each report. In a grid every report has the same seeds, in a folder its own."""
    folder, prefix = (out.parent, f"{out.stem}_") if grid else (out, "")
    jobs = []
    for i, report in enumerate(reports):
        for k in range(n):
            seed = first + ((0 if grid else i * n) + k) * best_of
            jobs.append(Job(folder / f"{prefix}{i + 1:05d}_{seed}.png", report, range(seed, seed + best_of)))
    if len(os.fsencode(jobs[-1].path.name)) > 240:   # files have 255 bytes, while they are written
        raise ValueError(f"--out {out}: expected a shorter name; its pictures would be {jobs[-1].path.name}")
    if grid and len(reports) > MOST_ROWS:
        raise ValueError(f"--out {out}: a grid of {len(reports)} reports; expected {MOST_ROWS}, or a folder")
    if first < 0 or (last := jobs[-1].seeds[-1]) >= 2**32:
        raise ValueError(f"--seed {first}: expected seeds from 0 to 2^32 - 1"
                         + (f"; the last would be {last}" if first >= 0 else ""))
    return jobs


def check_own(out: Path, grid: bool, jobs: list[Job]) -> None:
    """Refuse to replace what is not a synthetic picture, and, in a folder, pictures of other reports. Raises
    ValueError."""
    for path, report in [*((job.path, job.report) for job in jobs), *([(out, None)] if grid else [])]:
        text = png_text(path)
        if text is not None and "synthetic" not in text:
            raise ValueError(f"--out {out}: {path} is no picture drawn here, and would be replaced")
        if text is not None and not grid and text.get("report") != report:
            raise ValueError(f"--out {out}: {path.name} was drawn for another report; choose another folder")
    if not grid and (out / "anchor").is_dir() and (out / "config.json").is_file():
        raise ValueError(f"--out {out}: a run's folder; choose another")
    drawn = {path.name for path in out.glob("*_*.png") if re.fullmatch(r"\d+_\d+\.png", path.name)}
    if not grid and (left := drawn - {job.path.name for job in jobs}):
        raise ValueError(f"--out {out}: holds {len(left)} other pictures, such as {min(left)}; choose "
                         "another folder")


def unfinished(jobs: list[Job], about: dict) -> list[Job]:
    """Those whose picture is not there: its file says that it has this report, these seeds, and what `about`
    says."""
    return [job for job in jobs if not job.text(about).items() <= (png_text(job.path) or {}).items()]


def draw_best(paint: Callable[[list[str], list[int]], Tensor],
              like: Callable[[Tensor, list[str]], Tensor] | None,
              reports: list[str], seeds: list[range]) -> tuple[Tensor, list[int]]:
    """-> images: b c h w, for each report that of its seeds which is liked best, and these seeds

    paint(reports, seeds) -> b c h w, like(images, reports) -> b.
    """
    best = kept = liked = None
    for candidates in zip(*seeds, strict=True):
        images = paint(reports, list(candidates))
        score = torch.zeros(len(images)) if like is None else like(images, reports).cpu()
        if not (images.isfinite().all() and score.isfinite().all()):
            raise FloatingPointError(f"an image of the seeds {candidates}, or its score, is not finite")
        if best is None:
            best, kept, liked = images, torch.tensor(candidates), score
        better = score > liked
        best[better], liked = images[better], score.maximum(liked)
        kept = torch.where(better, torch.tensor(candidates), kept)
    return best, kept.tolist()


def draw(jobs: list[Job], about: dict, batch: int,
         best: Callable[[list[str], list[range]], tuple[Tensor, list[int]]], whole: bool) -> None:
    """Draw this process's share of what is missing; best(reports, seeds) -> b c h w and the seeds taken. A
    `whole` set has no table while it lacks pictures.

    A batch is always the same jobs, whoever draws it and whatever is missing: no picture depends on that, not
    even by rounding.
    """
    left = len(unfinished(jobs, about)) if rank() == 0 else 0
    if left < len(jobs):
        print(f"{len(jobs) - left} of {len(jobs)} pictures are there already, by these weights and settings")
    if whole and left:
        (jobs[0].path.parent / "prompt_INFO.csv").unlink(missing_ok=True)
    batches = [jobs[i:i + batch] for i in range(0, len(jobs), batch)][rank()::ranks()]
    for part in tqdm(batches, "images", unit="batch", disable=rank() > 0):
        if missing := unfinished(part, about):
            images, seeds = best([job.report for job in part], [job.seeds for job in part])
            pixels = (grey(images)[:, 0] * 255).round().byte().cpu().numpy()
        for job in missing:
            i = part.index(job)
            save_png(Image.fromarray(pixels[i]), job.path, **job.text(about), seed=seeds[i])


def write_table(folder: Path, jobs: list[Job]) -> None:
    """prompt_INFO.csv: `prompt`, `img_savename`"""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [("prompt", "img_savename"), *((job.report, job.path.name) for job in jobs)])
    write_text(folder / "prompt_INFO.csv", table.getvalue())
