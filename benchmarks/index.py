"""How long a start takes on a data set of MIMIC-CXR-JPG's size, before the first image is decoded.

    python benchmarks/index.py [--images 377110] [--reports none|zip|files]

Writes a made-up tree in the official layout to a temporary folder (the tables with their official columns;
for frontal images a file of 16 x 16 pixels; reports on request) and loads it twice as train.py does, each
time in a process of its own: the second start finds the index that the first left in the run folder. Prints
rows, seconds, how many of them went into tables and reports (the rest looks whether the images are there),
seconds of processor time (which other programs do not lengthen), peak memory, images opened.
"""
import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

from PIL import Image

import data
from chests import archives, images
from chests.findings import LABELS

METADATA = ("dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
            "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
            "PatientOrientationCodeSequence_CodeMeaning")
VIEWS = ["AP"] * 39 + ["PA"] * 25 + ["LATERAL"] * 22 + ["LL"] * 10 + [""] * 4   # in a hundred, as in MIMIC
LINKS = 30_000          # names of one file; file systems bound them
SENTENCES = ("Small {} pleural effusion.", "No pneumothorax.", "The heart is mildly enlarged.",
             "Patchy opacity in the {} lower lobe may reflect pneumonia.", "{} basilar atelectasis.",
             "{} PICC ends in the SVC, {} cm above the carina.", "Mild pulmonary edema.", "Lungs are clear.",
             "No focal consolidation.", "Heart size is normal.",
             "Rib fractures on the {}.", "Cannot exclude a {} nodule of {} mm.")


def entries(images: int) -> Iterator[tuple[str, int, int, str]]:
    """-> dicom_id, subject_id, study_id, view of each image: 1.66 images a study, 3.5 studies a patient"""
    for i in range(images):
        study = int(i / 1.655)
        name = hashlib.sha1(str(i).encode()).hexdigest()
        yield ("-".join(name[j:j + 8] for j in range(0, 40, 8)), 10_000_000 + study * 2 // 7 * 137,
               50_000_000 + 41 * study, VIEWS[i * 37 % 100])


def report(study: int) -> str:
    draw = random.Random(study)
    said = [line.format(*draw.choices(("left", "right", str(draw.randrange(40))), k=2))
            for line in draw.sample(SENTENCES, 6)]
    return (" " * 33 + "FINAL REPORT\n INDICATION:  ___-year-old with cough.\n \n FINDINGS:\n \n "
            + "\n ".join(said[:4]) + "\n \n IMPRESSION:\n \n " + "\n ".join(said[4:]) + "\n")


def write_tables(folder: Path, rows: list[tuple[str, int, int, str]]) -> None:
    """mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz"""
    def side(subject: int) -> str:
        return {0: "validate", 1: "test"}.get(subject % 100, "train")

    columns, values = sorted(LABELS), ("1.0", "0.0", "-1.0", "", "", "", "", "", "")
    tables = {
        "metadata": [METADATA] + [
            f"{dicom},{subject},{study},CHEST (PORTABLE AP),{view},3056,2544,21800506,213014.531,"
            f"CHEST (PORTABLE AP),antero-posterior,Erect" for dicom, subject, study, view in rows],
        "split": ["dicom_id,study_id,subject_id,split"] + [
            f"{dicom},{study},{subject},{side(subject)}" for dicom, subject, study, _ in rows],
        "chexpert": ["subject_id,study_id," + ",".join(columns)] + [
            f"{subject},{study}," + ",".join(values[(study * (k + 3) // 41) % 9] for k in range(len(columns)))
            for subject, study in dict.fromkeys((subject, study) for _, subject, study, _ in rows)]}
    for name, lines in tables.items():
        with gzip.open(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", compresslevel=1) as file:
            file.write("\n".join(lines) + "\n")


def write_mimic(folder: Path, images: int, reports: str = "none") -> None:
    """A made-up MIMIC-CXR-JPG; `reports`: none, in mimic-cxr-reports.zip, or as files beside the studies."""
    rows, made, one = list(entries(images)), set(), folder / "one.jpg"
    write_tables(folder, rows)
    for i, (dicom, subject, study, view) in enumerate(rows):
        if i % LINKS == 0:
            one.unlink(missing_ok=True)
            Image.linear_gradient("L").resize((16, 16)).save(one)
        if view in ("AP", "PA"):
            place = f"{folder}/files/p{str(subject)[:2]}/p{subject}/s{study}"
            if place not in made:
                os.makedirs(place)
                made.add(place)
            os.link(one, f"{place}/{dicom}.jpg")
    one.unlink(missing_ok=True)
    names = {study: f"files/p{str(subject)[:2]}/p{subject}/s{study}.txt" for _, subject, study, _ in rows}
    if reports == "zip":
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as out:
            for study, name in names.items():
                out.writestr(name, report(study))
    elif reports == "files":
        for study, name in names.items():
            os.makedirs(os.path.dirname(folder / name), exist_ok=True)
            (folder / name).write_text(report(study))


def load(folder: Path, state: Path) -> dict:
    """Loads the tree in this process -> what a start costs."""
    opened, look = [], images.open_image
    data.open_image = images.open_image = lambda path: opened.append(path) or look(path)
    read, tables = archives.read_rows, []

    def read_rows(*args):
        start = time.monotonic()
        rows = read(*args)
        tables.append(time.monotonic() - start)
        return rows

    data.read_rows = read_rows
    start, before = time.monotonic(), time.process_time()
    sets = data.load(str(folder), size=256, cache=state)
    return {"rows": sum(len(part) for part in sets.values()), "seconds": time.monotonic() - start,
            "tables": sum(tables), "cpu": time.process_time() - before, "opened": len(opened),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--images", type=int, default=377_110, help="rows of the metadata table [377110]")
    parser.add_argument("--reports", choices=("none", "zip", "files"), default="none",
                        help="none: prompts are made of the labels [none]")
    parser.add_argument("--load", nargs=2, type=Path, metavar=("DIR", "STATE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.load:
        print(json.dumps(load(*args.load)))
        return
    if args.images < 1000:
        raise ValueError(f"--images {args.images}: expected 1000 or more")
    print("| start | rows | usable | seconds | of them tables | processor seconds | peak memory, MB "
          "| images opened |\n" + "|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        tree, state = Path(folder) / "mimic", Path(folder) / "state"
        tree.mkdir()
        write_mimic(tree, args.images, args.reports)
        for start in ("first", "second"):
            done = subprocess.run([sys.executable, __file__, "--load", tree, state], capture_output=True,
                                  text=True, start_new_session=True)   # Ctrl-C is for this process
            if done.returncode:
                raise ValueError(done.stderr.splitlines()[-1].removeprefix("error: "))
            cost = json.loads(done.stdout.splitlines()[-1])
            print(f"| {start}, reports: {args.reports} | {args.images:,} | {cost['rows']:,} | "
                  f"{cost['seconds']:.2f} | {cost['tables']:.2f} | {cost['cpu']:.2f} | "
                  f"{cost['peak']:.0f} | {cost['opened']} |")


if __name__ == "__main__":
    main()
