"""labels.py: what a report says, by rules. The reports here are written for these tests."""

import time
from collections.abc import Callable
from math import isnan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chests.archives import choose_prompt
from chests.labels import LABELS, label, label_all
from chests.reports import sections

SENTENCES = [
    "No pleural effusion or pneumothorax.", "Small left pleural effusion.", "The heart is enlarged.",
    "Heart size is normal.", "Possible right lower lobe pneumonia.", "Stable cardiomediastinal silhouette.",
    "Right chest tube in place.", "Old healed rib fracture.", "Lungs are clear.", "Mild pulmonary edema.",
]


def named(report: str) -> dict[str, float]:
    """report -> {label: value} of the labels it mentions"""
    return {name: value for name, value in zip(LABELS, label(report), strict=True) if not isnan(value)}


def test_reference_reports():
    """The two sample reports of the CheXpert labeler get its labels exactly."""
    assert named("Heart size normal and lungs are clear. No edema or pneumonia. No effusion") == {
        "No Finding": 1, "Cardiomegaly": 0, "Edema": 0, "Pneumonia": 0, "Pleural Effusion": 0}
    assert named("Left pleural effusion with adjacent atelectasis. Right effusion is also present. "
                 "Cardiomegaly without overt edema.") == {
        "Cardiomegaly": 1, "Edema": 0, "Atelectasis": 1, "Pleural Effusion": 1}


@pytest.mark.parametrize("report, name, value", [
    # denial, from the left, from the right, and through lists
    ("No focal consolidation, pleural effusion, or pneumothorax.", "Pneumothorax", 0),
    ("There is no evidence of pulmonary edema.", "Edema", 0),
    ("The lungs are clear of focal consolidation.", "Consolidation", 0),
    ("Negative for fracture.", "Fracture", 0),
    ("The left effusion has resolved.", "Pleural Effusion", 0),
    ("Pneumothorax is no longer seen.", "Pneumothorax", 0),
    ("Interval removal of the right chest tube.", "Support Devices", 0),
    ("No findings consistent with pneumonia.", "Pneumonia", 0),
    # what ends a denial
    ("No pneumothorax, small left effusion.", "Pleural Effusion", 1),
    ("No pneumothorax but there is a right effusion.", "Pleural Effusion", 1),
    ("No pneumothorax with moderate effusion.", "Pleural Effusion", 1),
    ("No significant change in the left effusion.", "Pleural Effusion", 1),
    # doubt
    ("Pneumonia cannot be excluded.", "Pneumonia", -1),
    ("Cannot exclude a small pneumothorax.", "Pneumothorax", -1),
    ("Opacity which may represent pneumonia.", "Pneumonia", -1),
    ("Opacity which may represent pneumonia.", "Lung Opacity", 1),
    ("Atelectasis versus consolidation.", "Consolidation", -1),
    ("Bibasilar atelectasis or scarring.", "Atelectasis", -1),
    ("Atelectasis and/or infiltrate.", "Atelectasis", -1),
    ("No new consolidation.", "Consolidation", -1),
    ("Findings concerning for edema.", "Edema", -1),
    ("Likely atelectasis.", "Atelectasis", 1),
    ("Mild pulmonary vascular congestion.", "Edema", -1),
    # organs are judged by their clause
    ("The cardiac silhouette is enlarged.", "Cardiomegaly", 1),
    ("The heart is not enlarged.", "Cardiomegaly", 0),
    ("Heart size and mediastinal contours are within normal limits.", "Enlarged Cardiomediastinum", 0),
    ("Heart size and mediastinal contours are within normal limits.", "Cardiomegaly", 0),
    ("Heart size is at the upper limits of normal.", "Cardiomegaly", 0),
    ("Borderline heart size.", "Cardiomegaly", -1),
    ("Stable cardiomediastinal silhouette.", "Enlarged Cardiomediastinum", -1),
    ("Normal heart size with a widened mediastinum.", "Enlarged Cardiomediastinum", 1),
    ("No cardiomegaly or widened mediastinum.", "Enlarged Cardiomediastinum", 0),
    ("Possibly enlarged cardiac silhouette.", "Cardiomegaly", -1),
    # words inside other words
    ("Massive effusion.", "Lung Lesion", None),
    ("Calcified nodule in the left lung.", "Lung Lesion", None),
    ("Pericardial effusion.", "Pleural Effusion", None),
    ("Platelike atelectasis.", "Support Devices", None),
    ("The tube projects over the mediastinum.", "Enlarged Cardiomediastinum", None),
])
def test_one_mention(report, name, value):
    """Each sentence affirms, denies, doubts or does not mention the label, as a reader would say."""
    assert named(report).get(name) == value


def test_aggregation():
    """Over a report's mentions: 0 and 1 give 1, -1 and 1 give 1, 0 and -1 give -1, also beside a 1."""
    no, yes, maybe = "No effusion. ", "Small effusion. ", "Possible effusion. "
    assert named(no + yes)["Pleural Effusion"] == 1
    assert named(maybe + yes)["Pleural Effusion"] == 1
    assert named(no + maybe)["Pleural Effusion"] == -1
    assert named(no + maybe + yes)["Pleural Effusion"] == -1


def test_no_finding():
    """No Finding is 1 beside devices, but not beside any other finding, certain or not; it is never 0."""
    assert named("Lungs are clear. Right PICC line in place.") == {"No Finding": 1, "Support Devices": 1}
    assert named("No significant interval change. Stable chest.") == {}   # what there is, is not said
    assert "No Finding" not in named("Possible pneumonia.")
    assert "No Finding" not in named("Emphysema.")  # no label of its own, a finding all the same
    assert named("") == {}


def test_heart_failure_doubts_the_heart():
    """Heart failure is a sign of edema, and makes an unmentioned cardiomegaly uncertain."""
    assert named("Congestive heart failure.") == {"Edema": 1, "Cardiomegaly": -1}
    assert named("No evidence of heart failure.")["Edema"] == 0


@given(st.text())
def test_any_text_has_labels(text):
    """Any string at all gets 14 values out of 1, 0, -1 and nan, and sections of it can be taken."""
    values = label(text)
    assert len(values) == 14 and all(isnan(value) or value in (1, 0, -1) for value in values)
    assert sections(text)


@given(st.permutations(SENTENCES), st.integers(1, len(SENTENCES)))
def test_order_of_sentences_is_irrelevant(sentences, n):
    """A report says the same whatever the order of its sentences, their case, or the blanks between them."""
    kept = sentences[:n]
    first = named(" ".join(kept))
    assert named(" ".join(sorted(kept))) == first
    assert named("\n".join(kept).upper()) == first


@given(st.lists(st.sampled_from(SENTENCES), max_size=6))
def test_batch_is_each_report_alone(reports):
    """label_all is label for each report, whatever else is in the batch."""
    batch = label_all(reports)
    assert batch.shape == (len(reports), 14) and batch.dtype == torch.float32
    for row, report in zip(batch, reports, strict=True):
        torch.testing.assert_close(row, torch.tensor(label(report)), equal_nan=True)


def test_fast():
    """2,000 distinct reports take a second or so, and a hostile text of twice the length hardly more than
    twice as long (quadratic time would be four times as long, and minutes)."""
    reports = [" ".join(SENTENCES[i % 7:]) + f" Nodule of {i} mm." for i in range(2000)]
    assert seconds(label_all, reports) < 5
    for hostile in ("no effusion ", "\n", ".", "? ", "[ ] ", "; no", " +a", "<b ", "none of these", "v ", "x",
                    "1.", "no change in effusion or ", "could be done to evaluate ", "may be a, ", "LUNGS:\n",
                    "CHEST 1 ", "1/1/1/1/1/1/", "12/3/2019 8:10, ",
                    "dr. a ", "\\", "Indication: a\n\n", "['", "Indication: a\n", "IMPRESSION (final): "):
        first, twice = (seconds(read, hostile * times) for times in (1_000, 2_000))
        assert twice < 3 * first + 0.1, hostile


def seconds(work: Callable, argument: object) -> float:
    start = time.process_time()
    work(argument)
    return time.process_time() - start


def read(text: str) -> None:
    label(text)
    sections(text)
    choose_prompt(f"Chest {text}", "", "", "both")


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Cough, question PNEUMONIA: please look.

 FINDINGS:

 Heart size is normal.  There is a small
 left effusion.

 IMPRESSON:

 Small left effusion.
"""


def test_sections():
    """Sections are found by their headers, misspelt ones too; a colon inside a line starts none."""
    parts = sections(REPORT)
    assert parts["preamble"] == "FINAL REPORT"
    assert parts["indication"] == "Cough, question PNEUMONIA: please look."
    assert parts["findings"] == "Heart size is normal. There is a small left effusion."
    assert parts["impression"] == "Small left effusion."


def test_sections_of_odd_reports():
    """No header: all of it. No findings: the last paragraph. A view: findings. A name twice: the last."""
    assert sections("Clear lungs.") == {"full report": "Clear lungs."}
    assert sections(" HISTORY: Cough.\n \n Clear lungs.\n")["last_paragraph"] == "Clear lungs."
    assert sections(" CHEST, TWO VIEWS: Clear.\n")["findings"] == "Clear."
    assert sections(" IMPRESSION: Old.\n\n CONCLUSION: New.\n")["impression"] == "New."
    assert "impression" not in sections(" FINDINGS: Clear.\n IMPRESSION: \n")


@pytest.mark.parametrize("report", [
    "FINAL REPORT EXAMINATION: CHEST (PA AND LAT) INDICATION: Rule out edema. FINDINGS: Heart normal. "
    "IMPRESSION: Small effusion.",
    "Indication: Rule out edema. Findings: Heart normal. Impression: Small effusion.",
    "INDICATION: Rule out edema.\nFINDINGS: Heart normal.\nIMPRESSION: Small effusion.",
    "NDICATION: Rule out edema.\n INDINGS: Heart normal.\n MPRESSION: Small effusion.",
    "indication: Rule out edema.\nfindings: Heart normal.\nimpression:Small effusion.",
    "Patient history: Cough. Indication: Rule out edema. Findings: Heart normal. Conclusion: Small effusion.",
    "History: cough Indication: Rule out edema. Findings: Heart normal. Conclusion: Small effusion.",
    "INDICATION : Rule out edema. REPORT : Heart normal. IMPRESSION : Small effusion.",
    "INDICATION\nRule out edema.\n\nFINDINGS\nHeart normal.\n\nIMPRESSION\nSmall effusion.",
    "## Indication\nRule out edema.\n## Findings\nHeart normal.\n## Impression\nSmall effusion.",
    "**Indication:** Rule out edema. **Findings:** Heart normal. **Impression:** Small effusion.",
    "INDICATION: Rule out edema.\\nFINDINGS: Heart normal.\\r\\nIMPRESSION: Small effusion._x000D_",
])
def test_sections_of_flattened_reports(report):
    """The usual headers are found on one line as well, in title case, without their first letter, a colon, or
    a point before them, behind Markdown and spelled-out line breaks."""
    parts = sections(report)
    assert (parts["indication"], parts["findings"]) == ("Rule out edema.", "Heart normal.")
    assert parts["impression"] == "Small effusion."


def test_a_part_of_the_findings_starts_no_section():
    """"LUNGS:" at the start of a line stays in the findings, "Other findings:" within one too; a text in
    lower case has its headers all the same."""
    parts = sections("FINDINGS:\nLUNGS: Clear. Other findings: none.\nPLEURA: Effusion.\nIMPRESSION: Mass.")
    assert parts["findings"] == "LUNGS: Clear. Other findings: none. PLEURA: Effusion."
    parts = sections("indication: cough findings: clear impression: normal")
    assert (parts["indication"], parts["findings"], parts["impression"]) == ("cough", "clear", "normal")
