"""archives.py: tiny folders laid out as the public archives are; every name and report in them is made up."""

import gzip
import os
import zipfile
from math import isnan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chests import tables
from chests.archives import compose_from_labels, read_rows, whole
from chests.labels import LABELS, label
from chests.tables import DataError, Tally
from data import load

EFFUSION = LABELS.index("Pleural Effusion")


def put(folder: Path, files: dict[str, str | None]) -> None:
    """Writes text files (gzipped if named so); None stands for an image."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.linear_gradient("L").resize((40, 40)).save(path)
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")


def loaded(folder: Path) -> dict[str, str]:
    """{image: its report} of all sides together"""
    return {row.image: row.report for part in load(str(folder), size=16).values() for row in part.rows}


REPORT = " FINDINGS:\n \n Heart size is normal.\n \n IMPRESSION:\n \n Small left\n effusion.\n"


@pytest.fixture
def mimic(tmp_path):
    """Five patients with a frontal image each, the first with a lateral as well; the fifth has no report."""
    subjects = [f"1000000{i}" for i in range(5)]
    files, metadata, split, labels = {}, "dicom_id,subject_id,study_id,ViewPosition\n", "dicom_id,split\n", ""
    for i, subject in enumerate(subjects):
        study, side = f"5000000{i}", "validate" if i == 3 else "train"
        files[f"files/p10/p{subject}/s{study}/d{i}.jpg"] = None
        metadata += f"d{i},{subject},{study},{'PA' if i % 2 else 'AP'}\n"
        split += f"d{i},{side}\n"
        values = [{"Pleural Effusion": "1.0", "Edema": "-1.0"}.get(name, "") for name in LABELS]
        labels += f"{study},{','.join(values)}\n"
        if i < 4:
            files[f"files/p10/p{subject}/s{study}.txt"] = REPORT
    files["files/p10/p10000000/s50000000/side.jpg"] = None
    files |= {
        "mimic-cxr-2.0.0-metadata.csv.gz": metadata + "side,10000000,50000000,LATERAL\nbad,../../x,1,PA\n",
        "mimic-cxr-2.0.0-split.csv.gz": split,
        "mimic-cxr-2.0.0-chexpert.csv.gz": f"study_id,{','.join(LABELS)}\n{labels}"}
    put(tmp_path, files)
    return tmp_path


def test_mimic(mimic):
    """MIMIC-CXR-JPG: frontal images, the impression as prompt, its splits, labels where no report is."""
    assert read_rows(mimic, "report", Tally())[0] == "MIMIC-CXR-JPG"
    chests = load(str(mimic), size=16)
    assert [row.patient for row in chests["val"].rows] == ["10000003"]
    assert set(chests["val"].reports) == {"Small left effusion."}
    reports = loaded(mimic)
    assert len(reports) == 5
    assert reports["files/p10/p10000004/s50000004/d4.jpg"] == "Pleural effusion. Possible edema."


def test_mimic_reports_from_the_zip(mimic):
    """The reports may stay in mimic-cxr-reports.zip, as PhysioNet ships them, or lie in a folder of that name
    into which it was unpacked."""
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip", "w") as reports:
        for path in mimic.glob("files/*/*/*.txt"):
            reports.writestr(str(path.relative_to(mimic)), path.read_text())
            path.unlink()
    assert list(loaded(mimic).values()).count("Small left effusion.") == 4
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip") as reports:
        reports.extractall(mimic / "mimic-cxr-reports")
    (mimic / "mimic-cxr-reports.zip").unlink()
    assert list(loaded(mimic).values()).count("Small left effusion.") == 4
    (mimic / "mimic-cxr-reports" / "files").rename(mimic / "reports")   # and as some lay it out
    assert list(loaded(mimic).values()).count("Small left effusion.") == 4
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip", "w") as reports:
        first, *others = (path.relative_to(mimic / "reports") for path in mimic.glob("reports/*/*/*.txt"))
        reports.writestr(f"sections/{first}", "Edema.")     # the commonest root counts
        for path in (first, *others[:2]):                   # the fourth lies in the folder alone
            reports.write(mimic / "reports" / path, f"mimic-cxr/2.0.0/{path}")
    assert list(loaded(mimic).values()).count("Small left effusion.") == 4


def test_mimic_as_png(mimic):
    """Copies of MIMIC-CXR-JPG at other sizes keep its folders, but may hold PNGs, or capitals."""
    for before, after in ((".jpg", ".png"), (".png", ".JPG")):
        for path in mimic.glob(f"files/*/*/*/*{before}"):
            path.rename(path.with_suffix(after))
        assert len(loaded(mimic)) == 5


def test_another_suffix_stands_in_for_one_film_not_for_all(mimic, capsys):
    """A film is the .jpg that the archive has, whatever lies beside it (an overlay, say); where only a file
    of another suffix is there, that counts for this film alone, and is said."""
    for path in mimic.glob("files/*/*/*/d*.jpg"):
        path.with_suffix(".png").write_bytes(path.read_bytes())
    (mimic / "files/p10/p10000001/s50000001/d1.jpg").unlink()
    overlays = [name for name in loaded(mimic) if name.endswith("png")]
    assert overlays == ["files/p10/p10000001/s50000001/d1.png"]
    assert "noted 1: image of another suffix than the table's or the archive's" in capsys.readouterr().out


def test_reports_that_windows_packed(mimic):
    """Backslashes in the zip are folders' slashes."""
    before = loaded(mimic)
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip", "w") as reports:
        for path in mimic.glob("files/*/*/*.txt"):
            member = zipfile.ZipInfo("x")
            member.filename = str(path.relative_to(mimic)).replace("/", "\\")
            reports.writestr(member, path.read_text())
            path.unlink()
    assert loaded(mimic) == before


def test_of_two_trees_in_the_zip_always_the_same_counts(mimic, capsys):
    """Equally many reports below two folders of the zip: those nearest to its top count, and that is said."""
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip", "w") as reports:
        for path in mimic.glob("files/*/*/*.txt"):
            for root, text in (("edited/", "Edema."), ("", path.read_text())):
                reports.writestr(f"{root}{path.relative_to(mimic)}", text)
            path.unlink()
    assert list(loaded(mimic).values()).count("Small left effusion.") == 4
    assert "below several folders, of which files/ counts first: 'edited/files/'" in capsys.readouterr().out


def test_what_a_failed_download_left_is_no_report(mimic):
    """A page that says so, or a pointer to a file that was not fetched, is no prompt and no normal film."""
    left = ["404: Not Found", "<!DOCTYPE html>\n<html><p>Please sign in to see the film.</p></html>",
            "version https://git-lfs.github.com/spec/v1\noid sha256:00", '{"error": "access denied"}']
    for text, path in zip(left, sorted(mimic.glob("files/*/*/*.txt")), strict=True):
        path.write_text(text)
    assert set(loaded(mimic).values()) == {"Pleural effusion. Possible edema."}
    for text, path in zip(["Access denied", "Not Found\n", "302 Found", "Forbidden."],
                          sorted(mimic.glob("files/*/*/*.txt")), strict=True):
        path.write_text(text)
    assert set(loaded(mimic).values()) == {"Pleural effusion. Possible edema."}
    for path in mimic.glob("files/*/*/*.txt"):
        path.write_text("<html><body><p>No acute cardiopulmonary abnormality.</p></body></html>")
    assert list(loaded(mimic).values()).count("No acute cardiopulmonary abnormality.") == 4


def append(folder: Path, table: str, lines: str) -> None:
    path = folder / f"mimic-cxr-2.0.0-{table}.csv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + lines.encode()))


def test_odd_mimic_tables_are_counted_and_named(mimic, capsys):
    """A dicom_id listed twice is taken once, of a study's two lines of labels the first counts, a label that
    is no label is blank, an image without a split goes by its patient, a report that cannot be read is
    replaced by labels, and a study with neither is skipped. Each is printed with its count and example."""
    blank = "," * (len(LABELS) - 1)
    append(mimic, "metadata", "d0,10000001,50000001,AP\ne,10000005,50000005,PA\nf,10000006,50000006,PA\n")
    append(mimic, "split", "e,train\n")
    append(mimic, "chexpert", f"50000004{blank},1.0\n50000006,2.0{blank[:-1]},1.0\n")
    put(mimic, {f"files/p10/p1000000{i}/s5000000{i}/{name}.jpg": None for i, name in ((5, "e"), (6, "f"))})
    report = mimic / "files/p10/p10000001/s50000001.txt"
    report.unlink()
    report.mkdir()
    reports = loaded(mimic)
    assert len(reports) == 6
    assert reports["files/p10/p10000001/s50000001/d1.jpg"] == "Pleural effusion. Possible edema."
    assert reports["files/p10/p10000004/s50000004/d4.jpg"] == "Pleural effusion. Possible edema."
    assert reports["files/p10/p10000006/s50000006/f.jpg"] == "Support device."
    printed = capsys.readouterr().out
    for line in ("noted 1: dicom_id in a second line of the metadata table, left out: 'd0'",
                 "noted 1: study_id in a second line of the chexpert table, left out: '50000004'",
                 "noted 1: label is none of 1, 0, -1 and blank, and taken as blank: "
                 "'study 50000006: no finding 2.0'",
                 "placed by patient: 'side', 'f'",
                 "noted 1: report cannot be read: a directory or pipe: 'files/p10/p10000001/s50000001.txt'",
                 "the prompt is composed from the labels: ",
                 "skipped 1: no report, and no labels in CheXpert's or NIH's terms: "
                 "'files/p10/p10000005/s50000005/e.jpg'"):
        assert line in printed, line


def test_a_damaged_report_in_the_zip_costs_no_more_than_itself(mimic, capsys):
    """One report of the zip that fails its checksum is named; that study's prompt comes from its labels."""
    with zipfile.ZipFile(mimic / "mimic-cxr-reports.zip", "w") as reports:
        for path in sorted(mimic.glob("files/*/*/*.txt")):
            reports.writestr(str(path.relative_to(mimic)), path.read_text())
            path.unlink()
    content = (mimic / "mimic-cxr-reports.zip").read_bytes()
    (mimic / "mimic-cxr-reports.zip").write_bytes(content.replace(b"Heart", b"Heurt", 1))
    assert list(loaded(mimic).values()).count("Small left effusion.") == 3
    assert "report cannot be read: 'files/p10/p10000000/s50000000.txt'" in capsys.readouterr().out


XML = """<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{i}"/>
<AbstractText Label="FINDINGS">Clear.</AbstractText><AbstractText Label="IMPRESSION">No {i}.</AbstractText>
<parentImage id="CXR{i}_1_IM-000{i}-1"/><parentImage id="CXR{i}_IM-000{i}-2"/></eCitation>"""
PROJECTIONS = "uid,filename,projection\n" + "".join(
    f"{i},{i}_IM-000{i}-1.dcm.png,Frontal\n{i},{i}_IM-000{i}-2.dcm.png,Lateral\n" for i in range(4))


def test_openi_xml(tmp_path, capsys):
    """Open-I as published: one XML a report, images by their ids, a broken file skipped. It tells no views:
    unless Kaggle's projections lie beside it, the first image of each report counts."""
    put(tmp_path, {f"ecgen-radiology/{i}.xml": XML.format(i=i) for i in range(4)}
        | {f"png/CXR{i}_{name}.png": None for i in range(4) for name in (f"1_IM-000{i}-1", f"IM-000{i}-2")}
        | {"ecgen-radiology/9.xml": "<eCitation>"})
    first = loaded(tmp_path)
    assert "skipped 4: further image of a report, of unknown view" in capsys.readouterr().out
    put(tmp_path, {"indiana_projections.csv": PROJECTIONS})
    assert (reports := loaded(tmp_path)) == first
    assert len(reports) == 4
    (tmp_path / "NLMCXR_reports").mkdir()   # as the archive unpacks
    (tmp_path / "ecgen-radiology").rename(tmp_path / "NLMCXR_reports" / "ecgen-radiology")
    assert loaded(tmp_path) == reports
    assert reports["png/CXR2_1_IM-0002-1.png"] == "No 2."


def test_openi_sections_that_mean_missing_are_blank(tmp_path, capsys):
    """nan, NA or None as a whole section is no text, and counted."""
    put(tmp_path, {f"ecgen-radiology/{i}.xml": XML.format(i=i).replace(f"No {i}.", text)
                   for i, text in enumerate(("nan", " NA ", "None", "Small effusion."))}
        | {f"CXR{i}_1_IM-000{i}-1.png": None for i in range(4)})
    assert sorted(loaded(tmp_path).values()) == ["Clear.", "Clear.", "Clear.", "Small effusion."]
    assert "noted 3: text that means missing" in capsys.readouterr().out


def test_openi_xml_by_other_hands(tmp_path):
    """A label in small letters, a blank line in front, the same section once more and empty."""
    again = '</AbstractText><AbstractText Label="impression"></AbstractText><parentImage'
    text = XML.replace("IMPRESSION", "Impression").replace("</AbstractText>\n<parentImage", again)
    put(tmp_path, {f"ecgen-radiology/{i}.xml": "\n" + text.format(i=i) for i in range(4)}
        | {f"CXR{i}_1_IM-000{i}-1.png": None for i in range(4)})
    assert sorted(loaded(tmp_path).values()) == [f"No {i}." for i in range(4)]


def test_openi_csv(tmp_path):
    """Open-I as on Kaggle: two tables and a folder of images, of which the frontal ones count."""
    put(tmp_path, {"indiana_projections.csv": PROJECTIONS, "indiana_reports.csv": "uid,findings,impression\n"
                   + "".join(f"{i},Clear.,Normal {i}.\n" for i in range(4))}
        | {f"images/{i}_IM-000{i}-{j}.dcm.png": None for i in range(4) for j in (1, 2)})
    reports = loaded(tmp_path)
    assert len(reports) == 4
    assert reports["images/2_IM-0002-1.dcm.png"] == "Normal 2."
    table = tmp_path / "indiana_reports.csv"
    table.write_text("".join(line.replace(",", ".0,", 1) if line[0] != "u" else line
                             for line in table.read_text().splitlines(True)))   # as pandas writes ids
    assert loaded(tmp_path) == reports
    assert [whole(key) for key in ("7.0", "7", "1.2.840.0", "")] == ["7", "7", "1.2.840.0", ""]


def test_chexpert(tmp_path):
    """CheXpert: 14 label columns in two tables, whose paths begin above the folder; reports are composed."""
    def table(names):
        return f"Path,Sex,Frontal/Lateral,{','.join(LABELS)}\n" + "".join(
            f"CheXpert-v1.0-small/{name},Male,Frontal,,,,,,,0.0,,-1.0,,1.0,,,\n" for name in names)

    images = [f"{'valid' if i > 3 else 'train'}/patient0000{i}/study1/view1_frontal.jpg" for i in range(6)]
    put(tmp_path, dict.fromkeys(images)
        | {"train.csv": table(images[:4]), "valid.csv": table(images[4:])})
    chests = load(str(tmp_path), size=16)
    assert chests["val"].patients == ["patient00004", "patient00005"]
    assert chests["val"].reports[0] == "Pleural effusion. Possible atelectasis. No consolidation."
    assert chests["val"].labels[0, [EFFUSION, 6, 8]].tolist() == [1, 0, -1]
    first = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)"   # the large set's downloads
    first.mkdir()
    for old, new in (("train.csv", first / "train.csv"), ("valid.csv", first / "valid.csv"),
                     ("valid", first / "valid"), ("train", tmp_path / "CheXpert-v1.0 batch 2 (train 1)")):
        (tmp_path / old).rename(new)
    assert load(str(tmp_path), size=16)["train"].reports == chests["train"].reports


@pytest.mark.parametrize("home, suffix", [
    ("PNG/PNG/train", ".png"), ("train", ".png"), ("PNG/train", ".jpg"),
    ("CheXpert-v1.0-small/train", ".jpg"), ("png_chexpert_plus_chunk_{}/PNG/train", ".png"),
    ("CheXpert-v1.0 batch {} (train 1)", ".jpg")])
def test_patients_of_chexpert_are_found_where_its_downloads_unpack(tmp_path, home, suffix):
    """Whatever the table's paths begin with: five zips of CheXpert Plus, the large set's batches ..."""
    put(tmp_path, {f"{home.format(i)}/patient{i}/study1/view1_frontal{suffix}": None for i in range(3)} | {
        "df_chexpert_plus_240401.csv":
            "path_to_image,frontal_lateral,deid_patient_id,section_findings,section_impression,split\n"
            + "".join(f"train/patient{i}/study1/view1_frontal.jpg,Frontal,patient{i},,Normal {i}.,train\n"
                      for i in range(3))})
    assert sorted(loaded(tmp_path).values()) == ["Normal 0.", "Normal 1.", "Normal 2."]


def test_a_folder_above_the_archive_is_told_so(tmp_path):
    """The one that was meant is named."""
    put(tmp_path, {"CheXpert-v1.0-small/train.csv": "Path\n"})
    with pytest.raises(DataError, match=r"lies above .*small/train\.csv: give the folder that holds it"):
        load(str(tmp_path), size=16)


def test_the_path_of_chexperts_table_counts_first(tmp_path):
    """Where a patient's name lies in two places, the film is that of the table's own path, as far as it goes,
    or else the one that is there."""
    rows = ["CheXpert-v1.0-small/train/patient00000", "CheXpert-v1.0-small/train/patient00001",
            "CheXpert-v1.0/train/patient00002", "train/patient00003"]
    lines = [f"{name}/study1/view1_frontal.jpg,Frontal{',' * 11}1.0,,,\n" for name in rows]
    header = f"Path,Frontal/Lateral,{','.join(LABELS)}\n"
    there = ["CheXpert-v1.0-small/train/patient00000", "train/patient00000", "valid/patient00000",
             "train/patient00001", "CheXpert-v1.0/train/patient00002", "CheXpert-v1.0/train/patient00003"]
    put(tmp_path, {f"{name}/study1/view1_frontal.jpg": None for name in there}
        | {"CheXpert-v1.0/train/patient00001/empty.txt": "", "train.csv": header + "".join(lines),
           "valid.csv": header + lines[0].replace("-small/train", "-small/valid")})
    rows = read_rows(tmp_path, "report", Tally())[1]
    found = [row.image.removesuffix("/study1/view1_frontal.jpg") for row in rows]
    assert found == [there[0], *there[3:], "valid/patient00000"]


def test_chexpert_plus(tmp_path):
    """CheXpert Plus: reports by section, images as PNG under another folder than the table says."""
    images = [f"train/patient{i}/study1/view1_frontal" for i in range(5)]
    put(tmp_path, {f"PNG/{image}.png": None for image in images} | {
        "df_chexpert_plus_240401.csv":
            "path_to_image,frontal_lateral,deid_patient_id,report,section_findings,section_impression,split\n"
            + "".join(f'{image}.jpg,Frontal,patient{i},whole,"Clear,\nall.",Normal {i}.,'
                      f"{'valid' if i == 0 else 'train'}\n" for i, image in enumerate(images))})
    assert loaded(tmp_path)[f"PNG/{images[2]}.png"] == "Normal 2."
    assert load(str(tmp_path), size=16, prompt="both")["val"].reports == ["Clear, all. Normal 0."]


def test_nih(tmp_path):
    """NIH ChestX-ray14: two of its column names hold commas; labels become reports, its test list is kept,
    and the squared images get their aspect back."""
    header = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
              "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n")
    put(tmp_path, {f"images_001/images/0000000{i}_000.png": None for i in range(6)} | {
        "Data_Entry_2017_v2020.csv": header + "".join(
            f"0000000{i}_000.png,{'Effusion|Nodule' if i % 2 else 'No Finding'},0,{i},58,M,PA,2000,1000,1,1\n"
            for i in range(6)),
        "test_list.txt": "00000005_000.png\n"})
    chests = load(str(tmp_path), size=16)
    assert chests["test"].reports == ["Pleural effusion, lung nodule."] and chests["test"].patients == ["5"]
    assert chests["test"].rows[0].aspect == 2
    assert loaded(tmp_path)["images_001/images/00000002_000.png"] == "No acute cardiopulmonary abnormality."
    for part in chests.values():
        assert torch.equal(part.labels[:, EFFUSION] == 0, part.labels[:, 0] == 1)


@pytest.mark.parametrize("name, text", [
    ("mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id\nx\n"), ("train.csv", "Path\nx\n"),
    ("indiana_reports.csv", "uid\n1\n"), ("Data_Entry_2017.csv", "Image Index\nx\n")])
def test_missing_columns(tmp_path, name, text):
    """Every layout names the table and the columns that it lacks."""
    put(tmp_path, {name: text})
    with pytest.raises(DataError, match=f"{name}: expected the columns"):
        load(str(tmp_path))


def test_damaged_gzip(tmp_path):
    """A gzipped table that is cut short, or is none, is named."""
    path = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    for content in (gzip.compress(b"dicom_id,subject_id\n" * 50)[:20], b"plain"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            load(str(tmp_path))


def test_table_cut_short_in_the_middle(tmp_path):
    """A download that broke off is refused as a whole: the rest of the table is missing. The message names
    the file and the last line that could be read."""
    path = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    lines = "".join(f"{i * 7919 % 10007},{i},{i},PA\n" for i in range(20_000))
    content = gzip.compress(b"dicom_id,subject_id,study_id,ViewPosition\n" + lines.encode())
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(DataError, match=f"{path.name}: cannot be read after line [0-9]+: Compressed"):
        load(str(tmp_path))


@given(st.lists(st.sampled_from([1.0, 0.0, -1.0, float("nan")]), min_size=13, max_size=13))
def test_composed_report_reads_back(values):
    """A report composed from any 13 labels is labelled as these same 13."""
    for name, said, value in zip(LABELS[1:], label(compose_from_labels((float("nan"), *values)))[1:], values,
                                 strict=True):
        assert said == value or (isnan(said) and isnan(value)), name


# ------------------------------------------------------------------------------------------------------------
# What users met

def test_images_count_where_the_archive_has_them(tmp_path, capsys):
    """A mask or a thumbnail of an image's name, in any other folder, never stands in for it, and is noted; of
    two tables the newer is read, and that is said."""
    header = "Image Index,Finding Labels,Patient ID\n"
    names = [f"{i:08}_000.png" for i in range(5)]
    put(tmp_path, {f"{place}/{name}": None for name in names for place in ("images_1/images", "masks", "a/b")}
        | {"Data_Entry_2017.csv": header + "".join(f"{name},Mass,1\n" for name in names),
           "Data_Entry_2017_v2020.csv": header + "".join(f"{name},Effusion,{name}\n" for name in names)})
    assert loaded(tmp_path) == {f"images_1/images/{name}": "Pleural effusion." for name in names}
    printed = capsys.readouterr().out
    assert "noted 10: image passed over for another of its name: 'masks/00000000_000.png for im" in printed
    assert "other table passed over for Data_Entry_2017_v2020.csv: 'Data_Entry_2017.csv'" in printed


def test_a_name_with_its_folder_is_that_image(tmp_path, capsys):
    """A table that was joined may name images with their folder: the same images, and nothing stands in."""
    names = [f"{i:08}_000.png" for i in range(5)]
    nih(tmp_path, names, ["images_001/images"])
    table = tmp_path / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("\n0", "\nimages_001/images/0"))
    assert sorted(loaded(tmp_path)) == [f"images_001/images/{name}" for name in names]
    assert "stands in" not in capsys.readouterr().out


@pytest.mark.parametrize("header, cells", [
    ("OriginalImage[Width,Height]", "64,32"), ('"OriginalImage[Width,Height]"', '"64,32"'),
    ("OriginalImageWidth,OriginalImageHeight", "64,32"), ("Age", "7")])
def test_true_sizes_however_the_table_was_saved(tmp_path, capsys, header, cells):
    """The true aspect is read from two columns, from one cell, or from columns renamed; where there is none,
    that is said."""
    names = [f"{i:08}_000.png" for i in range(5)]
    nih(tmp_path, names, ["images"])
    lines = [f"{name},Effusion,{name},{cells}\n" for name in names]
    table = "".join([f"Image Index,Finding Labels,Patient ID,{header}\n", *lines])
    (tmp_path / "Data_Entry_2017.csv").write_text(table)
    aspects = {row.aspect for part in load(str(tmp_path)).values() for row in part.rows}
    assert aspects == ({None} if header == "Age" else {2.0})
    assert ("noted 5: no true width and height" in capsys.readouterr().out) == (header == "Age")


def nih(folder: Path, names: list[str], places: list[str], listed: bytes = b"00000000_000.png\n") -> None:
    """ChestX-ray14 with these images in each of the places"""
    put(folder, {f"{place}/{name}": None for place in places for name in names} | {
        "Data_Entry_2017.csv": "Image Index,Finding Labels,Patient ID\n"
                               + "".join(f"{name},Effusion,{name}\n" for name in names)})
    (folder / "test_list.txt").write_bytes(listed)


def test_a_mask_never_stands_in_for_a_missing_image(tmp_path, capsys):
    """An image that is missing where the archive has its own is missing, whatever lies elsewhere; where the
    archive's places hold none, a name found in two folders is used from neither; hidden folders count for
    nothing."""
    names = [f"{i:08}_000.png" for i in range(8)]
    nih(tmp_path / "a", names, ["images", "masks", "images_masks", ".thumbs"])
    (tmp_path / "a/images" / names[5]).unlink()
    assert sorted(loaded(tmp_path / "a")) == [f"images/{name}" for name in names if name != names[5]]
    nih(tmp_path / "b", names, ["xrays", "masks"])
    (tmp_path / "b/masks" / names[5]).unlink()
    with pytest.raises(DataError, match="1 of 8 rows usable"):
        load(str(tmp_path / "b"))
    assert "noted 14: image in several folders, none of them the archive's own" in capsys.readouterr().out
    nih(tmp_path / "c", names, ["heatmaps"])
    load(str(tmp_path / "c"))
    assert "noted 8: image found in none of the archive's own folders" in capsys.readouterr().out
    nih(tmp_path / "d", names, ["images"])
    put(tmp_path / "d", {f"images/{name[:-4]}.bmp": None for name in names})   # an overlay, say
    assert sorted(loaded(tmp_path / "d")) == [f"images/{name}" for name in names]
    for path in tmp_path.glob("d/images/*.png"):
        path.unlink()
    assert sorted(loaded(tmp_path / "d")) == [f"images/{name[:-4]}.bmp" for name in names]


def test_a_film_of_another_suffix_is_said(tmp_path, capsys):
    """NIH's films are .png: a .jpg beside one counts for nothing, in the place of a missing one it counts,
    and is said; likewise a size that cannot be read."""
    names = [f"{i:08}_000.png" for i in range(6)]
    nih(tmp_path, names, ["images"])
    put(tmp_path, {f"images/{name[:-4]}.jpg": None for name in names[:2]})
    (tmp_path / "images" / names[0]).unlink()
    table = tmp_path / "Data_Entry_2017.csv"
    head, *rows = table.read_text().splitlines()
    rows = [head + ",OriginalImage[Width,Height]", *(f"{row},4 px,2" for row in rows)]
    table.write_text("\n".join(rows) + "\n")
    assert sorted(loaded(tmp_path)) == ["images/00000000_000.jpg", *(f"images/{name}" for name in names[1:])]
    out = capsys.readouterr().out
    assert "noted 1: image of another suffix than the table's" in out
    assert "another of its name: 'images/00000001_000.jpg for images/00000001_000.png'" in out
    assert "noted 6: true width and height that give no aspect: the film stays as it is: '4 px x 2'" in out


def test_the_image_that_a_table_names_is_read(tmp_path):
    """x.png, where x.jpg lies beside it."""
    names = [f"{i:08}_000.png" for i in range(5)]
    nih(tmp_path, names, ["images"])
    put(tmp_path, {f"images/{name[:-4]}.jpg": None for name in names})
    assert sorted(loaded(tmp_path)) == [f"images/{name}" for name in names]


def test_the_official_test_list_is_kept_or_refused(tmp_path, capsys):
    """With a byte order mark or without suffixes it means the same; in UTF-16 it is refused; its absence and
    names that the table has not are noted."""
    names = [f"{i:08}_000.png" for i in range(8)]
    for listed in (b"00000000_000.png\nzebra.png\n", b"\xef\xbb\xbf00000000_000.png\nzebra.png",
                   b"00000000_000 zebra"):
        nih(tmp_path, names, ["images"], listed)
        assert load(str(tmp_path), size=16)["test"].patients == [names[0]]
    assert "noted 1: name in test_list.txt that the table has not: 'zebra'" in capsys.readouterr().out
    nih(tmp_path, names, ["images"], "00000000_000.png\n".encode("utf-16"))
    with pytest.raises(DataError, match="test_list.txt: cannot be read as UTF-8"):
        load(str(tmp_path), size=16)
    (tmp_path / "test_list.txt").rename(tmp_path / "test_list_NIH.txt")   # as Kaggle has it
    (tmp_path / "test_list_NIH.txt").write_text("00000001_000.png")
    assert load(str(tmp_path), size=16)["test"].patients == [names[1]]
    (tmp_path / "test_list_NIH.txt").unlink()
    load(str(tmp_path), size=16)
    assert "no official split: patients are split anew" in capsys.readouterr().out


def test_no_finding_of_0_is_not_mentioned(tmp_path):
    """CheXpert's valid.csv has 0 where others are blank. "No Finding: 0" is no finding to deny, and "No
    Finding: 1" beside a finding is none."""
    row = ["0.0"] * 14
    row[EFFUSION] = "1.0"
    head, images = f"Path,Frontal/Lateral,{','.join(LABELS)}\n", [f"train/patient{i}/a.jpg" for i in range(6)]
    put(tmp_path, dict.fromkeys(images) | {"train.csv": head + "".join(
        f"{image},Frontal,{i % 2}.0,{','.join(row[1:])}\n" for i, image in enumerate(images))})
    train = load(str(tmp_path), size=16)["train"]
    assert train.reports[0].startswith("Pleural effusion. No widened mediastinum or cardiomegaly or")
    assert train.labels[:, 0].isnan().all() and label(train.reports[0])[EFFUSION] == 1


def test_a_report_is_its_own_uids(tmp_path, capsys):
    """Of two reports with one uid the first counts; a film without a uid, or of one that is in no report, has
    none, and that is said."""
    projections = PROJECTIONS + "nan,x.png,Frontal\n9.0,y.png,Frontal\n"
    put(tmp_path, {"indiana_projections.csv": projections, "x.png": None, "y.png": None,
                   "indiana_reports.csv": "uid,findings,impression\n"
                   + "".join(f"{i},Clear.,Normal {i}.\n" for i in range(4)) + "3,,Edema.\n,,Somebody's.\n"}
        | {f"images/{i}_IM-000{i}-{j}.dcm.png": None for i in range(4) for j in (1, 2)})
    assert sorted(loaded(tmp_path).values()) == [f"Normal {i}." for i in range(4)]
    printed = capsys.readouterr().out
    assert "noted 1: uid in a second line of indiana_reports.csv, left out: '3'" in printed
    assert "skipped 2: uid is not in indiana_reports.csv: 'x.png', 'y.png'" in printed


def test_xml_files_are_read_whole(tmp_path, capsys):
    """Markup within a section, a namespace, capitals in the suffix; without a uId a file is one patient;
    one that names no image is noted."""
    texts = {f"{i}.xml": XML.format(i=i) for i in range(5)}
    texts["0.xml"] = texts["0.xml"].replace("No 0.", "There is <b>no</b> effusion. <i>Large</i> mass.")
    texts["1.xml"] = texts["1.xml"].replace("<eCitation>", '<eCitation xmlns="http://x.org">')
    texts["2.XML"] = texts.pop("2.xml").replace("<uId", "<other")
    texts["page.xml"] = "<html><body>Not found</body></html>"
    put(tmp_path, {f"ecgen-radiology/{name}": text for name, text in texts.items()}
        | {f"CXR{i}_{name}.png": None for i in range(5) for name in (f"1_IM-000{i}-1", f"IM-000{i}-2")})
    reports = loaded(tmp_path)
    assert len(reports) == 5
    assert reports["CXR0_1_IM-0000-1.png"] == "There is no effusion. Large mass."
    chests = load(str(tmp_path), size=16)
    assert len({name for name, part in chests.items() for row in part.rows if "CXR2_" in row.image}) == 1
    assert "XML file that names no image: 'ecgen-radiology/page.xml'" in capsys.readouterr().out


def test_mimic_as_it_may_come(mimic, capsys):
    """Splits in capitals, a backup beside a table, a report in another encoding; without the split table
    that is said."""
    split = mimic / "mimic-cxr-2.0.0-split.csv.gz"
    split.write_bytes(gzip.compress(gzip.decompress(split.read_bytes()).upper().replace(b"DICOM_ID,SPLIT\nD0",
                                    b"dicom_id,split\nd0").replace(b"\nD", b"\nd")))
    split.with_suffix(".gz.bak").write_bytes(b"not a table")
    report = mimic / "files/p10/p10000000/s50000000.txt"
    report.write_bytes(REPORT.encode().replace(b"Small", b"na\xefve small"))
    assert [row.patient for row in load(str(mimic), size=16)["val"].rows] == ["10000003"]
    assert "report is not UTF-8: letters are lost: 'files/p10/p10000000" in capsys.readouterr().out
    split.unlink()
    load(str(mimic), size=16)
    assert "no official split: patients are split anew" in capsys.readouterr().out


def test_odd_xml_files_cost_one_row_each(tmp_path, capsys):
    """What macOS leaves behind is no report; a file's own encoding is obeyed; one in none, or a pipe, is
    counted and named; further images, of which many are laterals, are counted."""
    put(tmp_path, {f"ecgen-radiology/{i}.xml": XML.format(i=i) for i in range(4)}
        | {f"CXR{i}_{name}.png": None for i in range(6) for name in (f"1_IM-000{i}-1", f"IM-000{i}-2")})
    folder = tmp_path / "ecgen-radiology"
    (folder / "._3.xml").write_bytes(b"\0\5\26\7Mac OS X")
    latin = XML.format(i=4).replace("Clear", "na\xefve")
    (folder / "4.xml").write_bytes(latin.replace("utf-8", "iso-8859-1").encode("latin-1"))
    (folder / "5.xml").write_bytes(latin.encode("latin-1"))
    os.mkfifo(folder / "6.xml")
    assert len(loaded(tmp_path)) == 5
    printed = capsys.readouterr().out
    assert "skipped 2: XML file that cannot be read: 'ecgen-radiology/5.xml', 'ecgen-radio" in printed
    assert "skipped 5: further image of a report, of unknown view" in printed


def test_reasons_say_what_is_true(mimic, capsys):
    """Ids that became floats, a report that is a pipe, and one that a link leads away to, are named so."""
    append(mimic, "metadata", "x,10000009.0,50000009.0,PA\n")
    reports = sorted(mimic.glob("files/p10/*/*.txt"))
    reports[0].unlink()
    os.mkfifo(reports[0])
    reports[1].rename(mimic.parent / "away.txt")
    reports[1].symlink_to(mimic.parent / "away.txt")
    assert list(loaded(mimic).values()).count("Small left effusion.") == 2
    printed = capsys.readouterr().out
    assert "is no whole number: 'subject ../../x, study 1', 'subject 10000009.0, study 50000009.0'" in printed
    assert "report cannot be read: a directory or pipe: 'files/p10/p10000000/s50000000.txt'" in printed
    assert "read: a link leads out of the folder, and is not followed: 'files/p10/p10000001" in printed


def test_a_linked_folder_is_said(mimic, capsys):
    """files/ on another disk is not followed, and each row says why."""
    (mimic / "files").rename(mimic.parent / "elsewhere")
    (mimic / "files").symlink_to(mimic.parent / "elsewhere")
    with pytest.raises(DataError, match="0 of 7 rows usable"):
        load(str(mimic))
    assert "a link leads out of the folder, and is not followed: 'files/p10/p1" in capsys.readouterr().out


def test_tables_without_end(tmp_path, monkeypatch):
    """A table that unpacks to more than any archive holds is refused where it passes that; so is a pipe."""
    path = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(gzip.compress(b"dicom_id,subject_id,study_id,ViewPosition\n" + b"a,1,1,PA\n" * 10**5))
    monkeypatch.setattr(tables, "MOST_LINES", 1000)
    with pytest.raises(DataError, match="after line 1000: larger than .* characters or 1,000 lines"):
        load(str(tmp_path))
    path.write_bytes(gzip.compress(b"\0" * 2**24))
    with pytest.raises(DataError, match="metadata.csv.gz"):
        load(str(tmp_path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="no plain file"):
        load(str(tmp_path))
