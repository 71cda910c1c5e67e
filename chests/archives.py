"""Folders of real chest X-rays -> rows of image path, report, labels, patient, split and view.

Each layout has one reader, which turns the folder's own tables into rows and does nothing else: it opens no
image and trusts no path. To add a layout, write its reader and enter it in LAYOUTS beside the file that gives
it away.
"""

import os
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import nan
from pathlib import Path

from tqdm import tqdm

from chests.findings import LABELS
from chests.images import ImageError, Row, image_places, named, safe_path, standing
from chests.reports import BESIDE, NO_REPORT, TITLE, one_line, sections, worded
from chests.tables import BESIDE_CELLS, LONGEST, DataError, Tally, given, newest, read_bytes, read_table


def joined(texts: Iterable[str]) -> str:
    """Texts as sentences of one, so that no denial reaches from one into the next"""
    *before, last = [text.strip(" ,") for text in texts if text.strip(" ,")] or [""]
    return " ".join([*(text if re.search(r"[.!?:;]\)?$", text) else f"{text}." for text in before), last])


def choose_prompt(report: str, findings: str, impression: str, prompt: str) -> str:
    """The words that condition the image. A report with section headers is cut to the sections asked for.

    Findings and impression are those of their own columns, or else the report's sections. "report": a report
    without headers as it is, else the impression, or else the findings. "impression" and "findings" fall back
    on each other; "both" joins.
    """
    report, findings, impression = ("" if NO_REPORT.match(text) else text
                                    for text in (report, findings, impression))
    if not report + findings + impression:   # as most often in an archive without reports
        return ""
    parts = sections(report)
    known = {"findings", "impression"} & set(parts)
    parts = {name: text for name, text in parts.items() if worded(text)}
    body = joined(text for name, text in parts.items() if name not in BESIDE)
    # A column may hold other sections, too; where it says nothing, the report's counts, or the other's.
    columns = {name: sections(f"{name.upper()}: {column}") if column else {}
               for name, column in (("findings", findings), ("impression", impression))}
    findings, impression = (
        next(filter(worded, (place.get(name, "") for place in (columns[name], parts, columns[other]))), "")
        for name, other in (("findings", "impression"), ("impression", "findings")))
    if prompt == "both":
        text = joined((findings, impression))
    elif prompt == "findings":
        text = findings or impression
    elif prompt == "report" and worded(body) and not known:
        text = parts.get("last_paragraph", body)
    else:
        text = impression or findings
    text = TITLE.sub("", one_line(text if text.strip() or known else parts.get("last_paragraph", body)))
    return text if worded(text) else ""


# ------------------------------------------------------------------------------------------------------------
# Labels of images that came without a report

# Terms of CheXpert and NIH ChestX-ray14 -> CheXpert label, and words that the labeler reads the same way.
TERMS = {name.lower(): (name, name.lower()) for name in LABELS} | {
    "no finding": ("No Finding", "no acute cardiopulmonary abnormality"),
    "normal": ("No Finding", "normal chest"),
    "enlarged cardiomediastinum": ("Enlarged Cardiomediastinum", "widened mediastinum"),
    "lung lesion": ("Lung Lesion", "lung nodule"),
    "pleural other": ("Pleural Other", "pleural thickening"),
    "support devices": ("Support Devices", "support device"),
    "effusion": ("Pleural Effusion", "pleural effusion"),
    "infiltration": ("Lung Opacity", "infiltration"),
    "infiltrate": ("Lung Opacity", "infiltrate"),
    "mass": ("Lung Lesion", "lung mass"),
    "nodule": ("Lung Lesion", "lung nodule"),
    "pleural thickening": ("Pleural Other", "pleural thickening"),
    "fibrosis": ("Pleural Other", "fibrosis"),
    "emphysema": (None, "emphysema"),
    "hernia": (None, "hiatal hernia"),
}


def known_terms(cell: str, notes: Tally | None = None) -> list[str]:
    """"Effusion|Pleural_Thickening|Zebra" -> ["effusion", "pleural thickening"]: those that TERMS has; others
    are noted. "No Finding" beside a finding is left out."""
    terms = [" ".join(term.replace("_", " ").lower().split()) for term in cell.split("|")]
    for term in set(terms) - set(TERMS) - {""} if notes is not None else ():
        notes.add("term of a label that is not known, left out", term)
    terms = [term for term in terms if term in TERMS]
    found = any(TERMS[term][0] not in ("No Finding", "Support Devices") for term in terms)
    return [term for term in terms if not found or TERMS[term][0] != "No Finding"]


def terms_to_labels(terms: list[str], vocabulary: set[str]) -> tuple[float, ...]:
    """Listed labels are 1, others 0 if the set lists them anywhere, else nan. "No Finding" is 1 or nan."""
    present = {TERMS[term][0] for term in terms}
    used = {TERMS[term][0] for term in vocabulary} - {"No Finding"}
    return tuple(1.0 if name in present else 0.0 if name in used else nan for name in LABELS)


LABEL_COLUMNS = [name.lower() for name in LABELS]
VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": nan}


def cells_to_labels(cells: dict[str, str], where: str, notes: Tally) -> tuple[float, ...]:
    """Cells of CheXpert's 14 columns ("1.0", "0.0", "-1.0" or empty) -> labels; others are noted, and nan.
    No Finding, the first, is 1 or nan: its 0 says what the others do, and so does its 1 beside theirs, but
    for Support Devices, the last."""
    for column in LABEL_COLUMNS:
        if cells[column] not in VALUES:
            notes.add("label is none of 1, 0, -1 and blank, and taken as blank",
                      f"{where}: {column} {cells[column]}")
    nothing, *findings, devices = (VALUES.get(cells[column], nan) for column in LABEL_COLUMNS)
    return nothing if nothing == 1 and 1 not in findings else nan, *findings, devices


def compose_report(present: list[str], possible: list[str] = (), absent: list[str] = ()) -> str:
    """Terms -> a short report that says just them; "" for none."""
    words = [list(dict.fromkeys(TERMS[term][1] for term in terms)) for terms in (present, possible, absent)]
    parts = [", ".join(words[0]), *(f"possible {word}" for word in words[1])]
    parts.append(f"no {' or '.join(words[2])}" if words[2] else "")
    return " ".join(f"{part.capitalize()}." for part in parts if part)


@lru_cache(maxsize=1 << 16)
def compose_from_labels(labels: tuple[float, ...]) -> str:
    """14 labels -> a short report that the labeler reads back as the same. Kept, as labels repeat."""
    named = [[name.lower() for name, value in zip(LABELS, labels, strict=True) if value == wanted]
             for wanted in (1, -1, 0)]
    return compose_report(*named)


# ------------------------------------------------------------------------------------------------------------
# Layouts. A reader gets the folder, the table that gave its layout away, which part of a report is wanted,
# and a Tally for what is odd in the tables without costing a row.

def true_aspect(width: str, height: str, notes: Tally) -> float | None:
    """Two cells -> width / height; None if they do not say, which is noted of cells that are not blank."""
    try:
        aspect = float(width) / float(height)
    except (ValueError, ZeroDivisionError):
        aspect = 0
    if 0.25 <= aspect <= 4:
        return aspect
    if width or height:
        notes.add("true width and height that give no aspect: the film stays as it is", f"{width} x {height}")
    return None


def whole(key: str) -> str:
    """"7.0", as pandas writes 7 in a column with blanks -> "7"; a UID that ends in .0 stays."""
    return re.sub(r"^(\d+)\.0$", r"\1", key)


PATIENTS = ("patient_id", "subject_id", "patientid", "patient id")
VIEWS = ("view", "viewposition", "view_position", "view position", "projection", "frontal/lateral")


def plain_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """metadata.csv: `image`, and `report`, `findings`, `impression` or `labels` ('|' between terms).

    Optional: `patient_id`, `split`, `view` (or as the archives call them), and `orig_width`, `orig_height` of
    images stored as a square.
    """
    table = list(read_table(path, notes, ["image", "report|findings|impression|labels"],
                            [*PATIENTS, "split", *VIEWS, "orig_width", "orig_height"]))
    vocabulary = {term for cells in table for term in known_terms(cells["labels"], notes)}
    also: dict[tuple[str, str], str] = {}   # {(column, name): that person's in an earlier column}
    for cells in table:
        first, *others = [(name, cells[name]) for name in PATIENTS if cells[name]] or [("", "")]
        for other in others:
            also.setdefault(other, first[1])
    for cells in table:
        report = choose_prompt(cells["report"], cells["findings"], cells["impression"], prompt)
        labels = None
        if not report:
            terms = known_terms(cells["labels"])
            report, labels = compose_report(terms), terms_to_labels(terms, vocabulary)
        patient = next((also.get((name, cells[name]), cells[name]) for name in PATIENTS if cells[name]), "")
        yield Row(cells["image"], report, labels, patient, cells["split"].lower(),
                  " ".join(cells[name].lower() for name in VIEWS).strip(),
                  true_aspect(cells["orig_width"], cells["orig_height"], notes))


def chexgenbench_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """prompt_INFO.csv of CheXGenBench, synthetic images: `prompt` (or `annotated_prompt`), `img_savename`."""
    for cells in read_table(path, notes, ["img_savename", "prompt|annotated_prompt"]):
        yield Row(cells["img_savename"], cells["prompt"] or cells["annotated_prompt"])


def mimic_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """MIMIC-CXR-JPG: mimic-cxr-2*-{metadata,split,chexpert}.csv[.gz], files/p10/p10000032/s50414267/*.jpg.

    Reports are MIMIC-CXR's: files/p10/p10000032/s50414267.txt, or below REPORTS, or all in
    mimic-cxr-reports.zip. A study without one gets a report composed from its CheXpert labels. Images may be
    .png as well.
    """
    split = mimic_table(folder, "split", ["dicom_id", "split"], notes,
                        lambda cells, _: cells["split"].lower())
    if not split:
        notes.add("no official split: patients are split anew", "mimic-cxr-2*-split.csv")
    labels = mimic_table(folder, "chexpert", ["study_id", *LABEL_COLUMNS], notes,
                         lambda cells, study: cells_to_labels(cells, f"study {study}", notes))
    read, seen = report_reader(folder, notes), set()
    for cells in read_table(path, notes, ["dicom_id", "subject_id", "study_id", "viewposition"]):
        dicom, subject, study, view = cells.values()
        if not (subject.isdecimal() and study.isdecimal()):  # they become part of a path
            yield Row(f"subject {subject}, study {study}", "", fault="subject or study is no whole number")
            continue
        stem = f"p{subject[:2]}/p{subject}/s{study}"
        frontal = view.lower() in ("pa", "ap")
        if dicom in seen:
            notes.add("dicom_id in a second line of the metadata table, left out", dicom)
            continue
        seen.add(dicom)
        if split and dicom not in split:
            notes.add("no line in the split table: placed by patient", dicom)
        report = choose_prompt(read(f"{stem}.txt") if frontal else "", "", "", prompt)
        own = None if report or not frontal else labels.get(study)
        if own and (composed := compose_from_labels(own)):
            notes.add("no report (mimic-cxr-reports.zip, or a link to it, was looked for): the prompt is "
                      "composed from the labels", f"files/{stem}.txt")
            report = composed
        image = f"files/{stem}/{dicom}.jpg"
        yield Row(standing(folder, [image], notes) if frontal else image, report, own, subject,
                  split.get(dicom, ""), view.lower() if frontal else "lateral or unknown")


def mimic_table(folder: Path, name: str, columns: list[str], notes: Tally,
                value: Callable[[dict[str, str], str], object]) -> dict[str, object]:
    """mimic-cxr-2*-NAME.csv[.gz] -> {its first column: value(cells, first column)}; {} if there is none.

    Of lines with the same first column the first counts, and equal values are kept once.
    """
    found, kept = {}, {}
    for path in newest(folder, f"mimic-cxr-2*-{name}.csv*", notes):
        for cells in read_table(path, notes, columns, noted_as=BESIDE_CELLS):
            key = whole(cells[columns[0]])
            if key in found:
                notes.add(f"{columns[0]} in a second line of the {name} table, left out", key)
            else:
                new = value(cells, key)
                found[key] = kept.setdefault(new, new)
    return found


# Where MIMIC-CXR's reports may lie unpacked; the first is the images' folder, too
REPORTS = ("files/", "mimic-cxr-reports/files/", "mimic-cxr-reports/", "reports/files/", "reports/")


def report_reader(folder: Path, notes: Tally) -> Callable[[str], str]:
    """folder -> a function from "p10/p10000032/s50414267.txt" to that report's text, out of the zip, whatever
    it is packed below, or else from REPORTS; "" if absent."""
    archive, reports = folder / "mimic-cxr-reports.zip", None
    if archive.is_file():
        try:
            reports = zipfile.ZipFile(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{archive}: cannot be read: {error}") from None
    names = reports.namelist() if reports else []   # which Windows writes with backslashes
    members = {name.replace("\\", "/"): name for name in names} | {name: name for name in names}
    found = map(re.compile(r"(.*?)p\d\d/p\d+/s\d+\.txt").fullmatch, members)
    count = Counter(name[1] for name in found if name)
    packed = sorted(count, key=lambda root: (-count[root], len(root), root))
    if len(packed) > 1:
        notes.add(f"reports lie in the zip below several folders, of which {packed[0] or '.'} counts first",
                  ", ".join(packed[1:3]))
    beside = [root for root in REPORTS if (folder / root).is_dir()]

    def place(name: str) -> str:
        in_zip = (root + name for root in packed if root + name in members)
        unpacked = (root + name for root in beside if os.path.lexists(f"{folder}/{root}{name}"))
        return next(in_zip, "") or next(unpacked, "")

    def read(name: str) -> str:
        if not (name := place(name)):
            return ""
        try:
            packed = name in members
            with reports.open(members[name]) if packed else open(safe_path(folder, name), "rb") as file:
                text = file.read(LONGEST).decode("utf-8", "replace")
            if "\ufffd" in text:
                notes.add("report is not UTF-8: letters are lost", name)
            return text
        except ImageError as error:
            notes.add(f"report cannot be read: {error}", name)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError):
            notes.add("report cannot be read", name)  # damaged, encrypted, not allowed
        return ""

    return read


def openi_xml_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """Open-I as published: ecgen-radiology/N.xml, and images in the folder or below, named by their ids.

    The files name no views. Where indiana_projections.csv lies there as well, it does; else of each report
    the first image counts, which seldom is a lateral (129 of the 2,467 whose DICOM file says it).
    """
    place = image_places(folder, OPENI, notes)
    views = openi_views(folder, notes)
    for file in sorted(path.glob("[!.]*.[xX][mM][lL]"), key=lambda file: (len(file.name), file.name)):
        here = str(file.relative_to(folder))
        try:
            root = ET.fromstring(read_bytes(safe_path(folder, here)).lstrip())  # obeys its declared encoding
        except (ET.ParseError, OSError, ValueError, LookupError):
            yield Row(here, "", fault="XML file that cannot be read")
            continue
        parts: dict[str, str] = {}
        for part in root.iterfind(".//{*}AbstractText"):
            name = part.get("Label", "").upper()
            parts[name] = parts.get(name) or given("".join(part.itertext()), notes, f"{here}: {name}")
        report = choose_prompt("", parts.get("FINDINGS", ""), parts.get("IMPRESSION", ""), prompt)
        patient = root.find("{*}uId")
        images = [image.get("id", "") for image in root.iterfind(".//{*}parentImage")]
        if not images:
            notes.add("XML file that names no image", here)
        more = "further image of a report, of unknown view (indiana_projections.csv has views)"
        for number, name in enumerate(images):
            view = views.get(openi_key(name), "")
            yield Row(place.get(name, name), report, view=view, fault=more if number and not view else "",
                      patient=file.stem if patient is None else patient.get("id", file.stem))


def openi_csv_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """Open-I as on Kaggle: indiana_reports.csv, indiana_projections.csv, images in the folder or below."""
    place = image_places(folder, OPENI, notes)
    texts = {}
    for cells in read_table(path, notes, ["uid", "findings", "impression"], noted_as=BESIDE_CELLS):
        if texts.setdefault(whole(cells["uid"]), cells) is not cells:
            notes.add("uid in a second line of indiana_reports.csv, left out", cells["uid"])
    for cells in read_table(folder / "indiana_projections.csv", notes, ["uid", "filename", "projection"]):
        uid, name = whole(cells["uid"]), cells["filename"]
        text = texts.get(uid) if uid else None
        report = choose_prompt("", text["findings"], text["impression"], prompt) if text else ""
        yield Row(named(place, name, notes), report, patient=uid, view=cells["projection"].lower(),
                  fault="" if text else "uid is not in indiana_reports.csv")


def openi_views(folder: Path, notes: Tally) -> dict[str, str]:
    """{openi_key: "frontal" or "lateral"}, from indiana_projections.csv if it is there."""
    path = folder / "indiana_projections.csv"
    if not path.is_file():
        return {}
    table = read_table(path, notes, ["filename", "projection"], noted_as=BESIDE_CELLS)
    return {openi_key(cells["filename"]): cells["projection"].lower() for cells in table}


def openi_key(name: str) -> str:
    """"CXR1_1_IM-0001-4001", "CXR1_IM-0001-4001" and "1_IM-0001-4001.dcm.png" -> "1_IM-0001-4001" """
    return re.sub(r"^(?:CXR)?(\d+)_(?:\d+_)?(IM-[\d-]+).*", r"\1_\2", name)


OPENI = ("*", "images/*", "images/images_normalized/*", "images_normalized/*", "png/*", "NLMCXR_png/*")
NIH = ("images/*", "images_[0-9]*/images/*", "images_[0-9]*/*", "*")   # as the archives are downloaded


def chexpert_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """CheXpert: train.csv and valid.csv with 14 labels, no reports."""
    place = chexpert_places(folder, notes)
    for file, split in ((path, "train"), (path.with_name("valid.csv"), "val")):
        table = read_table(file, notes, ["path", "frontal/lateral", *LABEL_COLUMNS]) if file.is_file() else []
        for cells in table:
            image = place(cells["path"])
            labels = cells_to_labels(cells, image, notes)
            patient = "".join(re.findall(r"patient\d+", image)[:1])
            view = cells["frontal/lateral"].lower()
            yield Row(image, compose_from_labels(labels), labels, patient, split, view)


def chexpert_plus_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """CheXpert Plus: df_chexpert_plus_*.csv with reports by section."""
    place = chexpert_places(folder, notes)
    for cells in read_table(path, notes, ["path_to_image", "deid_patient_id", "frontal_lateral", "split",
                                          "section_findings", "section_impression"], ["report"]):
        findings, impression = cells["section_findings"], cells["section_impression"]
        whole = "" if findings or impression else cells["report"]
        report = choose_prompt(whole, findings, impression, prompt)
        yield Row(place(cells["path_to_image"]), report, patient=cells["deid_patient_id"],
                  split=cells["split"].lower(), view=cells["frontal_lateral"].lower())


# Folders of patients: of the small set and Kaggle's; of the large set's downloads; of CheXpert Plus's
HOMES = [f"{above}{split}/patient*" for above in (
    "", "CheXpert-v1.0*/", "PNG/", "PNG/PNG/", "png_chexpert_plus_chunk_*/", "png_chexpert_plus_chunk_*/PNG/")
    for split in ("train", "valid")] + ["CheXpert-v1.0 batch */patient*"]


def chexpert_places(folder: Path, notes: Tally) -> Callable[[str], str]:
    """folder -> a function from an image's path in a table, "CheXpert-v1.0/train/patient00001/..." to the one
    in the folder: the table's own, as far as it goes, or else where that patient lies; a path of no patient
    here stays."""
    homes: dict[str, list[str]] = {}
    for pattern in HOMES:
        for home in sorted(folder.glob(pattern)):
            homes.setdefault(home.name, []).append(str(home.relative_to(folder)))

    def place(name: str) -> str:
        path = "/" + name.replace("\\", "/")
        patient = re.search(r"/(patient\d+)/(.+)$", path)
        if not patient or patient[1] not in homes:
            return name
        there = [f"{home}/{patient[2]}" for home in homes[patient[1]]]
        return standing(folder, sorted(there, key=lambda here: -len(here) * path.endswith(f"/{here}")), notes)

    return place


def nih_rows(folder: Path, path: Path, prompt: str, notes: Tally) -> Iterator[Row]:
    """NIH ChestX-ray14: Data_Entry_2017*.csv, test_list.txt, images in images*/. It has no reports, and its
    labels are 1 where listed, else 0. Images are stored as squares."""
    place = image_places(folder, NIH, notes)
    sizes = ["originalimage[width", "height]",   # the name's comma makes two columns of it
             "originalimagewidth", "originalimageheight",
             "originalimage[width,height]", "originalimage[width, height]"]
    table = list(read_table(path, notes, ["image index", "finding labels", "patient id"], sizes))
    listed = next(iter(sorted(folder.glob("test_list*.txt"))), folder / "test_list.txt")   # _NIH on Kaggle
    tests = listed_names(listed) if listed.is_file() else set()
    if not tests:
        notes.add("no official split: patients are split anew", listed.name)
    for name in sorted(tests - {Path(cells["image index"]).stem for cells in table}):
        notes.add(f"name in {listed.name} that the table has not", name)
    vocabulary = {term for cells in table for term in known_terms(cells["finding labels"], notes)}
    for cells in table:
        name, terms = cells["image index"], known_terms(cells["finding labels"])
        width, height = (cells["originalimage[width"] or cells["originalimagewidth"],
                         cells["height]"] or cells["originalimageheight"])
        if "," in (both := cells["originalimage[width,height]"] or cells["originalimage[width, height]"]):
            width, height = both.split(",", 1)
        if not (width or height):
            notes.add("no true width and height: the film stays the square that it is stored as", name)
        yield Row(named(place, name, notes), compose_report(terms),
                  terms_to_labels(terms, vocabulary), cells["patient id"],
                  "test" if Path(name).stem in tests else "",
                  aspect=true_aspect(width, height, notes))


def listed_names(path: Path) -> set[str]:
    """test_list.txt -> its names, without suffixes. Raises DataError."""
    try:
        return {Path(name).stem for name in read_bytes(path, 2**24).decode("utf-8-sig").split()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None


# A layout's name, the file or folder that gives it away, its reader; the first that is found counts.
LAYOUTS = (
    ("images + metadata.csv", "metadata.csv", plain_rows),
    ("MIMIC-CXR-JPG", "mimic-cxr-2*-metadata.csv*", mimic_rows),
    ("Open-I (XML)", "ecgen-radiology", openi_xml_rows),
    ("Open-I (XML)", "NLMCXR_reports/ecgen-radiology", openi_xml_rows),
    ("Open-I (indiana_*.csv)", "indiana_reports.csv", openi_csv_rows),
    ("images of CheXGenBench", "prompt_INFO.csv", chexgenbench_rows),
    ("CheXpert Plus", "df_chexpert_plus*.csv", chexpert_plus_rows),
    ("CheXpert", "train.csv", chexpert_rows),
    ("CheXpert", "CheXpert-v1.0 batch 1*/train.csv", chexpert_rows),
    ("NIH ChestX-ray14", "Data_Entry_2017*.csv", nih_rows),
)


def read_rows(folder: Path, prompt: str, notes: Tally) -> tuple[str, list[Row]]:
    """folder -> its layout's name and all its rows, unchecked. Raises DataError if none is recognised."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    for name, pattern, reader in LAYOUTS:
        for path in newest(folder, pattern, notes):
            rows = reader(folder, path, prompt, notes)
            for other, beside, _ in LAYOUTS:
                if other != name and (unread := next(folder.glob(beside), None)):
                    notes.add(f"what {other} has lies here as well, and is not read", unread.name)
            return name, list(tqdm(rows, "reading tables", unit="row", delay=2))
    deeper = (path for name, pattern, _ in LAYOUTS for above in ("*/", "*/*/", "physionet.org/files/*/*/")
              for path in folder.glob(above + pattern))
    found = (f"lies above {within}: give the folder that holds it" if (within := next(deeper, None))
             else "has none of them" if any(folder.iterdir()) else "is empty")
    raise DataError(f"{folder}: expected metadata.csv, or the files of MIMIC-CXR-JPG, Open-I, CheXpert, "
                    f"CheXpert Plus or NIH ChestX-ray14; the folder {found}")
