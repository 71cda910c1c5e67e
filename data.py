"""Chests: X-rays with reports, for every stage. The embedded phantom, and folders of real images.

`load("phantom")` or `load(FOLDER)` gives {"train", "val", "test", "judge"}, each with one interface:

    .name, .size, len(chests)   "train", pixels a side, n
    .reports                    n prompts
    .labels    n 14             what the report says: 1 present, 0 absent, -1 uncertain, nan not mentioned
    .patients                   n names; no patient is in two of train, val and judge
    .truth     n 14             what the image truly shows, 0 or 1 (phantom); None for real images
    .posture   n 5              psi = (s_x, s_y, t_x, t_y, theta) (phantom); None for real images
    .images(index) -> b 1 h w   uint8 grey; never flipped, as the side of the heart is meaning

"judge" is kept from every stage that is judged: the judging networks are trained on it.

A folder is read with suspicion. Nothing outside it is opened, whatever its tables say. Each row that cannot
be used is counted by reason, named and skipped; a set that cannot be used at all raises DataError.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from archives import DataError, Row, read_rows
from labels import label_all
from loop import keep_tensors
from phantom import describe, phantom

FITS = ("crop", "pad")
PROMPTS = ("report", "impression", "findings", "both")
SPLITS = {"": "", "train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
          "dev": "val", "test": "test"}
SMALLEST = 16           # pixels of an image's short side
NARROWEST = 4           # long side over short side
DECODED_ROWS = 20_000   # sets up to this size are decoded once and kept in memory
CACHED_BYTES = 2**29    # phantoms are kept once rendered, up to this size
JUDGE_SEED = 1_000_003  # added to the run's seed


class ImageError(ValueError):
    """One image cannot be used; the message is the reason, worded so that equal reasons count together."""


# ------------------------------------------------------------------------------------------------------------
# Images

def safe_path(folder: Path, name: str) -> Path:
    """A path from a table -> the file it names inside `folder`. Raises ImageError if there is none."""
    name, root = name.replace("\\", "/"), folder.resolve()
    if not name:
        raise ImageError("no image named")
    try:
        path = (root / name).resolve()  # follows links, so that one pointing outside is seen
        is_file = path.is_file()        # no folder, pipe or device
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links, a zero byte
        raise ImageError("no such file") from None
    if PurePosixPath(name).is_absolute() or not path.is_relative_to(root):
        raise ImageError("path leaves the folder")
    if not is_file:
        raise ImageError("no such file")
    return path


# Formats that hold photographs. Pillow knows others (EPS) for which it would start foreign programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")


def open_image(path: Path) -> Image.Image:
    """Opens an image and checks its header; pixels are not decoded yet. Raises ImageError with the reason."""
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("too large (decompression bomb)") from None
    except Exception:  # Pillow raises many kinds on hostile headers
        raise ImageError("not a readable image") from None
    short, long = sorted(image.size)
    reason = ("too large (decompression bomb)" if short * long > Image.MAX_IMAGE_PIXELS
              else f"smaller than {SMALLEST} pixels" if short < SMALLEST
              else f"narrower than 1:{NARROWEST}" if long > NARROWEST * short else None)
    if reason:
        image.close()
        raise ImageError(reason)
    return image


def to_grey(image: Image.Image) -> Image.Image:
    """Any mode -> 8-bit grey; what is transparent becomes black.

    Deep integers are scaled by the depth that their maximum needs, as scanners store 10 to 14 bits in 16;
    floats by their maximum.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        deep = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(min=0)
        depths = () if image.mode == "F" else (8, 10, 12, 14, 16)
        top = next((2**bits - 1 for bits in depths if deep.max() < 2**bits), deep.max() or 1)
        return Image.fromarray((deep * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def to_square(image: Image.Image, size: int, fit: str, aspect: float | None = None) -> Image.Image:
    """8-bit grey -> size x size: scaled with antialiasing to `aspect`, its true width / height (by default as
    stored), then cut at the centre ("crop") or set on black ("pad")."""
    aspect = aspect or image.width / image.height
    bound = max if fit == "crop" else min
    width, height = round(size * bound(1, aspect)), round(size * bound(1, 1 / aspect))
    square = Image.new("L", (size, size))
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC),
                 ((size - width) // 2, (size - height) // 2))
    return square


def read_image(path: Path, size: int, fit: str, aspect: float | None = None) -> np.ndarray:
    """-> h w uint8. Raises ImageError with the reason."""
    with open_image(path) as image:
        try:
            image.draft("L", (4 * size, 4 * size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
            return np.array(to_square(to_grey(ImageOps.exif_transpose(image)), size, fit, aspect))
        except Exception:  # Pillow raises many kinds on damaged data
            raise ImageError("truncated or damaged") from None


def decode(folder: Path, rows: list[Row], size: int, fit: str) -> Iterator[np.ndarray | ImageError]:
    """Rows -> h w uint8 each, or why not, in order. Threads help, as Pillow decodes outside the GIL."""
    def one(row: Row) -> np.ndarray | ImageError:
        try:
            return read_image(safe_path(folder, row.image), size, fit, row.aspect)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, rows)


# ------------------------------------------------------------------------------------------------------------
# Chests

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
        texts = describe(range(self.start, self.start + self.count), self.seed, self.faults)
        self.reports, self.labels = texts.reports, texts.labels
        self.truth, self.posture = texts.truth, texts.posture
        self.patients = [f"phantom {self.seed}:{self.start + i}" for i in range(self.count)]
        keep = self.count * self.size**2 <= CACHED_BYTES
        self.pixels = torch.empty(self.count, 1, self.size, self.size, dtype=torch.uint8) if keep else None
        self.rendered = torch.zeros(self.count, dtype=torch.bool)

    def __len__(self) -> int:
        return self.count

    def render(self, index: Tensor) -> Tensor:
        parts = (index + self.start).split(512)  # bounds the renderer's memory
        return torch.cat([phantom(part, self.seed, self.size, self.faults).images for part in parts])

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
        self.labels = label_all(self.reports)
        for i, row in enumerate(self.rows):
            if row.labels is not None:
                self.labels[i] = torch.tensor(row.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, index: Tensor | list[int]) -> Tensor:
        """index (b) -> b 1 h w uint8. An image of a large set may prove damaged here: named once, black."""
        index = torch.as_tensor(index, dtype=torch.long)
        if self.pixels is not None:
            return self.pixels[index]
        rows = [self.rows[i] for i in index.tolist()]
        images = torch.zeros(len(rows), 1, self.size, self.size, dtype=torch.uint8)
        for i, image in enumerate(decode(self.folder, rows, self.size, self.fit)):
            if not isinstance(image, ImageError):
                images[i, 0] = torch.from_numpy(image)
            elif rows[i].image not in self.damaged:
                self.damaged.add(rows[i].image)
                print(f"data: {rows[i].image!r}: {image}; black in its place")
        return images


# ------------------------------------------------------------------------------------------------------------
# Folders: which rows are usable, and who goes where

class Skipped(dict[str, list[str]]):
    """{reason: images of the rows left out for it}"""

    def add(self, reason: str, image: str) -> None:
        self.setdefault(reason, []).append(image)

    def __str__(self) -> str:
        return "\n".join(f"data: skipped {len(images):,}: {reason}: {', '.join(map(repr, images[:3]))}"
                         + (", ..." if len(images) > 3 else "") for reason, images in self.items())


def row_fault(folder: Path, row: Row) -> str | None:
    """Why a row cannot be used, without opening its image; None if it can."""
    if "lat" in row.view or row.view == "ll":
        return "not a frontal view"
    try:
        safe_path(folder, row.image)
    except ImageError as error:
        return str(error)
    if not row.report:
        return "no report, and no labels in CheXpert's or NIH's terms"
    return None if row.split in SPLITS else f"split is none of {', '.join(filter(None, SPLITS))}"


def check_headers(folder: Path, rows: list[Row]) -> dict[int, str]:
    """{row: reason} for images whose header cannot be read."""
    faults = {}
    for i, row in enumerate(tqdm(rows, "checking images", unit="image")):
        try:
            open_image(safe_path(folder, row.image)).close()
        except ImageError as error:
            faults[i] = str(error)
    return faults


def images_digest(folder: Path, rows: list[Row], size: int, fit: str) -> str:
    """A name for what decoded images depend on: files (by size and time), true aspects, size and fit."""
    files = [safe_path(folder, row.image).stat() for row in rows]
    key = [(row.image, row.aspect, file.st_size, file.st_mtime_ns)
           for row, file in zip(rows, files, strict=True)]
    return hashlib.sha256(json.dumps(["v1", size, fit, key]).encode()).hexdigest()[:16]


def decode_all(folder: Path, rows: list[Row], size: int, fit: str,
               cache: Path | None) -> tuple[Tensor, dict[int, str]]:
    """Rows -> pixels (n 1 h w) uint8 and {row: reason} of the unreadable. Kept in `cache` if given."""
    file = cache and cache / f"images-{images_digest(folder, rows, size, fit)}.safetensors"
    if file and file.is_file():
        try:
            with safe_open(file, "pt") as kept:
                faults = json.loads(kept.metadata()["faults"])
                return kept.get_tensor("pixels"), {int(row): reason for row, reason in faults.items()}
        except (SafetensorError, KeyError, TypeError, ValueError):
            print(f"data: {file} is damaged and made again")
    pixels, faults = torch.zeros(len(rows), 1, size, size, dtype=torch.uint8), {}
    images = tqdm(decode(folder, rows, size, fit), "reading images", len(rows), unit="image", delay=1)
    for i, image in enumerate(images):
        if isinstance(image, ImageError):
            faults[i] = str(image)
        else:
            pixels[i, 0] = torch.from_numpy(image)
    if file:
        keep_tensors(file, {"pixels": pixels}, {"faults": json.dumps(faults)})
    return pixels, faults


def assign_splits(rows: list[Row]) -> dict[str, list[int]]:
    """Rows -> row numbers of train, judge, val and test, patients kept together.

    Splits that the table names stand. Patients it leaves to train are ranked by a hash of their names, the
    same on every machine and for every seed: the first tenth is val if the table has none, the next is test
    if it names no split at all, then a quarter of the rest is judge.
    """
    sides = [SPLITS[row.split] for row in rows]
    held_out = {row.patient for row, side in zip(rows, sides, strict=True) if side in ("val", "test")}
    free = sorted({row.patient for row in rows} - held_out, key=lambda p: hashlib.sha256(p.encode()).digest())
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
    left_out = len(rows) - sum(map(len, where.values()))
    if left_out:
        print(f"data: {left_out:,} train images left out: their patients are in val or test too")
    where["test"] = where["test"] or where["val"]
    return where


def usable_rows(folder: Path, table: list[Row], size: int, fit: str,
                cache: Path | None) -> tuple[list[Row], Tensor | None, Skipped]:
    """All rows -> the usable ones, their pixels (n 1 h w) uint8 if they are few, and what was left out."""
    rows, skipped = [], Skipped()
    for row in table:
        fault = row_fault(folder, row)
        if fault:
            skipped.add(fault, row.image)
        else:  # an unknown patient: each image stands for its own
            rows.append(row if row.patient else replace(row, patient=f"image {row.image}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd headers; both are counted here
        if len(rows) <= DECODED_ROWS:
            pixels, faults = decode_all(folder, rows, size, fit, cache)
        else:
            pixels, faults = None, check_headers(folder, rows)
    for i, fault in faults.items():
        skipped.add(fault, rows[i].image)
    good = [i for i in range(len(rows)) if i not in faults]
    return [rows[i] for i in good], None if pixels is None else pixels[good], skipped


def load_folder(folder: Path, size: int, fit: str, prompt: str,
                cache: Path | None) -> dict[str, FolderChests]:
    """Reads, checks and splits a folder, and prints what it found. Raises DataError."""
    layout, table = read_rows(folder, prompt)
    rows, pixels, skipped = usable_rows(folder, table, size, fit, cache)
    print(f"data: {folder}: {layout}: {len(rows):,} of {len(table):,} rows usable")
    if skipped:
        print(skipped)
    unnamed = sum(row.patient == f"image {row.image}" for row in rows)
    if unnamed:
        print(f"data: {unnamed:,} rows name no patient: each counts as its own")
    where = assign_splits(rows)
    if not where["train"] or not where["val"]:
        patients = len({row.patient for row in rows})
        raise DataError(f"{folder}: {len(rows):,} of {len(table):,} rows usable, of {patients:,} patients: "
                        f"train {len(where['train']):,}, val {len(where['val']):,}; expected some for each, "
                        "so 3 patients or more")
    print("data: " + ", ".join(f"{name} {len(index):,}" for name, index in where.items())
          + (" (test is val)" if where["test"] is where["val"] else ""))
    return {name: FolderChests(name, folder, [rows[i] for i in index], size, fit,
                               None if pixels is None else pixels[index]) for name, index in where.items()}


def load_images(folder: Path, size: int, fit: str = "crop") -> FolderChests:
    """Every usable row of a folder, in its order, as one set: images to be judged. Raises DataError."""
    layout, table = read_rows(folder, "report")
    rows, pixels, skipped = usable_rows(folder, table, size, fit, None)
    print(f"data: {folder}: {layout}: {len(rows):,} of {len(table):,} rows usable")
    if skipped:
        print(skipped)
    return FolderChests(folder.name, folder, rows, size, fit, pixels)


# ------------------------------------------------------------------------------------------------------------

def load_phantom(size: int, seed: int, train_images: int) -> dict[str, PhantomChests]:
    """Disjoint index ranges; training pairs carry the faults of archives, the others are clean."""
    if not 1 <= train_images <= 2**20:
        raise DataError(f"train_images is {train_images}; expected 1 to {2**20:,}")
    return {"train": PhantomChests("train", 0, train_images, seed, size, faults=True),
            "val": PhantomChests("val", 2**20, 1024, seed, size, faults=False),
            "test": PhantomChests("test", 2**21, 2048, seed, size, faults=False),
            "judge": PhantomChests("judge", 2**22, train_images, seed + JUDGE_SEED, size, faults=False)}


def load(data: str, size: int = 64, seed: int = 0, fit: str = "crop", train_images: int = 8192,
         prompt: str = "report", cache: str | Path | None = None) -> dict[str, PhantomChests | FolderChests]:
    """"phantom" or a folder -> {"train", "val", "test", "judge"} chests of `size` pixels a side.

    `seed` and `train_images` concern the phantom; real sets take `fit` ("crop" or "pad" to a square),
    `prompt` (archives.choose_prompt) and `cache`, a folder for decoded images. Raises DataError.
    """
    if size < SMALLEST:
        raise DataError(f"size is {size}; expected at least {SMALLEST} pixels")
    if fit not in FITS:
        raise DataError(f"fit is {fit!r}; expected {' or '.join(FITS)}")
    if prompt not in PROMPTS:
        raise DataError(f"prompt is {prompt!r}; expected one of {', '.join(PROMPTS)}")
    if data == "phantom":
        return load_phantom(size, seed, train_images)
    return load_folder(Path(data), size, fit, prompt, Path(cache) if cache else None)
