"""Tables of an archive, read with suspicion: what is odd in them is counted, what is no table is refused."""

import csv
import gzip
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TextIO


class DataError(ValueError):
    """The data set cannot be used; the message names the path, what is wrong and what was expected."""


EXAMPLES = 3            # of each kind of fault
LONGEST = 2**18         # bytes of a report, characters of a table's line that are read
LARGEST = 2**31         # characters of a table
MOST_LINES = 2**24      # CheXpert Plus has 10.7 million, for reports have several


class Tally(dict[str, tuple[int, list[str]]]):
    """{what was found: how often, and the first places}, for the reader of a run's output"""

    def add(self, what: str, where: str) -> None:
        count, places = self.get(what, (0, []))
        self[what] = count + 1, places if count >= EXAMPLES else [*places, where]

    def lines(self, verb: str) -> str:
        return "\n".join(f"data: {verb} {count:,}: {what}: {', '.join(map(repr, places))}"
                         + (", ..." if count > len(places) else "") for what, (count, places) in self.items())


def read_bytes(path: Path, most: int = LONGEST) -> bytes:
    """The first bytes of a file. Raises OSError, also for what is no plain file: a pipe might never end."""
    if not path.is_file():
        raise OSError("no plain file")
    with open(path, "rb") as file:
        return file.read(most)


def lines_of(text: TextIO) -> Iterator[str]:
    """A table's lines, without NULs, at which Python 3.10 gives a table up. Raises OSError beyond what a
    table may hold: a small gzip can unpack to anything."""
    size = number = 0
    while line := text.readline(LONGEST):
        size, number = size + len(line), number + 1
        if size > LARGEST or number > MOST_LINES:
            raise OSError(f"larger than {LARGEST:,} characters or {MOST_LINES:,} lines")
        if "\0" in line[:8].strip("\0\r\n") and line.count("\0") > len(line) // 4:
            raise OSError("every other byte is 0, as in UTF-16 without its mark; save the table as UTF-8")
        yield line.replace("\0", "")


CELLS = "line with more or fewer cells than the header"
BESIDE_CELLS = "line of a table beside, with more or fewer cells than its header"
WORDS = ("nan -nan na n/a n.a. none null (null) nil nat <na> undefined unknown "
         "#na #n/a #name? #value! #ref! #div/0! #num! #null! "   # spreadsheets'
         "#nv #wert! #bezug! #nom? #spill! #calc! #busy! #field! err:502")
MISSING = {form for word in WORDS.split() for form in (word, word.upper(), word.capitalize())}
MISSING |= {"NaN", "-NaN", "NaT", "\\N", "-", "--", "?", "."}


def given(text: str, notes: Tally, where: str) -> str:
    """The text; "" where it means missing, which is noted."""
    if text.strip() not in MISSING:
        return text
    notes.add("text that means missing (nan, NA, None, null, -), taken as blank", where)
    return ""


def read_table(path: Path, notes: Tally, needed: Collection[str],
               more: Collection[str] = (), noted_as: str = CELLS) -> Iterator[dict[str, str]]:
    """CSV (RFC 4180, the first line names the columns) -> one dict a line, of the columns asked for.

    Column names are lower case, cells stripped, missing columns and cells of MISSING empty. "a|b" among the
    needed is satisfied by either. Raises DataError where needed columns are missing. Lines with other cells
    than the header's are left out, and counted `noted_as`. Never holds the whole table.
    """
    lines = None
    try:
        if not path.is_file():
            raise OSError("no plain file")
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(lines_of(text), strict=True, skipinitialspace=True)
            columns = [name.strip().lower() for name in next(lines, [])]
            if not all(set(name.split("|")) & set(columns) for name in needed):
                raise DataError(f"{path}: expected the columns {', '.join(needed).replace('|', ' or ')}; "
                                f"found {', '.join(map(repr, columns)) or 'none'}"
                                + "; cells are parted by commas" * any({*";\t"} & {*c} for c in columns))
            names = [*"|".join(needed).split("|"), *more]
            if twice := [name for name in names if columns.count(name) > 1]:
                raise DataError(f"{path}: two columns are named {twice[0]!r}; expected one")
            places = [(name, columns.index(name)) for name in names if name in columns]
            blank = dict.fromkeys(names, "")
            width = max(i for i, name in enumerate(columns, 1) if name)  # NIH's header ends in a comma
            for cells in lines:
                if len(cells) < width or any(map(str.strip, cells[width:])):
                    if any(map(str.strip, cells)):
                        notes.add(noted_as, f"{path.name}, line {lines.line_num}")
                    continue
                row = blank | {name: cells[i].strip() for name, i in places}
                if not MISSING.isdisjoint(row.values()):
                    row = {name: given(cell, notes, f"{path.name}, line {lines.line_num}: {name}")
                           for name, cell in row.items()}
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: byte 0x{error.object[error.start]:02x} soon after line "
                        f"{lines.line_num if lines else 0}; save the table as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num}: not a CSV table: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {lines.line_num}" if lines and lines.line_num else ""
        raise DataError(f"{path}: cannot be read{after}: {error}") from None


def newest(folder: Path, pattern: str, notes: Tally) -> list[Path]:
    """The last by name of the files that match, as one or none, a .csv before its .csv.gz; that there are
    others is noted."""
    paths = sorted((path for path in folder.glob(pattern)
                    if pattern[-1] != "*" or path.name.endswith((".csv", ".csv.gz"))),
                   key=lambda path: (path.name.removesuffix(".gz"), path.suffix != ".gz"))
    if len(paths) > 1:
        notes.add(f"other table passed over for {paths[-1].name}", ", ".join(p.name for p in paths[:-1]))
    return paths[-1:]
