"""What evaluation.json and the console say of a system: values with intervals, gains, the table."""
import math

import torch
from torch import Tensor

from chests.findings import LABELS
from evaluation import metrics

# Metric -> which way is better.
BETTER = {"posture_deviation": "lower", "auroc": "higher", "label_accuracy": "higher",
          "all_labels_right": "higher", "consistency": "higher", "fine_detail": "as real",
          "texture_fid": "lower", "fid": "lower", "kid": "lower", "ms_ssim": "lower", "precision": "higher",
          "recall": "higher", "density": "higher", "coverage": "higher", "nearest_train_distance": "as real",
          "closer_to_train": "as real"}


def summary(rows: Tensor) -> dict:
    """1+r -> {"value": v, "ci95": [lo, hi]}, None where undefined"""
    numbers = [rows[0].item(), *metrics.interval(rows)]
    value, low, high = (number if math.isfinite(number) else None for number in numbers)
    return {"value": value, "ci95": [low, high]}


def by_finding(rows: Tensor) -> dict[str, dict]:
    """1+r 14 -> a summary for each finding that is defined"""
    return {name: summary(column) for name, column in zip(LABELS, rows.T, strict=True)
            if not column[0].isnan()}


def entry(rows: dict[str, Tensor]) -> dict:
    """What evaluation.json says of a system: every metric, and the AUROC of each finding."""
    return {**{name: summary(rows[name]) for name in BETTER},
            "auroc_by_finding": by_finding(rows["by_finding"])}


def gains(system: dict[str, Tensor], anchor: dict[str, Tensor], real: dict[str, Tensor]) -> dict:
    """What a system gained on the anchor, paired by prompt and resample: CXRL's Table 1 in relative terms."""
    def gap_closed(name: str) -> Tensor:   # nan: there is none
        gap = real[name] - anchor[name]
        low, high = metrics.interval(gap)
        return (system[name] - anchor[name]) / (gap if low > 0 or high < 0 else torch.nan * gap)

    return {"posture_deviation_ratio": summary(system["posture_deviation"] / anchor["posture_deviation"]),
            "auroc_gap_closed": summary(gap_closed("auroc")),
            "consistency_gap_closed": summary(gap_closed("consistency")),
            "difference": {name: summary(system[name] - anchor[name]) for name in BETTER}}


def systems_of(result: dict) -> list[str]:
    """evaluation.json -> the systems that it judged"""
    return [name for name, part in result.items() if isinstance(part, dict) and "fid" in part]


def cell(number: dict, sign: str = "") -> str:
    if number["value"] is None:
        return "undefined"
    low, high = ("?" if bound is None else f"{bound:{sign}.3f}" for bound in number["ci95"])
    return f"{number['value']:{sign}.3f} [{low}, {high}]"


def remarks(result: dict) -> list[str]:
    """What each system gained on the anchor, and how far the judge can be trusted, in words"""
    def plain(number: float | None) -> str:
        return "undefined" if number is None else f"{number:.3f}"

    text = []
    for system in (name for name in systems_of(result) if f"{name}_vs_anchor" in result):
        gain = result[f"{system}_vs_anchor"]
        text.append(f"{system}: posture deviation x {cell(gain['posture_deviation_ratio'])} of the anchor's; "
                    f"gap to real closed: auroc {cell(gain['auroc_gap_closed'])}, "
                    f"consistency {cell(gain['consistency_gap_closed'])}")
    text += [f"{name}: {n} images; its fid, texture_fid, kid, precision, recall, density and coverage do not "
             f"compare with those of {result['n']}"
             for name, n in result.get("images", {}).items() if n != result["n"]]
    judge = result["judge"]
    return [*text, f"judge on real images: label accuracy {plain(judge['accuracy_on_real'])}, posture error "
                   f"{plain(judge['posture_error'])} of {plain(judge['posture_spread'])}; n = {result['n']}, "
                   f"{result['seconds']:.0f} s on {result['device']}"]


def table(result: dict) -> str:
    """evaluation.json -> text: a row for each metric, value [95 % interval] for each system."""
    systems = systems_of(result)
    lines = [["", "better", *systems], *([name, better, *(cell(result[system][name]) for system in systems)]
                                         for name, better in BETTER.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(w.ljust(n) for w, n in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, *remarks(result)])
