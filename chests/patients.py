"""What the phantom's patients have, and what their reports say; phantom.py draws the films.

    index -> patients() -> [Finding, ...] -> truth_of(): what the film shows
                                          -> read_out(): the report, and the labels of what it says

Everything about a patient is a pure function of (seed, index). A report names every finding that the film
shows, and denies or passes over what it does not. Labels are noted beside each sentence as it is written, not
read back from the text; labels.label, which reads, agrees. Reports of an archive (faults=True) now and then
leave out, add or misplace a finding: labels then follow the report, truth the film.

Another finding needs a row in CATALOGUE, sentences in PRESENT, a NOUN, denials in ABSENT, a drawing in
phantom.DRAW and, where it is none of CheXpert's, a label and its words in findings.py; tests/test_phantom.py
says what is missing.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chests.findings import LABELS

NORMAL_SHARE = 0.25  # patients without any finding
UNSURE = 0.08        # share of findings that the reader doubts; half of these are there
BAD_REPORT = 0.10    # share of an archive's reports that do not fit


# ------------------------------------------------------------------------------------------------------------
# Random numbers: a hash of (seed, index, stream, counter), so none depends on what was drawn before.

ANATOMY, FINDINGS, POSTURE, REPORT, FAULT, GRAIN = range(6)  # streams
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def scramble(z: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea & Flood 2014) on uint64, which wraps around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashed(seed: int, index: np.ndarray, stream: int, count: int) -> np.ndarray:
    """index (n) -> n count, uint64"""
    start = scramble(np.array([seed % 2**64], np.uint64) + GOLDEN) + np.uint64(stream)
    key = scramble(scramble(start) + index.astype(np.uint64) * GOLDEN)
    return scramble(key[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def uniform(seed: int, index: np.ndarray, stream: int, count: int) -> np.ndarray:
    """-> n count float64 in [0, 1)"""
    return (hashed(seed, index, stream, count) >> np.uint64(11)) * 2.0**-53


def pick(options, u: float):
    return options[int(u * len(options))]


# ------------------------------------------------------------------------------------------------------------
# What the patient has

@dataclass
class Finding:
    """One thing to see: its CheXpert name, where it is, how large, and whether the reader is sure."""
    name: str
    side: str    # "left", "right", "both"; "" for what has none
    place: str   # "upper", "lower", "rim", "hila", ""; the kind of a support device
    size: float  # 0 to 1
    seed: float  # 0 to 1, settles details of the picture
    sure: bool = True
    shown: bool = True  # a doubtful one may not be there


LEFT_RIGHT = ("left", "right")
BASES = (("left", "lower"), ("right", "lower"), ("both", "lower"))
RIMS = (("left", "rim"), ("right", "rim"))
LOBES = tuple((side, place) for side in LEFT_RIGHT for place in ("upper", "lower"))
DEVICES = (*(("left", "pacemaker"),) * 5, *(("right", "pacemaker"),) * 2, ("right", "port"), ("left", "port"),
           *(("right", "line"),) * 2, ("left", "line"), *(("", "tube"),) * 2)
# Name -> how often, and where it may be. In this order each takes its place, so that none hides another.
# Devices are the commonest label of archives, too (half of CheXpert's films); rarer leads are not learned.
CATALOGUE = {
    "Pleural Effusion": (1.15, BASES), "Atelectasis": (1.1, BASES), "Pneumothorax": (1.0, RIMS),
    "Pleural Other": (0.95, RIMS), "Consolidation": (1.05, LOBES), "Pneumonia": (1.05, LOBES),
    "Lung Lesion": (1.05, LOBES), "Edema": (0.95, (("both", "hila"),)), "Cardiomegaly": (1.0, (("", ""),)),
    "Enlarged Cardiomediastinum": (0.9, (("", ""),)), "Support Devices": (3.0, DEVICES),
}
WEIGHTS = np.array([weight for weight, _ in CATALOGUE.values()])
HOW_MANY = (1,) * 38 + (2,) * 36 + (3,) * 18 + (4,) * 8  # of a hundred patients who are not normal
OPAQUE = {"Consolidation", "Pneumonia", "Edema"}         # what CheXpert also calls Lung Opacity


def cells(side: str, place: str) -> set[tuple[str, str]]:
    """The parts of the chest that a finding takes."""
    sides = LEFT_RIGHT if side == "both" else (side,)
    return {(one, place) for one in sides if place in ("lower", "upper", "rim")}


def patients(seed: int, index: np.ndarray) -> list[list[Finding]]:
    """index (n) -> the findings of n patients"""
    kinds = len(CATALOGUE)
    u = uniform(seed, index, FINDINGS, 2 + 6 * kinds)
    order = np.argsort(-np.log1p(-u[:, 2: 2 + kinds]) / WEIGHTS, axis=1).tolist()  # weighted, none twice
    return [one_patient(ranked, row) for ranked, row in zip(order, u.tolist(), strict=True)]


def one_patient(ranked: list[int], u: list[float]) -> list[Finding]:
    """ranked: the catalogue's rows by this patient's luck; u: uniforms -> what this patient has"""
    kinds, found, taken = len(CATALOGUE), [], set()
    chosen = set() if u[0] < NORMAL_SHARE else set(ranked[: pick(HOW_MANY, u[1])])
    for row, (name, (_, options)) in enumerate(CATALOGUE.items()):
        if row not in chosen:
            continue
        where, size, details, doubt, shown = u[2 + kinds + 5 * row: 7 + kinds + 5 * row]
        free = [option for option in options if not cells(*option) & taken]
        if not free:
            continue
        side, place = pick(free, where)
        taken |= cells(side, place)
        found.append(Finding(name, side, place, size, details))
        if doubt < UNSURE and name != "Support Devices":
            found[-1].sure, found[-1].shown, found[-1].size = False, shown < 0.5, size * 0.4
        if name == "Support Devices" and doubt < 0.3:  # intensive care: a second one
            second = ("right", "line") if place == "tube" else ("", "tube")
            found.append(Finding(name, *second, shown, (details * 7) % 1))
    return found


def truth_of(findings: list[Finding]) -> list[float]:
    """What the film shows, 0.0 or 1.0 in the order of LABELS."""
    shown = {finding.name for finding in findings if finding.shown}
    shown |= {"Lung Opacity"} if shown & OPAQUE else set()
    shown |= set() if shown - {"Support Devices"} else {"No Finding"}
    return [float(name in shown) for name in LABELS]


# ------------------------------------------------------------------------------------------------------------
# What the report says. A sentence "text|Label" says Label too.

SIZES = {  # words for small, moderate, large
    "Pleural Effusion": (("small", "trace", "tiny"), ("moderate", "moderate-sized"), ("large",)),
    "Pneumothorax": (("small", "tiny"), ("moderate",), ("large",)),
    "Lung Lesion": (("small", "discrete"), ("medium-sized", "well-defined"), ("large", "dominant")),
    "": (("mild", "minimal"), ("moderate",), ("severe", "marked")),
}
PRESENT = {
    "Pleural Effusion": (
        "{size} {side} pleural effusion{s}", "there {is_a} {size} {side} pleural effusion{s}",
        "{size} {side} effusion{s} with layering fluid", "{size} {side} pleural effusion{s} noted"),
    "Atelectasis": (
        "{side} basilar atelectasis", "{size} plate-like atelectasis at the {bases}",
        "linear atelectasis at the {bases} with volume loss", "{size} {side} lower lobe atelectasis"),
    "Pneumothorax": (
        "{size} {side} pneumothorax", "there is a {size} {side} apical pneumothorax",
        "{size} {side}-sided pneumothorax with visible pleural edge", "{side} pneumothorax, {size}"),
    "Pleural Other": (
        "{size} {side} pleural thickening", "{side} apicolateral pleural thickening",
        "there is {size} pleural thickening along the {side} chest wall"),
    "Consolidation": (
        "{size} {lobe} consolidation", "dense {lobe} consolidation", "consolidation in the {lobe}",
        "there is {size} consolidation of the {lobe}",
        "homogeneous airspace opacity consistent with {lobe} consolidation|Lung Opacity"),
    "Pneumonia": (
        "{size} {lobe} pneumonia", "{lobe} pneumonia", "findings of pneumonia in the {lobe}",
        "patchy opacities in the {lobe} consistent with pneumonia|Lung Opacity",
        "patchy {lobe} infiltrate consistent with pneumonia|Lung Opacity"),
    "Lung Lesion": (
        "{size} {lobe} {nodule}", "there is a {size} {nodule} in the {lobe}",
        "{size} rounded {nodule} projecting over the {lobe}"),
    "Edema": (
        "{size} pulmonary edema", "{size} interstitial edema", "there is {size} pulmonary edema",
        "perihilar haze consistent with {size} edema",
        "bilateral perihilar opacities consistent with {size} pulmonary edema|Lung Opacity"),
    "Cardiomegaly": (
        "{size} cardiomegaly", "the heart is {size_ly} enlarged", "{size} enlargement of the heart",
        "there is {size} cardiomegaly", "cardiac silhouette is {size_ly} enlarged"),
    "Enlarged Cardiomediastinum": (
        "{size} widening of the mediastinum", "the mediastinum is {size_ly} widened",
        "{size} mediastinal widening"),
    "pacemaker": (
        "{side} chest pacemaker with leads in place", "{side}-sided pacemaker is present",
        "dual lead {side} pacemaker"),
    "port": ("{side} chest port catheter ends in the SVC", "{side} mediport in place"),
    "line": (
        "{side} central venous catheter ends in the SVC", "{side} internal jugular line in place",
        "{side} central line tip in the SVC"),
    "tube": (
        "endotracheal tube above the carina", "endotracheal tube in standard position",
        "the patient is intubated with the endotracheal tube in place"),
}
NOUN = {
    "Pleural Effusion": "{side} pleural effusion{s}", "Atelectasis": "{side} basilar atelectasis",
    "Pneumothorax": "{side} pneumothorax", "Pleural Other": "{side} pleural thickening",
    "Consolidation": "{lobe} consolidation", "Pneumonia": "{lobe} pneumonia", "Lung Lesion": "{lobe} nodule",
    "Enlarged Cardiomediastinum": "mediastinal widening",
}
DOUBT = ("possible {}", "possible small {}", "questionable {}", "{} cannot be excluded", "suspected {}",
         "findings are suspicious for {}", "there may be {}", "probable {}")
DOUBT_OF = {
    "Cardiomegaly": ("borderline heart size", "heart size is borderline", "borderline cardiomegaly"),
    "Edema": ("possible mild pulmonary edema", "mild vascular congestion", "questionable interstitial edema"),
}
CLEAR = ("no acute cardiopulmonary process", "no acute cardiopulmonary abnormality", "no acute disease",
         "normal chest radiograph", "no acute cardiopulmonary findings")
OPACITIES = ("Consolidation", "Pneumonia", "Edema", "Atelectasis", "Lung Lesion")
LUNGS = (*OPACITIES, "Pneumothorax", "Pleural Effusion")
# Normal statement, what it denies, what else must be absent. "lungs", "bones": no labels, but said only once.
ABSENT = (
    ("no pleural effusion", ("Pleural Effusion",), ()), ("no pneumothorax", ("Pneumothorax",), ()),
    ("no pleural effusion or pneumothorax", ("Pleural Effusion", "Pneumothorax"), ()),
    ("no pneumothorax or pleural effusion is seen", ("Pleural Effusion", "Pneumothorax"), ()),
    ("costophrenic angles are sharp", (), ("Pleural Effusion",)),
    ("heart size is normal", ("Cardiomegaly",), ()), ("the heart is normal in size", ("Cardiomegaly",), ()),
    ("cardiac silhouette is within normal limits", ("Cardiomegaly",), ()),
    ("no cardiomegaly", ("Cardiomegaly",), ()),
    ("heart size and mediastinal contour are normal", ("Cardiomegaly", "Enlarged Cardiomediastinum"), ()),
    ("the cardiomediastinal silhouette is normal", ("Enlarged Cardiomediastinum",), ("Cardiomegaly",)),
    ("mediastinal contour is unremarkable", ("Enlarged Cardiomediastinum",), ()),
    ("the mediastinum is not widened", ("Enlarged Cardiomediastinum",), ()),
    ("no focal consolidation", ("Consolidation",), ("Pneumonia",)),
    ("no focal consolidation, pleural effusion or pneumothorax",
     ("Consolidation", "Pleural Effusion", "Pneumothorax"), ("Pneumonia",)),
    ("no evidence of pneumonia", ("Pneumonia",), ("Consolidation",)),
    ("no focal airspace opacity", ("Lung Opacity",), OPACITIES),
    ("no pulmonary edema", ("Edema",), ()), ("no evidence of edema", ("Edema",), ()),
    ("no pulmonary nodule or mass", ("Lung Lesion",), ()), ("no suspicious nodule", ("Lung Lesion",), ()),
    ("no atelectasis", ("Atelectasis",), ()), ("no pleural thickening", ("Pleural Other",), ()),
    ("no lines or tubes", ("Support Devices",), ()), ("no support devices", ("Support Devices",), ()),
    ("the lungs are clear", ("lungs",), LUNGS), ("lungs are well expanded and clear", ("lungs",), LUNGS),
    ("pulmonary vasculature is normal", (), ("Edema",)), ("the trachea is midline", (), ()),
    ("osseous structures are intact", ("bones",), ()), ("the bony thorax is intact", ("bones",), ()),
    ("visualized upper abdomen is unremarkable", (), ()),
)

def words_for(finding: Finding, u: float) -> dict[str, str]:
    """The words that fill a sentence about this finding."""
    name, side = finding.name, "bilateral" if finding.side == "both" else finding.side
    level = 0 if finding.size < 0.35 else 1 if finding.size < 0.7 else 2
    size = pick(SIZES.get(name, SIZES[""])[level], u)
    both = finding.side == "both"
    return {"size": size, "side": side, "lobe": f"{side} {finding.place} lobe", "s": "s" if both else "",
            "is_a": "are" if both else "is a", "size_ly": ("mildly", "moderately", "severely")[level],
            "bases": "lung bases" if both else f"{side} lung base",
            "nodule": "mass" if level == 2 else "nodule"}


def sentence(finding: Finding, u: list[float]) -> tuple[str, dict[str, float]]:
    """-> text, {label: what it says}"""
    words, name = words_for(finding, u[0]), finding.name
    if finding.sure:
        text, *others = pick(PRESENT[finding.place if name == "Support Devices" else name], u[1]).split("|")
        return text.format(**words), dict.fromkeys([name, *others], 1.0)
    if name in DOUBT_OF:
        return pick(DOUBT_OF[name], u[1]), {name: -1.0}
    return pick(DOUBT, u[1]).format(NOUN[name].format(**words)), {name: -1.0}


def normal_sentences(findings: list[Finding], u: list[float]) -> list[tuple[str, dict[str, float]]]:
    """True statements of normality in random order, no label denied twice; u: as long as ABSENT."""
    present = {finding.name for finding in findings}
    present |= {"Lung Opacity"} if present & OPAQUE else set()
    spoken, chosen = set(present), []
    for row in sorted(range(len(ABSENT)), key=u.__getitem__):
        text, denied, needed = ABSENT[row]
        if not spoken.intersection(denied) and not present.intersection(needed):
            spoken.update(denied)
            chosen.append((text, dict.fromkeys(denied, 0.0)))
    return chosen


def write_report(findings: list[Finding], u: list[float]) -> tuple[str, list[float]]:
    """Findings and uniforms -> the report (5 to 60 words) and what it says, in the order of LABELS."""
    said = [sentence(finding, u[4 + 2 * i: 6 + 2 * i]) for i, finding in enumerate(findings)]
    if not said and u[0] < 0.4:
        said = [(pick(CLEAR, u[1]), {})]
    wanted = int(4 * u[2] ** 2) if u[0] < 0.4 else 2 + int(6 * u[2])  # impression style, or findings style
    words = sum(len(text.split()) for text, _ in said)
    for number, part in enumerate(normal_sentences(findings, u[24: 24 + len(ABSENT)])):
        if (number >= wanted and words >= 5) or words + len(part[0].split()) > 60:
            break
        words += len(part[0].split())
        said.append(part)
    if u[3] < 0.5:
        said = [said[i] for i in np.argsort(u[64: 64 + len(said)])]  # else what is found comes first
    values = {label: value for _, labels in said for label, value in labels.items()}
    ill = any(value for label, value in values.items() if label != "Support Devices")
    values |= {} if ill else {"No Finding": 1.0}
    report = " ".join(f"{text[0].upper()}{text[1:]}." for text, _ in said)
    return report, [values.get(label, float("nan")) for label in LABELS]


def misreport(findings: list[Finding], u: list[float]) -> list[Finding]:
    """What a careless reader saw: something left out, added, or on the wrong side."""
    there = [i for i, finding in enumerate(findings) if finding.shown]
    sided = [i for i in there if findings[i].side in LEFT_RIGHT]
    if there and u[1] < 0.4:     # left out
        gone = pick(there, u[2])
        return findings[:gone] + findings[gone + 1:]
    if sided and u[1] < 0.75:    # misplaced
        wrong = pick(sided, u[2])
        side = "right" if findings[wrong].side == "left" else "left"
        return [replace(finding, side=side) if i == wrong else finding for i, finding in enumerate(findings)]
    names = [name for name in CATALOGUE if name not in {finding.name for finding in findings}]
    name = pick(names, u[2])
    return [*findings, Finding(name, *pick(CATALOGUE[name][1], u[3]), size=u[4], seed=u[5])]


def read_out(seed: int, index: np.ndarray, faults: bool, found: list[list[Finding]]
             ) -> tuple[list[str], Tensor]:
    """index (n) and what n patients have -> n reports, and labels (n 14) of what these say"""
    luck, fault = uniform(seed, index, REPORT, 80).tolist(), uniform(seed, index, FAULT, 6).tolist()
    read = [misreport(findings, u) if faults and u[0] < BAD_REPORT else findings
            for findings, u in zip(found, fault, strict=True)]
    written = [write_report(findings, u) for findings, u in zip(read, luck, strict=True)]
    labels = torch.tensor([values for _, values in written], dtype=torch.float32)
    return [report for report, _ in written], labels.view(len(index), len(LABELS))
