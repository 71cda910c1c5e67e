"""Chests: X-rays with reports, for every stage. The embedded phantom, and folders of real images.

`load("phantom")` or `load(FOLDER)` gives {"train", "val", "test", "judge"}, each with one interface:

    .name, .size, len(chests)   "train", pixels a side, n
    .reports                    n prompts
    .labels    n 14             what the report says: 1 present, 0 absent, -1 uncertain, nan not mentioned
    .patients                   n names; no patient is in two of train, val and judge
    .digest                     16 hex characters: the same for the same images, reports and labels in order
    .truth     n 14             what the image truly shows, 0 or 1 (phantom); None for real images
    .posture   n 5              psi = (s_x, s_y, t_x, t_y, theta) (phantom); None for real images
    .images(index) -> b 1 h w   uint8 grey; never flipped, as the side of the heart is meaning
    .stream(rule)               step -> images(rule(step)); may decode coming steps meanwhile

"judge" is kept from every stage that is judged: the judging networks are trained on it.

A folder is read with suspicion. Nothing outside it is opened, whatever its tables say. Each row that cannot
be used is counted by reason, named and skipped; a set that cannot be used at all raises DataError.

A set of up to DECODED_ROWS images is checked at every start, and decoded once (`cache`). Of a larger one the
rows are checked once, without opening more than LOOKED_AT images, and kept as an index in the run folder;
images are decoded when asked for, or one step ahead of it (stream), and one that proves damaged then is
named, and black.
"""

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isnan
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from chests.archives import REPORTS, read_rows
from chests.findings import LABELS
from chests.images import SMALLEST, UNOPENED, ImageError, Row, decode, open_image, real, safe_path
from chests.labels import label_values
from chests.phantom import describe, render
from chests.tables import CELLS, DataError, Tally
from storage.files import keep_tensors, read_text, write_text
from storage.weights import read_kept

FRONTAL = re.compile(r"(?<![a-z])(?<!non[ -])(?<!not )(?:pa|ap|frontal|postero[-_ ]?anterior"
                     r"|antero[-_ ]?posterior)"
                     r"(?![a-z])(?!.*(?:axial|obliq|decub|lordot|(?<![a-z])(?:ll?d|rld)(?![a-z])))")
ENGLISH = re.compile(r"(?i)\b(?:the|is|are|of|with|and|without|clear|acute|unremarkable|left|right|lungs?"
                     r"|heart|chest|disease|evidence|seen|stable|unchanged)\b")
SPLITS = {"": "", "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val",
          "validation": "val", "dev": "val", "test": "test", "testing": "test"}
DECODED_ROWS = 20_000   # sets up to this size are decoded once and kept in memory
LOOKED_AT = 256         # images of a larger set whose headers are read when it is indexed
CACHED_BYTES = 2**29    # phantoms are kept once rendered, up to this size
DRAWING = [Path(__file__).parent / "chests" / name   # what a phantom's film depends on
           for name in ("phantom.py", "patients.py")]
READER = Path(__file__).parent / "chests" / "images.py"      # what a decoded image depends on
CODE = ("data.py", *(f"chests/{name}.py" for name in (
    "archives", "findings", "images", "labels", "plainer", "reports", "tables")))   # what an index depends on
UNNAMED = "image "      # begins the names of patients that no table names
JUDGE_SEED = 1_000_003  # added to the run's seed

# ------------------------------------------------------------------------------------------------------------
# Chests

def digest(images: list, reports: list[str], labels: Tensor) -> str:
    """16 hex characters that name images, reports and labels in their order: what kept things depend on"""
    key = json.dumps([images, reports]).encode() + labels.numpy().tobytes()
    return hashlib.sha256(key).hexdigest()[:16]


@dataclass
class PhantomChests:
    """Phantoms start .. start + count of one seed, rendered when asked for and then kept."""
    name: str
    start: int
    count: int
    seed: int
    size: int
    faults: bool  # an archive's: badly positioned exposures, reports that do not fit

    def __post_init__(self):
        self.reports, self.labels, self.truth, self.posture = describe(
            range(self.start, self.start + self.count), self.seed, self.faults)
        self.patients = [f"phantom {self.seed}:{self.start + i}" for i in range(self.count)]
        keep = self.count * self.size**2 <= CACHED_BYTES
        self.pixels = torch.empty(self.count, 1, self.size, self.size, dtype=torch.uint8) if keep else None
        self.rendered = torch.zeros(self.count, dtype=torch.bool)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def digest(self) -> str:
        made_by = [self.seed, self.start, self.count, self.size, self.faults, *map(read_text, DRAWING)]
        return digest(made_by, self.reports, self.labels)

    def render(self, index: Tensor) -> Tensor:
        parts = (index + self.start).split(512)  # bounds the renderer's memory
        return torch.cat([render(part, self.seed, self.size, self.faults) for part in parts])

    def images(self, index: Tensor | list[int]) -> Tensor:
        """index (b) -> b 1 h w uint8"""
        index = torch.as_tensor(index, dtype=torch.long)
        if self.pixels is None:
            return self.render(index)
        missing = index[~self.rendered[index]].unique()
        if len(missing):
            self.pixels[missing] = self.render(missing)
            self.rendered[missing] = True
        return self.pixels[index]

    def stream(self, rule: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        return lambda step: self.images(rule(step))


@dataclass
class FolderChests:
    """Usable rows of a real set. `pixels` (n 1 h w) holds a small set; a large one is decoded on demand."""
    name: str
    folder: Path
    rows: list[Row]
    size: int
    fit: str
    pixels: Tensor | None
    truth = None
    posture = None
    damaged: set[str] = field(default_factory=set)  # images found unreadable after all

    def __post_init__(self):
        self.reports = [row.report for row in self.rows]
        self.patients = [row.patient for row in self.rows]
        labels = np.array([row.labels for row in self.rows], np.float32)  # a quarter of torch.tensor's time
        self.labels = torch.from_numpy(labels).view(-1, len(LABELS))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """By the pixels of a small set, by the files' sizes, times and reader of a large one"""
        images = (hashlib.sha256(self.pixels.numpy()).hexdigest() if self.pixels is not None
                  else images_digest(self.folder, self.rows, self.size, self.fit) + read_text(READER))
        return digest([images], self.reports, self.labels)

    def images(self, index: Tensor | list[int]) -> Tensor:
        """index (b) -> b 1 h w uint8"""
        index = torch.as_tensor(index, dtype=torch.long)
        if self.pixels is not None:
            return self.pixels[index]
        images = torch.zeros(len(index), 1, self.size, self.size, dtype=torch.uint8)
        rows = [self.rows[i] for i in index.tolist()]
        decoded = decode(self.folder, rows, self.size, self.fit)
        for i, (row, image) in enumerate(zip(rows, decoded, strict=True)):
            if isinstance(image, ImageError):   # of a large set; it stays black
                self.note_damage(row.image, image)
            else:
                images[i, 0] = torch.from_numpy(image)
        return images

    def stream(self, rule: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        if self.pixels is not None:
            return lambda step: self.images(rule(step))
        thread, coming = ThreadPoolExecutor(1), {}   # the step after the last one asked for

        def ask(step: int) -> Tensor:
            images = coming.pop(step).result() if step in coming else self.images(rule(step))
            coming.clear()
            coming[step + 1] = thread.submit(lambda: self.images(rule(step + 1)))
            return images

        return ask

    def note_damage(self, image: str, error: ImageError) -> None:
        if image not in self.damaged:
            self.damaged.add(image)
            found = len(self.damaged)
            if found <= 3 or found in (10, 100, 1000, 10_000, 100_000):
                print(f"data: {image!r}: {error}; black in its place ({found:,} in {self.name})")


# ------------------------------------------------------------------------------------------------------------
# Folders: which rows are usable, and who goes where

@dataclass
class Index:
    """What a folder's tables come to, its images unopened (but for LOOKED_AT of a large set)"""
    layout: str
    total: int       # rows in the tables
    rows: list[Row]  # the usable ones, each with labels and a patient
    skipped: Tally   # rows left out, by reason
    notes: Tally     # what is odd, but costs no row


def checked(folder: Path, row: Row) -> Row:
    """A row with its image's path as the file itself has it, the image unopened. Raises ImageError with the
    reason why the row cannot be used."""
    if row.fault:
        raise ImageError(row.fault)
    if row.view and (re.search(r"(?<![a-z])(?:bi)?lat", row.view) or not FRONTAL.search(row.view)):
        raise ImageError(f"not a frontal view (view {row.view!r})")
    image = str(safe_path(folder, row.image)).removeprefix(real(str(folder.absolute()))).lstrip("/")
    if not row.report:
        raise ImageError("no report, and no labels in CheXpert's or NIH's terms")
    if row.split not in SPLITS:
        raise ImageError(f"split is none of {', '.join(filter(None, SPLITS))}")
    # One patient may be 7 in a table, 007 or 7.0 in another, and have an accent in two pieces.
    patient = normalize("NFC", "".join(filter(str.isprintable, row.patient)))
    return row._replace(image=image, patient=re.sub(r"^0*(\d+)(?:\.0)?$", r"\1", patient))


def build_index(folder: Path, prompt: str) -> Index:
    """Reads the tables and reports, looks whether each image is there, labels the reports."""
    notes, skipped, foreign, rows = Tally(), Tally(), [], []
    layout, table = read_rows(folder, prompt, notes)
    if CELLS in notes:
        skipped[CELLS] = notes.pop(CELLS)
    total = len(table) + skipped.get(CELLS, (0,))[0]
    shared: dict[tuple, tuple] = {}
    owners: dict[str, str] = {}   # {file: the patient it is first named with}
    shown: set[str] = set()       # files that have a row
    told: set[int] = set()        # hashes of (file, report, split)
    for row in tqdm(table, "checking and labelling rows", unit="row", delay=2):
        try:
            row = checked(folder, row)
        except ImageError as error:
            skipped.add(str(error), row.image if row.split in SPLITS else f"{row.image}, split {row.split}")
        else:
            if re.fullmatch(r"(?i)\d(?:[.,]\d+)?E\+\d+", row.patient):
                notes.add("patient as a spreadsheet shortens a number: several may be one", row.patient)
            said = label_values(row.report) if row.labels is None else row.labels
            own = owners.setdefault(row.image, row.patient) if row.patient else ""
            if row.labels is None and all(map(isnan, said[1:])) and not ENGLISH.search(row.report):
                foreign.append(row.image)
            pair = hash((row.image, row.report, SPLITS[row.split] or "train"))
            if row.patient != own:
                skipped.add("image named before with another patient, whose it stays", row.image)
            elif pair in told:
                skipped.add("image named before with this report", row.image)
            else:
                if row.image in shown:
                    notes.add("image named before with another report or split: both count", row.image)
                shown.add(row.image)
                told.add(pair)
                rows.append(row._replace(labels=shared.setdefault(said, said)))
    rows = [row._replace(patient=row.patient or owners.get(row.image, UNNAMED + row.image)) for row in rows]
    for image in foreign if 2 * len(foreign) > len(rows) else ():   # some are in any set: "normal"
        notes.add("report without a finding, or any English (which labels are read from)", image)
    if len(rows) > DECODED_ROWS:
        faults = look_at_some(folder, rows)
        for i, fault in faults.items():
            skipped.add(fault, rows[i].image)
        rows = [row for i, row in enumerate(rows) if i not in faults]
    return Index(layout, total, rows, skipped, notes)


def look_at_some(folder: Path, rows: list[Row]) -> dict[int, str]:
    """{row: reason} for those of LOOKED_AT evenly spaced images whose header cannot be read. Raises DataError
    where that is the greater part: the others will hardly be better."""
    faults, some = {}, range(0, len(rows), ceil(len(rows) / LOOKED_AT))
    for i in some:
        try:
            with open_image(safe_path(folder, rows[i].image)):
                pass
        except ImageError as error:
            faults[i] = str(error)
    if 2 * len(faults) > len(some):
        i, fault = next(iter(faults.items()))
        raise DataError(f"{folder}: {len(faults)} of {len(some)} images looked at cannot be used, such as "
                        f"{rows[i].image!r}: {fault}")
    return faults


def index_folder(folder: Path, prompt: str, cache: Path | None) -> Index:
    """build_index, for a large set kept in `cache`, named after the tables it was made of and the code that
    reads them. What is kept is not compared with the images and report files again."""
    tables = sorted((str(path.relative_to(folder)), *file_facts(path))
                    for path in (*folder.glob("*"), *folder.glob("*/*.csv"))
                    if path.suffix in (".csv", ".gz", ".txt", ".zip") and path.is_file())
    code = [read_text(Path(__file__).parent / name) for name in CODE]
    reports = [root for root in REPORTS[1:] if any((folder / root).glob("p*"))]   # unpacked later on
    key = json.dumps([str(folder.resolve()), prompt, tables, reports, code])
    file = cache and cache / f"index-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    if file and file.is_file():
        try:
            index = read_index(file)
            print(f"data: rows as indexed in {file}; delete it if images or report files have changed")
            return index
        except (ValueError, TypeError, RecursionError):
            print(f"data: {file} is damaged and made again")
    index = build_index(folder, prompt)
    if file and len(index.rows) > DECODED_ROWS:
        head = [index.layout, index.total, len(index.rows), index.skipped, index.notes]
        write_text(file, "".join(json.dumps(line) + "\n" for line in (head, *index.rows)))
    return index


def read_index(file: Path) -> Index:
    """A head, then a row a line; equal labels are kept once. Raises ValueError or TypeError."""
    with open(file, encoding="utf-8") as lines:
        layout, total, count, skipped, notes = json.loads(next(lines, ""))
        rows, shared = [], {}
        for line in lines:
            image, report, labels, *rest = json.loads(line)
            rows.append(Row(image, report, shared.setdefault(str(labels), tuple(labels)), *rest))
    if len(rows) != count:
        raise ValueError(f"{len(rows)} rows of {count}")
    return Index(layout, total, rows, Tally(skipped), Tally(notes))


def file_facts(path: Path | str) -> tuple[int, int, int]:
    """Its size, and when it was written and renamed"""
    file = os.stat(path)
    return file.st_size, file.st_mtime_ns, file.st_ctime_ns


def images_digest(folder: Path, rows: list[Row], size: int, fit: str, renamed: bool = False) -> str:
    """A name for what decoded images depend on: files (by size and time; also by when they were renamed),
    true aspects, size and fit."""
    key = []
    for row in rows:
        path = f"{folder}/{row.image}"
        facts = file_facts(path) if os.path.exists(path) else (None, None, None)   # gone since it was indexed
        key.append((row.image, row.aspect, *facts[:2 + renamed]))
    return hashlib.sha256(json.dumps([size, fit, key]).encode()).hexdigest()[:16]


def decode_all(folder: Path, rows: list[Row], size: int, fit: str,
               cache: Path | None) -> tuple[Tensor, dict[int, str]]:
    """Rows -> pixels (n 1 h w) uint8 and {row: reason} of the unreadable. Kept in `cache` if given."""
    key = images_digest(folder, rows, size, fit, True) + read_text(READER)
    file = cache and cache / f"images-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if file and file.is_file():
        try:
            kept, header = read_kept(file)
            return kept["pixels"], {int(row): fault for row, fault in json.loads(header["faults"]).items()}
        except (KeyError, AttributeError, ValueError, RecursionError):
            print(f"data: {file} is damaged and made again")
    pixels, faults = torch.zeros(len(rows), 1, size, size, dtype=torch.uint8), {}
    images = tqdm(decode(folder, rows, size, fit), "reading images", len(rows), unit="image", delay=1)
    for i, image in enumerate(images):
        if isinstance(image, ImageError):
            faults[i] = str(image)
        else:
            pixels[i, 0] = torch.from_numpy(image)
    if file and not any(fault.startswith(UNOPENED) for fault in faults.values()):   # may be mended
        keep_tensors(file, {"pixels": pixels}, {"faults": json.dumps(faults)})
        for other in {*cache.glob("images-*.safetensors")} - {file}:
            other.unlink()
    return pixels, faults


def ranked(patient: str) -> bytes:
    """A patient's place among all, in no order of the table's or the names'"""
    return hashlib.sha256(patient.encode("utf-8", "surrogateescape")).digest()


def assign_splits(rows: list[Row]) -> dict[str, list[int]]:
    """Rows -> row numbers of train, judge, val and test, patients kept together.

    Splits that the table names stand. Patients it leaves to train are ranked by a hash of their names, the
    same on every machine and for every seed: the first tenth is val if the table has none, the next is test
    if it names no split at all, then a quarter of the rest is judge.
    """
    sides = [SPLITS[row.split] for row in rows]
    held_out = {row.patient for row, side in zip(rows, sides, strict=True) if side in ("val", "test")}
    free = sorted({row.patient for row in rows} - held_out, key=ranked)
    val = 0 if "val" in sides else ceil(len(free) / 10)
    test = 0 if any(sides) else round(len(free) / 10)
    judge = ceil((len(free) - val - test) / 4)
    names = ["val"] * val + ["test"] * test + ["judge"] * judge + ["train"] * len(free)
    drawn = dict(zip(free, names, strict=False))
    where: dict[str, list[int]] = {"train": [], "judge": [], "val": [], "test": []}
    for i, (row, side) in enumerate(zip(rows, sides, strict=True)):
        name = side if side in ("val", "test") else drawn.get(row.patient)
        if name:  # else a train image of a patient who is in val or test too
            where[name].append(i)
    # In no order of the table's: whoever takes the first or the last (train.stage_rewards) takes a sample.
    where["train"].sort(key=lambda i: ranked(rows[i].patient))
    left_out = len(rows) - sum(map(len, where.values()))
    if left_out:
        print(f"data: {left_out:,} train images left out: their patients are in val or test too")
    where["test"] = where["test"] or where["val"]
    shared = {rows[i].patient for i in where["val"]} & {rows[i].patient for i in where["test"]}
    if shared and where["test"] is not where["val"]:
        print(f"data: {len(shared):,} patients are in val and in test, as the table has them, such as "
              f"{min(shared)!r}")
    return where


def usable_rows(folder: Path, size: int, fit: str, prompt: str,
                cache: Path | None) -> tuple[list[Row], Tensor | None, int]:
    """-> the usable rows, their pixels (n 1 h w) uint8 if they are few, and how many rows there are; prints
    what was left out and what is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd headers; both are counted here
        index = index_folder(folder, prompt, cache)
        rows, pixels = index.rows, None
        if len(rows) <= DECODED_ROWS:
            pixels, faults = decode_all(folder, rows, size, fit, cache)
            for i, fault in faults.items():
                index.skipped.add(fault, rows[i].image)
            good = [i for i in range(len(rows)) if i not in faults]
            rows, pixels = [rows[i] for i in good], pixels[good]
    print(f"data: {folder}: {index.layout}: {len(rows):,} of {index.total:,} rows usable")
    for tally, verb in ((index.skipped, "skipped"), (index.notes, "noted")):
        if tally:
            print(tally.lines(verb))
    return rows, pixels, index.total


def load_folder(folder: Path, size: int, fit: str, prompt: str,
                cache: Path | None) -> dict[str, FolderChests]:
    """Reads, checks and splits a folder, and prints what it found. Raises DataError."""
    rows, pixels, total = usable_rows(folder, size, fit, prompt, cache)
    unnamed = sum(row.patient.startswith(UNNAMED) for row in rows)
    if unnamed:
        print(f"data: {unnamed:,} rows name no patient (in metadata.csv: patient_id): each counts as its own")
    often = Counter(row.patient for row in rows).most_common(2)
    if len(often) == 2 and often[0][1] > 5 * often[1][1] and not often[0][0].startswith(UNNAMED):
        print(f"data: {often[0][1]:,} of {len(rows):,} rows are of one patient, {often[0][0]!r}: "
              "a word for unknown?")
    where = assign_splits(rows)
    if not where["train"] or not where["val"]:
        patients = len({row.patient for row in rows})
        raise DataError(f"{folder}: {len(rows):,} of {total:,} rows usable, of {patients:,} patients: "
                        f"train {len(where['train']):,}, val {len(where['val']):,}; expected some for each, "
                        "so 3 patients or more")
    print("data: " + ", ".join(f"{name} {len(index):,}" for name, index in where.items())
          + (" (test is val)" if where["test"] is where["val"] else ""))
    return {name: FolderChests(name, folder, [rows[i] for i in index], size, fit,
                               None if pixels is None else pixels[index]) for name, index in where.items()}


def load_images(folder: Path, size: int, fit: str = "crop", prompt: str = "report") -> FolderChests:
    """Every usable row of a folder, in its order, as one set: images to be judged. Raises DataError."""
    rows, pixels, _ = usable_rows(folder, size, fit, prompt, None)
    return FolderChests(folder.resolve().name, folder, rows, size, fit, pixels)


# ------------------------------------------------------------------------------------------------------------

def load_phantom(size: int, seed: int, train_images: int) -> dict[str, PhantomChests]:
    """Disjoint index ranges; training pairs carry the faults of archives, the others are clean. A small set
    has few held-out images, as a small archive has."""
    held_out = min(8192, max(1024, train_images))
    return {"train": PhantomChests("train", 0, train_images, seed, size, faults=True),
            "val": PhantomChests("val", 2**20, held_out // 8, seed, size, faults=False),
            "test": PhantomChests("test", 2**21, held_out // 4, seed, size, faults=False),
            "judge": PhantomChests("judge", 2**22, train_images, seed + JUDGE_SEED, size, faults=False)}


def load(data: str, size: int = 64, seed: int = 0, fit: str = "crop", train_images: int = 8192,
         prompt: str = "report", cache: str | Path | None = None) -> dict[str, PhantomChests | FolderChests]:
    """"phantom" or a folder -> {"train", "val", "test", "judge"} chests of `size` pixels a side.

    `seed` and `train_images` concern the phantom; real sets take `fit` ("crop" or "pad" to a square),
    `prompt` (archives.choose_prompt) and `cache`, a folder for decoded images or an index. Raises DataError.
    """
    if size < SMALLEST:
        raise DataError(f"size is {size}; expected at least {SMALLEST} pixels")
    if data == "phantom":
        return load_phantom(size, seed, train_images)
    return load_folder(Path(data), size, fit, prompt, Path(cache) if cache else None)
