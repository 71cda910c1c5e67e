"""Where an image lies, and one image file to one square of grey pixels, read with suspicion.

Nothing outside the data folder is opened, whatever a table says; what cannot be used raises ImageError.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from errno import EINVAL
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps

from chests.tables import Tally

SMALLEST = 16           # pixels of an image's short side
NARROWEST = 4           # long side over short side
UNOPENED = "cannot be opened"
DULLEST = 16            # grey values that a film has at least; 10 bits in 16 of a colour have 4 left


class Row(NamedTuple):
    """What a set's tables say of one image"""
    image: str                               # path inside the folder, as the table gives it
    report: str                              # the prompt; empty: the row is of no use
    labels: tuple[float, ...] | None = None  # 14, the set's own, where the report was composed from them
    patient: str = ""                        # empty: unknown
    split: str = ""                          # as the table gives it; empty: not given
    view: str = ""                           # lower case
    aspect: float | None = None              # true width / height, where the stored image was squeezed
    fault: str = ""                          # why the row cannot be used, where that is known already


class ImageError(ValueError):
    """One image cannot be used; the message is the reason, worded so that equal reasons count together."""


@lru_cache(maxsize=4096)
def real(path: str) -> str:
    """The path with its links followed; a directory is looked at once for many files."""
    above, last = os.path.split(path)
    if last in ("", ".", ".."):
        return os.path.realpath(path)
    path = os.path.join(real(above), last)
    return os.path.realpath(path) if os.path.islink(path) else path


def safe_path(folder: Path, name: str) -> Path:
    """A path from a table -> the file it names inside `folder`. Raises ImageError if there is none."""
    name, root = name.replace("\\", "/"), real(str(folder.absolute()))
    if not name:
        raise ImageError("no image named")
    if name[0] == "/":
        raise ImageError("an absolute path; expected one that starts in the folder")
    # Accents may be letters of their own, as macOS has them; what has a NUL is no file's.
    forms = (name,) if name.isascii() else (name, normalize("NFC", name), normalize("NFD", name))
    paths = [real(f"{root}/{form}") if "\0" not in form else f"{root}/{form}" for form in forms]
    path = next(filter(os.path.isfile, paths), paths[0])
    if not f"{path}/".startswith(f"{root}/"):
        raise ImageError("path leaves the folder" if ".." in name.split("/") else
                         "a link leads out of the folder, and is not followed")
    if not os.path.isfile(path):
        raise ImageError("a directory or pipe" if os.path.exists(path) else "no such file")
    return Path(path)


# Formats that hold photographs. Pillow knows others (EPS) for which it would start foreign programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image whose header is sound; pixels are not decoded yet. Raises ImageError with the reason, also for
    what fails within: what the system refuses, whatever the file holds, begins with UNOPENED."""
    fault = "not a readable image"
    try:
        with open(path, "rb") as file:   # by its name Pillow would map a turned TIFF by the turned size
            image = Image.open(file, formats=FORMATS)
            short, long = sorted(image.size)
            reason = ("too large (decompression bomb)" if short * long > Image.MAX_IMAGE_PIXELS
                      else "several images in one file" if (getattr(image, "n_frames", 1) > 1
                                                            and image.format != "MPO")
                      else f"smaller than {SMALLEST} pixels" if short < SMALLEST
                      else f"narrower than 1:{NARROWEST}" if long > NARROWEST * short else None)
            if reason:
                raise ImageError(reason)
            fault = "truncated or damaged"
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too large (decompression bomb)") from None
    except MemoryError:
        raise ImageError(f"{UNOPENED}: not enough memory") from None
    except Exception as error:  # Pillow raises many kinds on hostile headers and damaged data
        # EINVAL is a seek to where no file can reach, as a damaged one says.
        refused = isinstance(error, OSError) and error.errno not in (None, EINVAL)
        raise ImageError(f"{UNOPENED}: {error.strerror}" if refused else fault) from None


def to_grey(image: Image.Image, deepest: int = 16) -> Image.Image:
    """Any mode -> 8-bit grey; what is transparent becomes black. `deepest`: bits that a grey value can have.

    Deep integers are scaled by the depth that all but the brightest thousandth needs (dead pixels), or
    twentieth, or all but the greatest value (a marker, a border), where the rest is far brighter, as scanners
    store 10 to 14 bits in 16; floats by the greatest of these values.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        deep = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=-1)
        least, bulk, most = np.quantile(deep, (0.001, 0.95, 0.999))
        if least < 0:   # Hounsfield's, or beyond what Pillow holds
            raise ImageError("grey values below 0, or none")
        dimmer = deep[deep < deep.max()]
        bulk = min(bulk, np.quantile(dimmer, 0.999)) if dimmer.size else bulk
        depths = () if image.mode == "F" else (8, 10, 12, 14, deepest)
        deep, most = deep.clip(min=0), (bulk if 0 < 4 * bulk <= most else most) or deep.max() or 1
        top = next((2**bits - 1 for bits in depths if most < 2**bits), most)
        return Image.fromarray((deep.clip(max=top) * (255 / top)).round().astype(np.uint8))
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
        tags = getattr(image, "tag_v2", {})   # a TIFF's
        signed, bits = tags.get(339) in (2, (2,)), tags.get(258)
        if image.mode == "L" and signed:
            raise ImageError("grey values with a sign")
        image.draft("L", (4 * size, 4 * size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
        # Of 16-bit colour ("RGB;16B") Pillow keeps 8.
        halved = image.mode[0] not in "IF" and any(";16" in str(part[3]) for part in image.tile)
        grey = to_grey(ImageOps.exif_transpose(image), 15 if signed and bits in (16, (16,)) else 16)
        found = np.array(grey.histogram())
        share = found.cumsum() / found.sum()
        if min(np.ptp(np.searchsorted(share, (0.001, 0.999))), np.count_nonzero(found)) < DULLEST:
            raise ImageError(f"blank, or nearly: fewer than {DULLEST} of 256 grey values")
        if halved and np.searchsorted(share, 0.999) < 64:
            raise ImageError("colours of 14 bits or fewer in 16; expected grey")
        if image.mode[0] in "IF" and tags.get(262) == 0:
            grey = ImageOps.invert(grey)  # "0 is white": Pillow turns shallow TIFFs itself, deep ones not
        return np.array(to_square(grey, size, fit, aspect))


def decode(folder: Path, rows: list[Row], size: int, fit: str) -> Iterator[np.ndarray | ImageError]:
    """-> for each row in order h w uint8, or why not. Threads help, as Pillow decodes outside the GIL."""
    def one(row: Row) -> np.ndarray | ImageError:
        try:
            return read_image(safe_path(folder, row.image), size, fit, row.aspect)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, rows)


# ------------------------------------------------------------------------------------------------------------
# Where an image lies

USUAL, OTHER = (".png", ".jpg", ".jpeg"), (".tif", ".tiff", ".webp", ".bmp")   # suffixes of pictures
STANDS_IN = "image of another suffix than the table's or the archive's stands in"


def images_in(folder: Path, patterns: Collection[str], suffixes: Sequence[str]) -> Iterator[Path]:
    """The pictures that match, as paths inside the folder, of one stem in the order of the suffixes; hidden
    ones are left out."""
    for pattern in patterns:
        there = (path.relative_to(folder) for path in folder.glob(pattern))
        there = [here for here in there if here.suffix.lower() in suffixes and "/." not in f"/{here}"]
        yield from sorted(there, key=lambda here: (here.parent, here.stem,
                                                   suffixes.index(here.suffix.lower())))


def standing(folder: Path, paths: Sequence[str], notes: Tally) -> str:
    """The first of an image's paths where a file is, or else one of its stem with another suffix, which is
    noted; the first path if there is none."""
    for path in paths:
        if os.path.isfile(f"{folder}/{path}"):
            return path
    for path in paths:
        for suffix in (*USUAL, *map(str.upper, USUAL), *map(str.title, USUAL)):
            if os.path.isfile(f"{folder}/{(other := os.path.splitext(path)[0] + suffix)}"):
                notes.add(STANDS_IN, other)
                return other
    return paths[0]


def named(place: dict[str, str], name: str, notes: Tally) -> str:
    """Where the image of that name lies (its own folder aside), or else one of its stem, which is noted; or
    else the name"""
    path = Path(name)
    if path.name in place:
        return place[path.name]
    if other := place.get(path.stem):
        notes.add(STANDS_IN, other)
    return other or name


def image_places(folder: Path, official: Collection[str], notes: Tally) -> dict[str, str]:
    """{name, with its suffix or without: path inside the folder} of the images in the official places, or
    where these hold none, one or two levels below. Of two with one name that in the official place counts,
    and elsewhere neither: one may be in masks/ or thumbs/. What is passed over is noted. Suffixes: OTHER
    where there is no picture of a USUAL one."""
    found: dict[str, str] = {}

    def enter(here: Path) -> None:
        first = [found.setdefault(key, str(here)) for key in (here.name, here.stem)]
        for other in {*first} - {str(here)}:
            notes.add("image passed over for another of its name", f"{here} for {other}")

    for suffixes in (USUAL, OTHER):
        there, below = ([*images_in(folder, places, suffixes)] for places in (official, ("*/*", "*/*/*")))
        if there or below:
            break
    for here in there:
        enter(here)
    own = bool(there)
    parents: dict[str, set[Path]] = {}
    for here in below:
        parents.setdefault(here.stem, set()).add(here.parent)
    for here in below:
        if own and here.name in found or not own and len(parents[here.stem]) == 1:
            enter(here)
            if not own:
                notes.add("image found in none of the archive's own folders", str(here))
        elif not own:
            notes.add("image in several folders, none of them the archive's own: not used", str(here))
    return found
