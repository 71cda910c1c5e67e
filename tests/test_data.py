"""data.py and archives.py: real folders, good and hostile, and the phantom behind the same interface."""

import csv
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import data
from chests import images
from chests.archives import TERMS, Row, choose_prompt, compose_report, known_terms, terms_to_labels
from chests.labels import LABELS, label
from data import DataError, load

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from index import write_mimic  # noqa: E402

EFFUSION = LABELS.index("Pleural Effusion")


def picture(size=(48, 48), mode="L") -> Image.Image:
    """A ramp from black at the left to white at the right."""
    ramp = np.broadcast_to(np.linspace(0, 255, size[0]).round().astype(np.uint8), size[::-1])
    return Image.fromarray(np.ascontiguousarray(ramp)).convert(mode)


def write_table(folder: Path, rows: list[dict], encoding: str = "utf-8") -> None:
    with open(folder / "metadata.csv", "w", newline="", encoding=encoding) as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


def good_rows(folder: Path, n: int = 8, **columns) -> list[dict]:
    """Writes n good images of n patients; -> their rows."""
    for i in range(n):
        picture().save(folder / f"good{i}.png")
    return [{"image": f"good{i}.png", "report": f"Small effusion, {i} cm.", "patient_id": f"p{i}"} | columns
            for i in range(n)]


def all_rows(chests: dict) -> list[Row]:
    """The rows of train, judge and val, and of test where it is not val again."""
    rows = {id(row): row for part in chests.values() for row in part.rows}
    return list(rows.values())


# ------------------------------------------------------------------------------------------------------------
# Rows: a bad one is counted, named and skipped

def test_good_folder(tmp_path, capsys):
    """A plain folder loads whole: prompts, labels by the labeler, grey pixels, the layout printed."""
    write_table(tmp_path, good_rows(tmp_path))
    chests = load(str(tmp_path), size=32)
    assert set(chests) == {"train", "val", "test", "judge"}
    train = chests["train"]
    assert train.labels[:, EFFUSION].tolist() == [1.0] * len(train)
    assert train.images([0, 0]).shape == (2, 1, 32, 32) and train.images([0]).dtype == torch.uint8
    assert len(all_rows(chests)) == 8
    assert "images + metadata.csv" in capsys.readouterr().out


@pytest.fixture
def hostile(tmp_path):
    """A folder with eight good rows and one of each bad kind; a good image lies outside."""
    folder = tmp_path / "set"
    folder.mkdir()
    picture().save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "text.png").write_text("no image")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    picture((1, 1)).save(folder / "tiny.png")
    picture((400, 20)).save(folder / "strip.png")
    for name in ("cut.jpg", "cut.png"):
        picture((256, 256)).convert("RGB").rotate(30).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-400])
    bomb = bytearray((folder / "tiny.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)                # the header alone says so
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (folder / "bomb.png").write_bytes(bomb)
    bad = ["link.png", "loop.png", "text.png", "sub", "pipe.png", "tiny.png", "strip.png", "cut.jpg",
           "cut.png", "bomb.png", "absent.png", "", "../outside.png", str(tmp_path / "outside.png"),
           "zero-byte.png", "x" * 5000, "..\\outside.png"]
    rows = good_rows(folder)
    rows += [{"image": name, "report": "Clear lungs.", "patient_id": "bad"} for name in bad]
    rows.append({"image": "good0.png", "report": " ", "patient_id": "p0"})
    write_table(folder, rows)
    table = folder / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(b"zero-byte", b"zero\0byte"))   # csv writes none in 3.10
    return folder


def test_bad_rows_are_skipped(hostile, capsys):
    """Of a hostile folder just the good rows load, and each reason is printed with its count and examples."""
    chests = load(str(hostile), size=32)
    assert sorted(row.image for row in all_rows(chests)) == [f"good{i}.png" for i in range(8)]
    printed = capsys.readouterr().out
    for line in ("skipped 2: path leaves the folder: '../outside.png', '..", "no such file: ",
                 "skipped 1: an absolute path", "skipped 1: a link leads out of the folder", "'link.png'",
                 "skipped 2: a directory or pipe: 'sub', 'pipe.png'",
                 "skipped 1: not a readable image: 'text.png'",
                 "skipped 1: smaller than 16 pixels: 'tiny.png'",
                 "skipped 1: narrower than 1:4", "skipped 2: truncated or damaged: 'cut.jpg', 'cut.png'",
                 "skipped 1: too large (decompression bomb): 'bomb.png'", "skipped 1: no image named",
                 "skipped 1: no report", "8 of 26 rows usable"):
        assert line in printed


def test_large_sets_are_decoded_on_demand(hostile, monkeypatch, capsys):
    """Beyond DECODED_ROWS only headers are read at first; a file cut short is named once and black."""
    small = load(str(hostile), size=32)["train"]
    monkeypatch.setattr(data, "DECODED_ROWS", 4)
    chests = load(str(hostile), size=32)
    assert all(part.pixels is None for part in chests.values())
    cut = [(part, i) for part in chests.values() for i, row in enumerate(part.rows) if row.image == "cut.png"]
    part, i = cut[0]
    capsys.readouterr()
    assert part.images([i, i]).max() == 0
    assert capsys.readouterr().out.count("'cut.png': truncated or damaged") == 1
    train = chests["train"]
    same = [row.image for row in train.rows].index(small.rows[0].image)
    assert torch.equal(train.images([same]), small.images([0]))


# ------------------------------------------------------------------------------------------------------------
# Large sets: indexed once, images unopened

def test_index_of_a_large_set(tmp_path, monkeypatch, capsys):
    """6,000 rows of MIMIC-CXR-JPG are indexed without opening more than a sample of the images, in a share
    of the time that the whole set may take; a second start reads no table, no report and no header and finds
    the same rows. A table that changed, or a damaged index, is read again."""
    opened, look = [], data.open_image
    monkeypatch.setattr(data, "open_image", lambda path: opened.append(path) or look(path))
    monkeypatch.setattr(data, "DECODED_ROWS", 1000)
    mimic, cache = tmp_path / "mimic", tmp_path / "state"
    mimic.mkdir()
    write_mimic(mimic, 6_000)
    start = time.process_time()
    first = load(str(mimic), cache=cache)
    assert time.process_time() - start < 2   # 0.2 s of the 10 s for 377,110 rows, and room for slow machines
    assert 100 < len(opened) <= data.LOOKED_AT
    assert sum(map(len, first.values())) == 3_840
    [file] = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(data, "read_rows", None)   # would raise if called
        second = load(str(mimic), cache=cache)
    assert len(opened) <= data.LOOKED_AT and f"rows as indexed in {file}" in capsys.readouterr().out
    for name, part in first.items():
        assert str(part.rows) == str(second[name].rows) and part.digest == second[name].digest
        assert torch.equal(part.labels.nan_to_num(9), second[name].labels.nan_to_num(9))
    for damaged in (file.read_text()[:-100], "[" * 100_000):
        file.write_text(damaged)
        assert str(load(str(mimic), cache=cache)["val"].rows) == str(first["val"].rows)
        assert "is damaged and made again" in capsys.readouterr().out
    (mimic / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    assert len(load(str(mimic), cache=cache)["test"]) > len(first["test"])


def test_vanished_images_of_an_indexed_set(tmp_path, monkeypatch, capsys):
    """Images gone since the set was indexed are black and counted, the first three named; nothing stops."""
    monkeypatch.setattr(data, "DECODED_ROWS", 4)
    write_table(tmp_path, good_rows(tmp_path, 20))
    train = load(str(tmp_path), cache=tmp_path / "state")["train"]
    for row in train.rows[:10]:
        (tmp_path / row.image).unlink()
    train = load(str(tmp_path), cache=tmp_path / "state")["train"]
    capsys.readouterr()
    black = train.images(range(len(train))).amax((1, 2, 3)) == 0
    assert black.tolist() == [True] * 10 + [False] * (len(train) - 10)
    train.images([0, 1])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "no such file; black in its place (10 in train)" in lines[-1]


def test_a_large_set_of_unreadable_images_is_refused(tmp_path, monkeypatch):
    """Where most images looked at cannot be read (pointers instead of files, say), that is said at once."""
    monkeypatch.setattr(data, "DECODED_ROWS", 4)
    write_table(tmp_path, good_rows(tmp_path, 20))
    for i in range(12):
        (tmp_path / f"good{i}.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="12 of 20 images looked at cannot be used, such as 'good0.png'"):
        load(str(tmp_path))


def test_only_files_inside_the_folder_are_opened(hostile):
    """However a name is spelled, through links and '..' too: a file inside the folder, or the reason."""
    (hostile / "sub" / "inner.png").write_text("")
    (hostile / "folder").symlink_to(hostile / "sub")
    (hostile / "away").symlink_to(hostile.parent)
    absent, place = "no such file", "a directory or pipe"
    verdicts = {
        "good0.png": "", "sub/inner.png": "", "folder/inner.png": "", "sub/../good0.png": "",
        "./good0.png": "", "sub//inner.png": "", "sub\\inner.png": "", "": "no image named",
        "sub": place, "sub/": place, ".": place, "pipe.png": place, "good0.png/x": absent,
        "sub/absent.png": absent, "no/such/place.png": absent, "a/" * 3000: absent, "x" * 5000: absent,
        "zero\0byte.png": absent, "zero\0/..": absent, "loop.png": absent, "/": "an absolute path",
        str(hostile / "good0.png"): "an absolute path", "../outside.png": "path leaves the folder",
        "away/../../x": "path leaves", "away/outside.png": "a link leads out", "link.png": "a link leads out"}
    for name, reason in verdicts.items():
        if reason:
            with pytest.raises(data.ImageError, match=reason):
                images.safe_path(hostile, name)
        else:
            assert images.safe_path(hostile, name).is_file()


def test_decoding_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    """One worker or eight: the same images in the same order."""
    rows = good_rows(tmp_path, 40)
    for i, row in enumerate(rows):
        ramp = Image.linear_gradient("L").resize((40, 40)).point(lambda grey, i=i: max(grey, 3 * i))
        ramp.save(tmp_path / row["image"])
    write_table(tmp_path, rows)
    order = [Row(row["image"], "") for row in rows]
    decoded = []
    for workers in (1, 8):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        decoded.append(np.stack(list(images.decode(tmp_path, order, 16, "crop"))))
    assert (decoded[0] == decoded[1]).all()
    assert decoded[0][12:, 0, 8].tolist() == [3 * i for i in range(12, 40)]


def test_a_stream_gives_the_images_of_each_step(hostile, monkeypatch, capsys):
    """Decoded one step ahead, from any step on and after a jump, a large set gives what images() gives; a
    damaged file is named once and black; an empty step is an empty batch; a step that fails does so when it
    is asked for."""
    monkeypatch.setattr(data, "DECODED_ROWS", 4)
    train = load(str(hostile), size=32)["train"]
    train.rows += [Row("cut.png", "")]
    capsys.readouterr()
    steps = [torch.tensor([0, 1]), torch.tensor([len(train.rows) - 1, 0, 0]), torch.tensor([1]), []]
    stream = train.stream(lambda step: steps[step])
    for step in (1, 2, 3, 0, 1):
        assert torch.equal(stream(step), train.images(steps[step]))
    assert stream(2).shape == (1, 1, 32, 32) and stream(3).shape == (0, 1, 32, 32)
    assert train.images([0]).max() > 0 and capsys.readouterr().out.count("truncated or damaged") == 1
    with pytest.raises(IndexError):
        stream(4)


@pytest.mark.parametrize("table, message", [
    (None, "expected metadata.csv, or the files of MIMIC.*; the folder is empty"),
    (b"image,age\na.png,3\n", "expected the columns image, report or findings.*found 'image', 'age'"),
    (b"", "found none"),
    (b"image,report\ngood.png,caf\xe9\n", "not UTF-8 text: byte 0xe9 soon after line"),
    (b'image,report\ngood.png,"open quote\n', "metadata.csv: line 2: not a CSV table"),
    (b"image,report\n", "0 of 0 rows usable"),
    (b"image,report\nabsent.png,Clear.\n", "0 of 1 rows usable"),
])
def test_unusable_sets(tmp_path, table, message):
    """A set that cannot be used raises DataError that names the path, what is wrong and what was expected."""
    if table is not None:
        (tmp_path / "metadata.csv").write_bytes(table)
    with pytest.raises(DataError, match=message) as error:
        load(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_wrong_options(tmp_path):
    """A folder that is none, and a size out of range, raise DataError before anything is read."""
    (tmp_path / "file").write_text("")
    for folder, options in ((tmp_path / "absent", {}), (tmp_path / "file", {}), ("phantom", {"size": 4})):
        with pytest.raises(DataError):
            load(str(folder), **options)


# ------------------------------------------------------------------------------------------------------------
# Tables

def test_text_survives_the_table(tmp_path):
    """A byte-order mark, quoted commas, quotes and line breaks, and letters beyond ASCII are read right."""
    rows = good_rows(tmp_path, report='Small "trace" effusion,\nleft; naïve pleura.')
    write_table(tmp_path, rows, "utf-8-sig")
    assert set(load(str(tmp_path))["train"].reports) == {'Small "trace" effusion, left; naïve pleura.'}


def test_text_that_means_missing_is_blank(tmp_path, capsys):
    """nan, NA, None and null as a whole cell are no report and no patient; each is counted."""
    words = ["nan", "NaN", "NA", "N/A", "-", "unknown", "", "p7"]
    rows = [row | {"report": "nan", "impression": "None of it." if i else "NULL", "patient_id": words[i]}
            for i, row in enumerate(good_rows(tmp_path))]
    write_table(tmp_path, rows)
    kept = sorted(all_rows(load(str(tmp_path), size=16)))
    assert {row.report for row in kept} == {"None of it."}
    assert [row.patient for row in kept] == [f"image good{i}.png" for i in range(1, 7)] + ["p7"]
    assert "noted 15: text that means missing" in capsys.readouterr().out


def test_lines_of_other_length_are_skipped(tmp_path, capsys):
    """An unquoted comma or a stray line break gives a line other cells than the header: counted, skipped."""
    write_table(tmp_path, good_rows(tmp_path))
    with open(tmp_path / "metadata.csv", "a") as table:
        table.write("good0.png,Clear, small effusion.,p8\ngood1.png,Clear.\nSmall.,p9\n\n")
    assert len(all_rows(load(str(tmp_path), size=16))) == 8
    assert "8 of 11 rows usable\ndata: skipped 3: line with more or fewer cells" in capsys.readouterr().out


@pytest.mark.parametrize("many, report, noted", [
    (3, "Derrame izquierdo moderado.", False), (5, "Derrame izquierdo moderado.", True),
    (8, "両側胸水。", True), (8, "No acute disease.", False)])
def test_a_set_in_another_language_is_noted(tmp_path, capsys, many, report, noted):
    """Labels are read from English: of other reports nothing is known, which is said where these are most."""
    rows = good_rows(tmp_path)
    for row in rows[:many]:
        row["report"] = report
    write_table(tmp_path, rows)
    load(str(tmp_path))
    assert (f"noted {many}: report without a finding, or any English" in capsys.readouterr().out) == noted


def test_a_file_that_may_not_be_read_is_asked_for_again(tmp_path, monkeypatch):
    """What the system refuses today says nothing of the picture: it is not kept as damaged."""
    write_table(tmp_path, good_rows(tmp_path))
    whole = Image.open

    def refused(file, **how):
        if Path(file.name).name == "good3.png":
            raise PermissionError(13, "Permission denied")
        return whole(file, **how)

    monkeypatch.setattr(Image, "open", refused)
    kept = tmp_path / "kept"
    assert "good3.png" not in [row.image for row in all_rows(load(str(tmp_path), cache=kept))]
    monkeypatch.setattr(Image, "open", whole)
    assert "good3.png" in [row.image for row in all_rows(load(str(tmp_path), cache=kept))]
    for error in (OSError(5, "Input/output error"), MemoryError()):   # while it is decoded, too
        (tmp_path / "good3.png").touch()
        monkeypatch.setattr(ImageOps, "exif_transpose", Mock(side_effect=error))
        with pytest.raises(DataError, match="0 of 8 rows usable"):
            load(str(tmp_path), cache=kept)
        monkeypatch.undo()
        assert len(all_rows(load(str(tmp_path), cache=kept))) == 8
    monkeypatch.setattr(ImageOps, "exif_transpose", Mock(side_effect=OSError(22, "Invalid argument")))
    with pytest.raises(images.ImageError, match="truncated or damaged"):   # a seek that the file asks for
        images.read_image(tmp_path / "good3.png", 16, "crop")


def test_pixels_are_kept_with_the_code_that_read_them(tmp_path, monkeypatch):
    """Whoever mends the reader of images gets them read anew, not what was kept."""
    write_table(tmp_path, good_rows(tmp_path))
    before = load(str(tmp_path), cache=tmp_path / "kept")["train"].pixels
    monkeypatch.setattr(images, "to_grey", lambda image, bits: ImageOps.invert(image.convert("L")))
    assert torch.equal(load(str(tmp_path), cache=tmp_path / "kept")["train"].pixels, before)
    (edited := tmp_path / "images.py").write_text(data.READER.read_text() + "# inverted\n")
    monkeypatch.setattr(data, "READER", edited)
    assert not torch.equal(load(str(tmp_path), cache=tmp_path / "kept")["train"].pixels, before)


def test_a_header_that_ends_in_a_comma_hides_no_comma_too_many(tmp_path):
    """The empty last column that spreadsheets write does not make room for an unquoted comma."""
    rows = good_rows(tmp_path)
    lines = [f"{row['image']},{row['report'].replace(',', '')},{row['patient_id']}," for row in rows]
    lines[7] = "good7.png,Heart size is normal, large left effusion,p7"
    (tmp_path / "metadata.csv").write_text("image,report,patient_id,\n" + "\n".join(lines) + "\n")
    assert len(all_rows(load(str(tmp_path), size=16))) == 7


@pytest.mark.parametrize("text", ["#NAME?", "#REF!", "#NV", "Not available", "not provided.", "No report",
                                  "TBD"])
def test_a_text_that_says_there_is_none_is_no_report(tmp_path, text):
    """A spreadsheet's error, and words for "there is no report", are no normal film."""
    rows = good_rows(tmp_path)
    rows[0]["report"] = text
    write_table(tmp_path, rows)
    assert len(all_rows(load(str(tmp_path), size=16))) == 7


def test_a_column_named_twice_is_refused(tmp_path):
    """Which of two columns of one name counts is not for the reader of a table to guess."""
    good_rows(tmp_path)
    (tmp_path / "metadata.csv").write_text("image,report,Report\n" + "good0.png,No effusion.,Effusion.\n" * 9)
    with pytest.raises(DataError, match="two columns are named 'report'"):
        load(str(tmp_path))


def test_prompt_choice():
    """Which words condition the image: the report as given, or the sections asked for, with a fallback."""
    assert choose_prompt("Clear.", "Edema.", "Mass.", "report") == "Clear."
    assert choose_prompt("", "Edema.", "Mass.", "report") == "Mass."
    assert choose_prompt("", "Edema.", "", "impression") == "Edema."
    assert choose_prompt("", "Edema.", "Mass.", "findings") == "Edema."
    assert choose_prompt("", "Edema.", "Mass.", "both") == "Edema. Mass."
    assert choose_prompt("Clear.", "", "", "both") == "Clear."
    assert choose_prompt("FINDINGS: nan\nIMPRESSION: Effusion.", "", "", "both") == "Effusion."
    assert choose_prompt("FINDINGS: None IMPRESSION: NA", "", "", "report") == ""
    assert choose_prompt("", "No effusion\nMild edema", "", "findings") == "No effusion. Mild edema"
    headed = " FINDINGS: Small\n effusion.\n IMPRESSION: Effusion.\n"
    assert choose_prompt(headed, "", "", "report") == "Effusion."
    assert choose_prompt(headed, "", "", "both") == "Small effusion. Effusion."
    assert choose_prompt("FINDINGS: Edema. IMPRESSION: As above.", "", "", "report") == "Edema."
    assert choose_prompt("", "Edema.", "See findings.", "impression") == "Edema."
    assert choose_prompt("See above.", "", "Mass.", "report") == "Mass."
    assert choose_prompt("FINAL REPORT\n FINDINGS:\n\n IMPRESSION:\n", "", "", "report") == ""
    assert choose_prompt("\u80f8\u8154\u79ef\u6db2", "", "", "report") == "\u80f8\u8154\u79ef\u6db2"
    assert choose_prompt("HISTORY: Pneumonia?\nCHEST FILM: Edema.", "", "", "report") == "Edema."


@pytest.mark.parametrize("text, prompt", [
    ("Large pneumothorax.\n\nDr. A was called.", "Large pneumothorax."),
    ("Edema.\nDr J Bloggs\nConsultant Radiologist", "Edema."),
    ("Edema. Electronically signed by A.", "Edema."),
    ("Edema. Findings discussed with Dr. A at 9:00, with effusion.",
     "Edema. Findings discussed with Dr. A at 9:00, with effusion."),
    ("PORTABLE CHEST, 08:10 HOURS: Edema.", "Edema."), ("Two views of the chest.", ""),
    ("Chest X-ray PA view.\nEdema of the wall.", "Edema of the wall."), ("Normal chest.", "Normal chest."),
    ("INDICATION: Cough.\nThe lungs are clear.", "The lungs are clear."),
    ("INDICATION: Cough and\nFever, pneumothorax?", ""),
    ("Indication: Cough. Heart is big.", "Heart is big."),
    ("Chest. Comparison: None. There is edema.", "There is edema."),
    ("Findings- Edema. Impression- Effusion.", "Effusion."),
    ("IMPRESSION: Dr. A was paged. The heart is enlarged.", "Dr. A was paged. The heart is enlarged."),
    ("AP view of the chest, 1.5 cm nodule.", "AP view of the chest, 1.5 cm nodule."),
    ("FINDINGS: Limited study. Reason: rotation. Edema.", "Limited study. Reason: rotation. Edema."),
    ("NO CONSOLIDATION, EDEMA OR\nEFFUSION\nOR MASS", "NO CONSOLIDATION, EDEMA OR EFFUSION OR MASS"),
    ("NARRATIVE: Edema. Lungs are clear.", "NARRATIVE: Edema. Lungs are clear."), ("<Normal>", "<Normal>"),
    ("IMPRESSION: Results were called at 10:00. No acute process.",
     "Results were called at 10:00. No acute process."),
    ("Chest film 12/03/2019 08:10, 1 2 1 2. Edema.", "Edema."),
    ("Observations:\nEdema.", "Edema."),
    ("['No edema', 'Left effusion']", "No edema. Left effusion"),
    (r"No edema\.br\Effusion.", "No edema. Effusion."),
    ("LUNGS: No edema\nPLEURA: Left effusion", "LUNGS: No edema. PLEURA: Left effusion"),
    ("-No edema\n-Left effusion", "-No edema. -Left effusion"), ("Not yet reported.", ""), ("See PACS", ""),
    ("Exam cancelled.", ""), (" No edema\n\n ADDENDUM: Left effusion", "No edema. Left effusion"),
    ("1. Effusion.<br><br>2. No edema.", "1. Effusion. 2. No edema."),
    (" TECHNIQUE: Chest PA and lateral.\n", ""), (" INDICATION: Pneumonia.\n", ""),
    (" FINDINGS:\n\n IMPRESSION:\n\n INDICATION: Pneumonia.", ""),
    ("Clinical History: Pneumonia. Clear.", ""), ("PROCEDURE COMMENTS: Single view of the chest.", ""),
    ("PNEUMOTHORAX: None\nEFFUSION: Small", "PNEUMOTHORAX: None. EFFUSION: Small"),
    ("NG TUBE: In place.\nETT: 3 cm above carina.", "NG TUBE: In place. ETT: 3 cm above carina."),
    ("FINDINGS: Edema.\nIMPRESSION: As noted above.", "Edema."),
    ("FINDINGS: Edema.\nIMPRESSION: See body of report.", "Edema."), ("[REDACTED]", ""), ("blank", ""),
    (" FINDINGS: Effusion.\n\n FINAL IMPRESSION: No effusion.", "No effusion."),
    (" FINDINGS: Effusion.\n IMPRESSION AND RECOMMENDATION: Edema.", "Edema."),
    ("FINDINGS: Effusion.\nSUMMARY: Edema.\nDictated by: Dr. A", "Edema."),
    ("=====\nFINDINGS \u2013 Edema.\n-----\nElectronically signed by: Dr. A", "Edema."),
    ("IMPRESSION:\n1. Edema.\nEND OF IMPRESSION:\nSUMMARY: 2-ABNORMAL, PREVIOUSLY REPORTED", "1. Edema."),
    ("FINDINGS: Effusion.\nSUMMARY: 4 SIGNIFICANT FINDINGS\nI have reviewed the images.", "Effusion."),
    ("CHEST. IMPRESSION: EDEMA. END OF IMPRESSION: S2 ACCESSION NUMBER: 3 This is anonymized.", "EDEMA."),
    ("FINAL REPORT REASON FOR EXAM: Status post VATS. FINDINGS: Small effusion.", "Small effusion."),
    ("FINDINGS: Small effusion.\nIMPRESSION: No significant interval change.", "Small effusion."),
    ("FINDINGS: Edema.\nIMPRESSION: As compared to the previous radiograph, no relevant change.", "Edema."),
    ("FINDINGS: Edema.\nIMPRESSION: No change in the effusion.", "No change in the effusion."),
    ("FINDINGS: Edema.\nIMPRESSION: Stable cardiomegaly.", "Stable cardiomegaly."), ("Unchanged.", ""),
    ("CLINICAL INDICATION: Rule out pneumothorax. RESULT: Right effusion.", "Right effusion."),
    (" HISTORY: Cough.\n\n Right effusion.\n\n Dictated by: ___\n", "Right effusion."),
    ("INDICATION: Cough. FINDNGS: Effusion. IMPRESION: Edema.", "Edema."), ("No impression.", ""),
    ("Indication: Cough. Findngs: Effusion.", "Effusion."),
    ("FINDINGS: Edema.\nCONCLUSON: Effusion.", "Effusion."),
    ("HISTORY: Cough, rule out edema. CHEST, TWO VIEWS: Effusion.", "Effusion."),
    ("REASON FOR EXAM: Edema? PORTABLE CHEST: Effusion.", "Effusion."),
    ("FINDINGS: Effusion. CHEST: Edema. DEPRESSION: none.", "Effusion. CHEST: Edema. DEPRESSION: none."),
    ("FINDINGS: Small effusion. IMPRESSION: As above. No change from prior.", "Small effusion."),
    ("LUNGS: Clear. HEART: Enlarged. CHEST WALL: Port.", "LUNGS: Clear. HEART: Enlarged. CHEST WALL: Port."),
    ("Small effusion. CHEST CT: recommended.", "Small effusion. CHEST CT: recommended."),
    ("FINDINGS: Edema. COMPARISON: CHEST XRAY: none.", "Edema."),
    ("HEART: Enlarged. CHEST: Clear lungs.", "HEART: Enlarged. CHEST: Clear lungs."),
    ("FINDINGS: Old fractures. Compression: T12.", "Old fractures. Compression: T12."),
    ("FINDINGS: Pneumonia [Finding]. No edema.", "Pneumonia [Finding]. No edema."),
    ("TECHNIQUE: PA and lateral.\nCOMPARISON: None.\nSmall effusion.", "Small effusion."),
    ("COMPARISON: Films of 1/2.\nCT of 3/4.\n\nSmall effusion.", "Small effusion."),
    ("TECHNIQUE: AP view at 5 a.m.\nThe patient is supine.\n\nSmall effusion.", "Small effusion."),
    ("EXAM: X-ray. CHEST: 1/2/2010.\n\nHISTORY: Cough.\n\nCOMPARISON: None.\n\nEffusion.", "Effusion."),
    ("PROCEDURE: Chest. AP CHEST: Portable.\n\nHISTORY: Cough.\n\nEffusion.", "Effusion."),
    ("IMPRESSION: Edema. ATTESTATION: I have reviewed the films.", "Edema."),
    (" FINDINGS:\n \n Small effusion.\n \n ADDENDUM  The tube was removed.", "Small effusion."),
    ("IMPRESSION: Edema. ADDENDUM (1/2): On review, effusion.", "Edema."),
    ("FINDINGS (limited study): Clear lungs.\nImpression (final): Edema.", "Edema."),
    ("Left eff\u200busion.\\tE\x00dema.", "Left effusion. Edema.")])
def test_a_prompt_is_all_that_was_read_on_the_film_and_nothing_else(text, prompt):
    """Of a text without headers every paragraph; never the indication, the technique, or a line that only
    points elsewhere, or that says nothing but that nothing changed; a header of no usual name is part of
    what it heads."""
    assert choose_prompt(text, "", "", "report") == prompt


def test_a_column_may_hold_other_sections():
    """A report that says nothing of the film gives way to the columns, and these are cut to their section."""
    assert choose_prompt("INDICATION: pneumonia.", "", "Edema.", "report") == "Edema."
    whole = "INDICATION: rule out pneumonia. FINDINGS: Edema. IMPRESSION: Effusion."
    assert choose_prompt("", whole, "", "findings") == "Edema."
    assert choose_prompt("", "", "IMPRESSION: Effusion.\n\nRECOMMENDATION(S): CT.", "report") == "Effusion."
    assert choose_prompt("", whole, "", "report") == choose_prompt("", "", whole, "impression") == "Effusion."
    assert choose_prompt("", "", whole, "findings") == "Edema."


def test_a_column_that_says_there_is_no_report_is_none():
    """As a report that says so."""
    assert choose_prompt("", "Not yet reported", "Exam cancelled.", "report") == ""
    assert choose_prompt("", "Edema.", "See PACS", "report") == "Edema."


def test_two_texts_are_never_one_sentence():
    """Where findings end without a point no denial in them reaches the impression."""
    for report, columns in (("", ("No edema", "Left effusion.")),
                            (" FINDINGS: No edema\n\n IMPRESSION: Left effusion.", ("", ""))):
        assert choose_prompt(report, *columns, "both") == "No edema. Left effusion."


def test_findings_without_a_header_stand_before_the_impression():
    """As "--prompt findings" wants them: behind a blank line of what is beside the reading."""
    report = " HISTORY: Cough.\n\n The lungs are clear.\n\n IMPRESSION: Edema."
    assert choose_prompt(report, "", "", "findings") == "The lungs are clear."
    assert choose_prompt(report, "", "", "report") == "Edema."
    for beside in ("COMPARISON: Radiograph of 1/2. CT chest of 3/4.", "HISTORY: Cough. Lung cancer.",
                   "HISTORY: Cough.\n\nEvaluate for pneumonia.", "TECHNIQUE: PA. Patient is rotated.",
                   "COMPARISON:\n\nThere are no prior studies."):
        assert choose_prompt(f"{beside}\n\nIMPRESSION: Edema.", "", "", "findings") == "Edema."


@pytest.mark.parametrize("view, frontal", [
    ("", True), ("PA", True), ("AP", True), ("ap supine", True), ("AP portable", True),
    ("Frontal", True), ("POSTERO_ANTERIOR", True),
    ("posteroanterior", True), ("['PA', '']", True), ("L", False), ("LL", False),
    ("Lateral", False), ("LLAT", False), ("RAO", False), ("AP LLD", False), ("AP AXIAL", False),
    ("XTABLE LATERAL", False), ("non-frontal", False), ("not frontal", False), ("Axial", False),
    ("COSTAL", False), ("bilateral", False), ("AP decub", False), ("PA oblique", False),
    ("AP lordotic", False), ("AP flat", True), ("PA child", True)])
@pytest.mark.parametrize("column", ["view", "ViewPosition"])
def test_only_frontal_views(tmp_path, capsys, view, frontal, column):
    """A view that is named counts only where it is known to be frontal; the reason names what it was."""
    rows = good_rows(tmp_path, 9)
    rows[0] |= {column: view}
    rows = [{column: "PA"} | row for row in rows]
    write_table(tmp_path, rows)
    assert len(all_rows(load(str(tmp_path)))) == 8 + frontal
    assert frontal or f"not a frontal view (view {view.lower()!r})" in capsys.readouterr().out


def test_unknown_label_terms_are_noted(tmp_path, capsys):
    """A label term that is none of CheXpert's or NIH's is left out of the labels, and that is said."""
    write_table(tmp_path, good_rows(tmp_path, report="", labels="Effusion|Zebra, left"))
    load(str(tmp_path))
    assert "noted 8: term of a label that is not known, left out: 'zebra, left'" in capsys.readouterr().out


def test_labels_stand_in_for_a_report(tmp_path):
    """Without a report, label terms (CheXpert's or NIH's) give the labels and a short report; else not."""
    rows = good_rows(tmp_path, report="", labels="Effusion|Hernia")
    rows[0] |= {"labels": "zebra"}
    rows[1] |= {"labels": "No Finding"}
    rows[2] |= {"report": "Clear lungs.", "labels": "Mass"}
    rows[4] |= {"labels": "No Finding|Support Devices"}   # as CheXpert has it: a device is no finding
    write_table(tmp_path, rows)
    by_image = {row.image: (row, labels) for part in load(str(tmp_path)).values()
                for row, labels in zip(part.rows, part.labels, strict=True)}
    assert "good0.png" not in by_image
    assert by_image["good1.png"][0].report == "No acute cardiopulmonary abnormality."
    assert by_image["good1.png"][1][[0, EFFUSION]].tolist() == [1, 0]
    assert by_image["good4.png"][1][[0, -1]].tolist() == [1, 1]
    assert by_image["good2.png"][1][LABELS.index("Lung Lesion")].isnan()
    assert by_image["good3.png"][0].report == "Pleural effusion, hiatal hernia."
    assert by_image["good3.png"][1][EFFUSION] == 1


@given(st.lists(st.sampled_from(sorted(TERMS)), min_size=1, max_size=5))
def test_composed_reports_say_their_labels(terms):
    """The labeler reads from a composed report just the labels that it was composed from."""
    terms = known_terms("|".join(terms))
    listed = terms_to_labels(terms, set(terms))
    for name, said, value in zip(LABELS, label(compose_report(terms)), listed, strict=True):
        assert (said == 1) == (value == 1) or (name == "No Finding" and set(terms) == {"support devices"})


# ------------------------------------------------------------------------------------------------------------
# Splits

def test_no_patient_on_two_sides(tmp_path):
    """Without given splits, a patient's images are all on one side, the same on every run."""
    rows = [row | {"patient_id": f"p{i // 3}"} for i, row in enumerate(good_rows(tmp_path, 60))]
    write_table(tmp_path, rows)
    chests = load(str(tmp_path), size=16)
    sides = {name: set(part.patients) for name, part in chests.items()}
    assert {name: len(side) for name, side in sides.items()} == {"train": 12, "judge": 4, "val": 2, "test": 2}
    assert len(set.union(*sides.values())) == 20
    write_table(tmp_path, rows[::-1])
    assert {name: set(part.patients) for name, part in load(str(tmp_path), size=16).items()} == sides


def test_a_patient_spelled_in_two_ways_is_one(tmp_path):
    """Joined tables spell 7 as 7.0, and an accent as one sign or two: no patient of test is in train."""
    rows = good_rows(tmp_path, 9, split="train")
    for row, patient in zip(rows, ["7", "7.0", "\u00e9", "e\u0301", "v"], strict=False):
        row |= {"patient_id": patient}
    for row, split in zip(rows[1:5], ["test", "train", "test", "val"], strict=True):
        row |= {"split": split}
    write_table(tmp_path, rows)
    chests = load(str(tmp_path), size=16)
    assert chests["test"].patients == ["7", "\u00e9"]
    assert not {"7", "\u00e9"} & {*chests["train"].patients, *chests["judge"].patients}


def test_given_splits_stand(tmp_path, capsys):
    """Given splits are kept, under their usual names; without test, test is val; a train image of a val
    patient is left out, a split nobody knows skipped."""
    rows = good_rows(tmp_path, 11, split="TRAIN")
    rows[8] |= {"split": "validate"}
    rows[9] |= {"split": "moon"}
    rows[10] |= {"patient_id": "p8"}
    write_table(tmp_path, rows)
    chests = load(str(tmp_path))
    assert chests["val"].patients == chests["test"].patients == ["p8"]
    assert (len(chests["train"]), len(chests["judge"])) == (6, 2)
    printed = capsys.readouterr().out
    for line in ("split is none of", "good9.png, split moon", "1 train images left out"):
        assert line in printed
    write_table(tmp_path, [*rows[:8], rows[8], rows[10] | {"split": "test"}])
    assert load(str(tmp_path))["test"].patients == ["p8"]
    assert "data: 1 patients are in val and in test, as the table has them" in capsys.readouterr().out


def test_training_rows_are_in_no_order_of_the_table(tmp_path):
    """Rewards are calibrated on the last rows of train: of a table sorted by source, on all its sources."""
    rows = [row | {"patient_id": f"p{i}"} for i, row in enumerate(good_rows(tmp_path, 60))]
    write_table(tmp_path, rows)
    train = [int(name[1:]) for name in load(str(tmp_path), size=16)["train"].patients]
    assert min(train[-8:]) < 30 <= max(train[-8:]) and sorted(train) != train
    write_table(tmp_path, rows[::-1])
    assert [int(name[1:]) for name in load(str(tmp_path), size=16)["train"].patients] == train


def test_unknown_patients(tmp_path, capsys):
    """Without patient names each image counts as its own patient, and that is said."""
    write_table(tmp_path, good_rows(tmp_path, patient_id=""))
    assert len(all_rows(load(str(tmp_path)))) == 8
    assert "8 rows name no patient" in capsys.readouterr().out
    write_table(tmp_path, [row | {"patient_id": f"1.{i}0E+07"} for i, row in enumerate(good_rows(tmp_path))])
    load(str(tmp_path))
    assert "noted 8: patient as a spreadsheet shortens a number" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["subject_id", "Patient ID", "PatientID"])
def test_patients_by_other_names(tmp_path, column):
    """The column of patients may be called as the archives call it: else a patient could be on two sides."""
    write_table(tmp_path, [{column if key == "patient_id" else key: text for key, text in row.items()}
                           for row in good_rows(tmp_path)])
    assert sorted({row.patient for row in all_rows(load(str(tmp_path)))}) == [f"p{i}" for i in range(8)]


def test_a_word_for_unknown_is_said(tmp_path, capsys):
    """One patient who has a great part of all films is likely none: a table's mark for unknown."""
    rows = good_rows(tmp_path, 24)
    write_table(tmp_path, rows[:16] + [row | {"patient_id": "-1"} for row in rows[16:]])
    load(str(tmp_path))
    assert "8 of 24 rows are of one patient, '-1'" in capsys.readouterr().out


def test_a_nul_in_a_word(tmp_path):
    """A NUL, which a table cannot mean, parts no word."""
    rows = good_rows(tmp_path)
    write_table(tmp_path, [row | {"report": "Small eff-usion."} for row in rows])
    table = tmp_path / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(b"eff-usion", b"eff\0usion"))
    assert {row.report for row in all_rows(load(str(tmp_path)))} == {"Small effusion."}


def test_accents_in_two_pieces(tmp_path):
    """File names as macOS packs them, a letter and its accent apart, are those of the table."""
    rows = good_rows(tmp_path)
    (tmp_path / "good0.png").rename(tmp_path / "foe\u0301.png")
    write_table(tmp_path, [rows[0] | {"image": "fo\u00e9.png"}, *rows[1:]])
    assert len(all_rows(load(str(tmp_path)))) == 8


def test_any_code_page(tmp_path):
    """A real set is read where the system's letters are not UTF-8 (Windows' seldom are)."""
    write_table(tmp_path, good_rows(tmp_path)[:7] + [good_rows(tmp_path)[7] | {"patient_id": "Müller"}])
    done = subprocess.run([sys.executable, "-c", f"import data; data.load({str(tmp_path)!r})"], text=True,
                          env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                          cwd=Path(data.__file__).parent, capture_output=True)
    assert done.returncode == 0 and "8 of 8 rows usable" in done.stdout, done.stderr


def test_utf_16_without_its_mark_is_refused(tmp_path):
    """Every other byte is 0: without these such a table would be ASCII, and its apostrophes lost."""
    table = "image,report\na.png,Can’t exclude effusion.\n"
    (tmp_path / "metadata.csv").write_bytes(table.encode("utf-16-le"))
    with pytest.raises(DataError, match="as in UTF-16 without its mark"):
        load(str(tmp_path))
    write_table(tmp_path, good_rows(tmp_path))
    with open(tmp_path / "metadata.csv", "ab") as file:   # as a crash leaves it: nothing is lost
        file.write(bytes(300))
    assert len(all_rows(load(str(tmp_path)))) == 8


def test_cells_parted_otherwise_are_said(tmp_path):
    """A table with semicolons has none of the columns, and the refusal says why."""
    (tmp_path / "metadata.csv").write_text("image;report;patient_id\na.png;Clear.;1\n")
    with pytest.raises(DataError, match="cells are parted by commas"):
        load(str(tmp_path))


def test_a_file_is_one_patient_however_its_path_is_spelled(tmp_path):
    """Without patient names a file that two rows spell differently, or reach by a link, is not in train by
    the one and in val by the other. With names, too, it is its first one's."""
    rows = good_rows(tmp_path, patient_id="")
    (tmp_path / "linked.png").symlink_to("good1.png")
    again = [("./good0.png", "val"), ("linked.png", "val"), (".\\good2.png", "val"), ("good3.png", "test")]
    rows += [rows[0] | {"image": name, "split": split} for name, split in again]
    write_table(tmp_path, rows)
    chests = load(str(tmp_path))
    assert (len(chests["train"]) + len(chests["judge"]), len(chests["val"]), len(chests["test"])) == (4, 3, 1)
    named = [row | {"patient_id": f"q{i}", "split": ""} for i, row in enumerate(rows)]
    write_table(tmp_path, named)
    chests = load(str(tmp_path))
    sides = [{row.image for row in chests[name].rows} for name in ("train", "judge", "val")]
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_a_pair_counts_once(tmp_path, capsys):
    """Of a table that was joined to itself each pair is one; a film's other report is one more, and said. Who
    is named in one of a film's rows is its patient in all: it is on one side, whatever row comes first."""
    rows = good_rows(tmp_path, 12)
    write_table(tmp_path, rows + rows + [rows[0] | {"report": "Small left effusion."}])
    load(str(tmp_path))
    out = capsys.readouterr().out
    assert "13 of 25 rows usable" in out and "skipped 12: image named before with this report" in out
    said = "noted 1: image named before with another report or split: both count: "
    assert f"{said}'{rows[0]['image']}'" in out
    write_table(tmp_path, [row | {"split": split} for row in rows for split in ("train", "training", "")])
    load(str(tmp_path))
    assert "12 of 36 rows usable" in capsys.readouterr().out   # one split, however it is spelt
    late = [row | {"patient_id": "", "split": "val"} for row in rows[:2]]
    named = [row | {"patient_id": "same", "split": "train"} for row in rows[:4]]
    write_table(tmp_path, late + named + rows[4:])
    sides = [{row.image for row in part.rows} for part in list(load(str(tmp_path)).values())[:3]]
    assert rows[0]["image"] in sides[2] and not {row["image"] for row in rows[:4]} & (sides[0] | sides[1])


def test_one_who_is_named_in_two_columns_is_one(tmp_path):
    """A row with both names says whose the other rows' second name is."""
    rows = [row | {"patient_id": f"p{i // 2}" if i % 2 else "", "subject_id": f"s{i // 2}"}
            for i, row in enumerate(good_rows(tmp_path, 12))]
    write_table(tmp_path, rows)
    names = {row.image: row.patient for part in load(str(tmp_path)).values() for row in part.rows}
    assert [names[row["image"]] for row in rows] == [f"p{i // 2}" for i in range(12)]


def test_one_patient_has_one_name(tmp_path):
    """7, 007 and 7.0, with or without a sign that nobody sees, are one patient; so is one whose number stands
    in patient_id in some rows and in subject_id in others."""
    spelt = ["7", "007", "7.0", "7\u200b"]
    rows = [row | {"patient_id": name if i % 2 else "", "subject_id": "" if i % 2 else name}
            for i, (row, name) in enumerate(zip(good_rows(tmp_path, 4), spelt, strict=True))]
    rows += [row | {"subject_id": ""} for row in good_rows(tmp_path, 10)[4:]]
    write_table(tmp_path, rows)
    names = {row.image: row.patient for part in load(str(tmp_path)).values() for row in part.rows}
    assert {names[row["image"]] for row in rows[:4]} == {"7"}


def test_a_file_has_one_patient(tmp_path, capsys):
    """A file that a second row gives to another patient stays the first one's: it is not on two sides."""
    rows = good_rows(tmp_path, 12)
    write_table(tmp_path, rows + [row | {"patient_id": f"other{i}"} for i, row in enumerate(rows)])
    sides = [[row.image for row in part.rows] for part in load(str(tmp_path)).values()]
    assert sorted(sum(sides, [])) == sorted(row["image"] for row in rows)
    assert "skipped 12: image named before with another patient, whose it stays" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------
# Images

@pytest.mark.parametrize("name, mode", [("a.png", "L"), ("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "LA"),
                                        ("a.png", "P"), ("a.tif", "CMYK"), ("a.tif", "F"), ("a.jpg", "CMYK"),
                                        ("a.png", "I;16"), ("a.tif", "I;16"), ("a.tif", "I")])
def test_every_mode_reads_alike(tmp_path, name, mode):
    """Whatever way a picture is stored, it becomes the same 8-bit grey, not mirrored."""
    if mode in ("I;16", "I"):
        deep = np.asarray(picture()).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        Image.fromarray(deep).save(tmp_path / name)
    else:
        picture(mode=mode).save(tmp_path / name)
    read = images.read_image(tmp_path / name, 48, "crop").astype(int)
    assert abs(read - np.asarray(picture()).astype(int)).max() <= 6  # JPEG and the palette round
    assert read[:, 0].mean() < 10 < 245 < read[:, -1].mean()


@pytest.mark.parametrize("mode", ["L", "I;16"])
@pytest.mark.parametrize("turn", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270])
def test_a_turned_tiff_is_turned_back(tmp_path, mode, turn):
    """By its orientation, also where Pillow could map the file's pixels as they lie."""
    film = picture((48, 32))
    deep = np.asarray(film.transpose(turn)).astype(np.uint16) * 257
    turned = Image.fromarray(deep) if mode == "I;16" else film.transpose(turn)
    turned.save(tmp_path / "a.tif", tiffinfo={274: 6 if turn == Image.Transpose.ROTATE_90 else 8})
    film.save(tmp_path / "a.png")
    read, straight = (images.read_image(tmp_path / name, 32, "crop").astype(int)
                      for name in ("a.tif", "a.png"))
    assert abs(read - straight).max() <= 2


def test_sixteen_bits_are_sixteen_in_every_format(tmp_path):
    """A dark film stays dark, whether Pillow opens the format as "I;16" or as "I"."""
    film = np.linspace(10, 115, 48 * 48).reshape(48, 48).round().astype(np.uint16) * 257
    (tmp_path / "a.pgm").write_bytes(b"P5\n48 48\n65535\n" + film.astype(">u2").tobytes())
    Image.fromarray(film).save(tmp_path / "a.png")
    deep, usual = (images.read_image(tmp_path / name, 48, "crop").astype(int) for name in ("a.pgm", "a.png"))
    assert abs(deep - usual).max() <= 1 and usual.max() == 115
    Image.fromarray(film.astype(np.int32) * 2 - film).save(tmp_path / "a.tif")   # 32 bits with a sign
    assert abs(images.read_image(tmp_path / "a.tif", 48, "crop").astype(int) - usual).max() <= 1


def test_twelve_bits_fill_the_range(tmp_path):
    """12-bit pixels in a 16-bit file become bright, not nearly black."""
    Image.fromarray(np.asarray(picture()).astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert 245 <= images.read_image(tmp_path / "a.png", 48, "crop").max() <= 255


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_hot_pixel_does_not_blacken_a_film(tmp_path, bits):
    """One dead pixel, or a burnt-in dot, of the greatest value leaves the film's depth what it is."""
    deep = np.asarray(picture()).astype(np.uint16) * ((2**bits - 1) // 255)
    deep[5, 5] = 65535
    Image.fromarray(deep).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png", 48, "crop")
    assert abs(read[20:].astype(int) - np.asarray(picture())[20:]).max() <= 8


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_burnt_in_marker_does_not_blacken_a_film(tmp_path, bits):
    """Nor does a letter of the greatest value, of more than a thousandth of the pixels."""
    deep = np.asarray(picture()).astype(np.uint16) * ((2**bits - 1) // 255)
    deep[2:8, 2:8] = 65535
    Image.fromarray(deep).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png", 48, "crop")
    assert abs(read[20:].astype(int) - np.asarray(picture())[20:]).max() <= 8


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_hot_border_does_not_blacken_a_film(tmp_path, bits):
    """Nor does a border of the greatest value, of a fifth of the pixels."""
    deep = np.asarray(picture()).astype(np.uint16) * ((2**bits - 1) // 255)
    deep[:3], deep[-3:], deep[:, :3], deep[:, -3:] = [65535] * 4
    Image.fromarray(deep).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png", 48, "crop")[8:40, 8:40].astype(int)
    assert abs(read - np.asarray(picture())[8:40, 8:40]).max() <= 8


def test_a_file_whose_end_is_damaged_costs_one_row(tmp_path):
    """Looking for further pictures in a file may fail in many ways: the row is skipped, the set is not."""
    rows = good_rows(tmp_path, 9)
    picture().save(tmp_path / "good0.tif")
    damaged = bytearray((tmp_path / "good0.tif").read_bytes())
    first = struct.unpack_from("<I", damaged, 4)[0]
    entries = struct.unpack_from("<H", damaged, first)[0]
    struct.pack_into("<I", damaged, first + 2 + 12 * entries, len(damaged))   # the next: nothing in it
    (tmp_path / "good0.tif").write_bytes(damaged + bytes(6))
    write_table(tmp_path, [rows[0] | {"image": "good0.tif"}, *rows[1:]])
    assert len(all_rows(load(str(tmp_path), size=16))) == 8


def test_a_mask_is_no_film(tmp_path):
    """Black and white alone are fewer grey values than any film has."""
    picture().point(lambda grey: 255 * (grey > 100)).save(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match="fewer than 16 of 256 grey values"):
        images.read_image(tmp_path / "a.png", 48, "crop")


@pytest.mark.parametrize("pixels", [np.full((48, 48), np.nan), np.full((48, 48), -9.0),
                                    np.full((48, 48), -2**30)])
def test_grey_values_below_0_are_no_film(tmp_path, pixels):
    """Hounsfield units, 32 bits without a sign (which Pillow takes for negative) and nan are refused, not
    black."""
    pixels = pixels.astype(np.float32 if pixels.dtype == float else np.int32)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(images.ImageError, match="grey values below 0"):
        images.read_image(tmp_path / "a.tif", 48, "crop")


def test_blank_films_and_piles_of_films_are_none(tmp_path):
    """A film of one grey value, 10 bits in 16 of a colour (which leave 4 of 256 values), and a file of
    several pictures are refused, each for its reason; a faint one is read."""
    ramp = Image.linear_gradient("L")
    for name, image in (("white", ramp.point(lambda grey: 255)), ("clear", Image.new("RGBA", (40, 40))),
                        ("dark", ramp.point(lambda grey: grey // 64)),
                        ("faint", ramp.point(lambda grey: grey // 8))):
        image.save(tmp_path / f"{name}.png")
    ramp.save(tmp_path / "pile.tif", save_all=True, append_images=[ramp.rotate(90)])
    for name, reason in (("white.png", "blank"), ("clear.png", "blank"), ("dark.png", "blank"),
                         ("pile.tif", "several images in one file")):
        with pytest.raises(data.ImageError, match=reason):
            images.read_image(tmp_path / name, 16, "crop")
    assert images.read_image(tmp_path / "faint.png", 16, "crop").max() == 30


def test_depths_that_cannot_be_read_rightly_are_refused(tmp_path):
    """8 bits with a sign, which would wrap around, and 13 bits of a colour in 16: no film in false greys."""
    picture().save(tmp_path / "signed.tif", tiffinfo={339: 2})
    deep = np.asarray(picture()).astype(">u2")[..., None].repeat(3, 2) * np.uint16(32)
    rows = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 48, 48, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)),
              (b"IEND", b"")]
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks))
    for name, reason in (("signed.tif", "with a sign"), ("colour.png", "14 bits or fewer in 16")):
        with pytest.raises(images.ImageError, match=reason):
            images.read_image(tmp_path / name, 48, "crop")
    picture((160, 160), "RGB").point(lambda grey: grey // 5).save(tmp_path / "dim.png")   # 8 bits: as it is
    assert images.read_image(tmp_path / "dim.png", 48, "crop").max() < 64


@pytest.mark.parametrize("factor", [257, 16])
def test_min_is_white(tmp_path, factor):
    """A deep TIFF whose 0 is white is read as its negative; shallow ones Pillow turns itself."""
    deep = np.asarray(picture()).astype(np.uint16) * factor
    Image.fromarray(deep).save(tmp_path / "a.tif", tiffinfo={262: 0})
    read = images.read_image(tmp_path / "a.tif", 48, "crop").astype(int)
    assert abs(read - (255 - np.asarray(picture()).astype(int))).max() <= 2


@given(st.integers(16, 64), st.integers(16, 64), st.integers(16, 40), st.sampled_from(["crop", "pad"]))
def test_aspect_is_kept(width, height, size, fit):
    """Cropped, a picture fills the square with its middle; padded, all of it stands on black."""
    square = np.asarray(images.to_square(Image.new("L", (width, height), 200), size, fit))
    assert square.shape == (size, size)
    shape = ((square > 100).any(0).sum(), (square > 100).any(1).sum())
    longest = max(width, height) if fit == "pad" else min(width, height)
    for found, exact in zip(shape, (size * width / longest, size * height / longest), strict=True):
        assert abs(found - min(size, exact)) <= 0.5 + 1e-9


def test_squeezed_images_get_their_aspect_back(tmp_path):
    """Images stored square with orig_width twice orig_height are padded to twice as wide as high."""
    write_table(tmp_path, good_rows(tmp_path, orig_width="2000", orig_height="1000"))
    image = load(str(tmp_path), size=32, fit="pad")["train"].images([0])[0, 0]
    assert image[:8].max() == 0 and image[24:].max() == 0 and image[8:24, -1].min() > 200


def test_pixels_are_kept_in_the_cache(tmp_path, monkeypatch):
    """With a cache folder a set is decoded once; a changed image, or a damaged cache, is decoded again."""
    folder, cache = tmp_path / "set", tmp_path / "cache"
    folder.mkdir()
    write_table(folder, good_rows(folder))
    first = load(str(folder), cache=cache)["train"].images([0])
    [file] = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(data, "decode", None)  # would raise if called
        assert torch.equal(load(str(folder), cache=cache)["train"].images([0]), first)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(load(str(folder), cache=cache)["train"].images([0]), first)
    for i in range(8):
        Image.radial_gradient("L").resize((40, 40)).save(folder / f"good{i}.png")
    assert not torch.equal(load(str(folder), cache=cache)["train"].images([0]), first)


def test_files_that_changed_names_are_decoded_again(tmp_path):
    """Two films of one size and time that take each other's names: a small set's digest follows."""
    folder, cache = tmp_path / "set", tmp_path / "cache"
    folder.mkdir()
    write_table(folder, good_rows(folder))
    for i in range(8):
        picture().rotate(90 * (i % 2)).save(folder / f"good{i}.bmp")
        os.utime(folder / f"good{i}.bmp", (1e9, 1e9))
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace(".png", ".bmp"))
    before = {name: chests.digest for name, chests in load(str(folder), cache=cache).items()}
    for i in range(0, 8, 2):
        for old, new in ((i, "x"), (i + 1, i), ("x", i + 1)):
            (folder / f"good{old}.bmp").rename(folder / f"good{new}.bmp")
    assert before["train"] != load(str(folder), cache=cache)["train"].digest


# ------------------------------------------------------------------------------------------------------------
# The phantom, and real X-rays where there are some

def test_phantom_chests():
    """Phantoms have the same interface, with exact truth; an image is the same alone and in any batch."""
    chests = load("phantom", size=32, train_images=40)
    patients = [patient for part in chests.values() for patient in part.patients]
    assert len(set(patients)) == len(patients)
    train = chests["train"]
    assert len(train) == len(train.reports) == 40
    assert train.labels.shape == train.truth.shape == (40, 14) and train.posture.shape == (40, 5)
    alone = load("phantom", size=32, train_images=40)["train"].images([7])
    batch = train.images([3, 7, 7, 39])
    assert torch.equal(batch[1], alone[0]) and torch.equal(batch[2], alone[0])
    assert torch.equal(train.images([7]), alone) and not torch.equal(batch[0], alone[0])


@pytest.mark.parametrize("train, val, test", [(40, 128, 256), (4096, 512, 1024), (8192, 1024, 2048),
                                              (20_000, 1024, 2048)])
def test_a_small_set_of_phantoms_has_few_held_out(monkeypatch, train, val, test):
    """The held-out splits are an eighth and a quarter of the training split, within bounds."""
    monkeypatch.setattr(data, "PhantomChests", lambda name, first, count, *_, **how: range(count))
    assert [len(part) for part in data.load_phantom(64, 0, train).values()] == [train, val, test, train]


def test_digest_follows_what_a_run_is_made_of(tmp_path, monkeypatch):
    """A set's digest changes with its images, reports and labels, and their order (which of train is not the
    table's, but within a patient); a large set's goes by its files. A phantom's goes by its seed, range, size
    and faults, and by the code that draws it."""
    rows = good_rows(tmp_path, 6, split="train")
    rows[0]["split"] = "val"

    def digest(rows):
        write_table(tmp_path, rows)
        return load(str(tmp_path), size=16)["train"].digest

    for bound in (data.DECODED_ROWS, 4):
        monkeypatch.setattr(data, "DECODED_ROWS", bound)
        first = digest(rows)
        assert len(first) == 16 and digest(rows) == first
        assert digest(rows[::-1]) == first
        own = [row | {"patient_id": "both"} for row in rows[4:]]
        changed = {digest(rows[:4] + own), digest(rows[:4] + own[::-1])}
        changed |= {digest([row | {"report": "Clear."} for row in rows])}
        for row in rows:
            Image.radial_gradient("L").resize((40, 40 + bound % 9)).save(tmp_path / row["image"])
        assert len(changed | {digest(rows), first}) == 5
    phantoms = [data.PhantomChests("train", *options).digest for options in (
        (0, 9, 0, 32, True), (0, 9, 0, 32, True), (1, 9, 0, 32, True), (0, 8, 0, 32, True),
        (0, 9, 1, 32, True), (0, 9, 0, 64, True), (0, 9, 0, 32, False))]
    assert phantoms[0] == phantoms[1] and len(set(phantoms)) == 6
    (tmp_path / "phantom.py").write_text("another lesion")
    monkeypatch.setattr(data, "DRAWING", [tmp_path / "phantom.py"])
    assert data.PhantomChests("train", 0, 9, 0, 32, True).digest not in phantoms


@pytest.mark.skipif(not os.environ.get("CXRL_REAL"), reason="CXRL_REAL names no folder of real X-rays")
def test_real_folder(capsys):
    """A real set loads: every side has images with contrast, and prompts with labels."""
    for part in load(os.environ["CXRL_REAL"]).values():
        images = part.images(range(min(len(part), 64))).float()
        assert images.std(dim=(1, 2, 3)).min() > 5
        assert (part.labels == 1).any() and all(part.reports)
