"""phantom.py and patients.py: the films show what the truth says, and the reports say what the labels say."""
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chests.labels import LABELS, label_all
from chests.patients import ANATOMY, BAD_REPORT, CATALOGUE, NORMAL_SHARE, Finding, uniform
from chests.phantom import BAD_POSTURE, JITTER, NOISE, RANGES, describe, draw, render

MANY = describe(range(4000))
UPRIGHT = [1.0, 1.0, 0.0, 0.0, 0.0]
SIDED = [(name, side, place) for name, (_, options) in CATALOGUE.items() for side, place in options
         if side in ("left", "right") and name != "Support Devices"]


def film(findings: list[Finding], patient: int = 0, size: int = 64, psi: list[float] = UPRIGHT) -> np.ndarray:
    u = uniform(0, np.array([patient]), ANATOMY, len(RANGES))[0].tolist()
    return draw(size, psi, u, findings)


def share(mask: Tensor) -> float:
    return mask.float().mean().item()


# ------------------------------------------------------------------------------------------------------------
# Repeatable

def test_a_phantom_depends_on_seed_and_index_only():
    """The same index gives the same film, report and truth alone, in another order, and in a longer batch."""
    numbers, options = [9, 3, 70000, 3], {"seed": 5, "faults": True}
    together, films = describe(numbers, **options), render(numbers, **options)
    for place, number in enumerate(numbers):
        alone = describe(torch.tensor([number]), **options)
        assert torch.equal(render(torch.tensor([number]), **options)[0], films[place])
        assert alone.reports[0] == together.reports[place]
        assert torch.equal(alone.truth[0], together.truth[place])
        assert torch.equal(alone.posture[0], together.posture[place])
        torch.testing.assert_close(alone.labels[0], together.labels[place], equal_nan=True)
    assert not torch.equal(render([9], seed=6), render([9], seed=5))


def test_the_global_generators_are_left_alone():
    """Phantoms neither use nor move torch's and numpy's global random numbers."""
    torch.manual_seed(0)
    np.random.seed(0)
    first, state = (render(range(2)), describe(range(2)).reports), torch.get_rng_state()
    torch.manual_seed(1)
    np.random.seed(1)
    second = render(range(2)), describe(range(2)).reports
    torch.manual_seed(0)
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    assert torch.equal(state, torch.get_rng_state())


def test_size_changes_pixels_only():
    """At 32, 64 and 128 pixels it is much the same picture of the same patient."""
    small, medium, large = (render(range(4), size=size) for size in (32, 64, 128))
    assert small.shape == (4, 1, 32, 32) and large.shape == (4, 1, 128, 128)
    assert (F.avg_pool2d(large.float(), 2) - medium.float()).abs().mean() < 0.02 * 255


def test_an_archive_films_the_same_patients():
    """Faults change postures and reports, never what the patients have."""
    assert torch.equal(describe(range(500)).truth, describe(range(500), faults=True).truth)


def test_no_phantoms():
    """An empty index gives empty tensors of the right shapes."""
    none = describe([])
    assert render([]).shape == (0, 1, 64, 64) and none.labels.shape == none.truth.shape == (0, len(LABELS))


# ------------------------------------------------------------------------------------------------------------
# Posture

@pytest.mark.parametrize("psi", [[1.2, 1.1, 0.1, -0.08, 0.15], [0.85, 0.9, -0.12, 0.1, -0.2],
                                 [1.0, 1.0, 0.15, 0.0, 0.0], [1.25, 0.8, 0.0, 0.0, 0.2]])
def test_psi_brings_a_film_back_to_the_canonical_chest(psi):
    """grid_sample(film, affine_grid(M(psi))) is the upright film, wherever the film reaches."""
    s_x, s_y, t_x, t_y, theta = torch.tensor(psi)
    cos, sin = theta.cos(), theta.sin()
    matrix = torch.stack([s_x * cos, -s_y * sin, t_x, s_x * sin, s_y * cos, t_y]).view(1, 2, 3)
    findings = [Finding("Lung Lesion", "left", "upper", 0.6, 0.5)]
    films = [torch.from_numpy(film(findings, size=128, psi=pose)) for pose in (psi, UPRIGHT)]
    bad, upright = torch.stack(films)[:, None, None]
    places = F.affine_grid(matrix, [1, 1, 128, 128], align_corners=False)
    back = F.grid_sample(bad, places, align_corners=False)
    inside = (places.abs().amax(-1) < 0.98)[:, None]
    assert (back - upright)[inside].abs().mean() < 0.01
    assert (back - upright)[inside].abs().mean() < 0.2 * (bad - upright)[inside].abs().mean()


def test_clean_films_are_well_positioned_and_archives_are_not():
    """Clean posture stays within the jitter; BAD_POSTURE of an archive's films leave it, as far as stated."""
    clean = MANY.posture - torch.tensor(UPRIGHT)
    assert clean.abs().max() <= JITTER + 1e-6
    archive = describe(range(4000), faults=True).posture - torch.tensor(UPRIGHT)
    bad = (archive.abs() > JITTER + 1e-6).any(1)
    assert abs(share(bad) - BAD_POSTURE) < 0.03
    low, high = torch.tensor([-0.2, -0.2, -0.15, -0.15, -0.2]), torch.tensor([0.25, 0.25, 0.15, 0.15, 0.2])
    assert (archive >= low - 1e-6).all() and (archive <= high + 1e-6).all()


# ------------------------------------------------------------------------------------------------------------
# Films

@pytest.mark.parametrize("name, side, place", SIDED)
def test_a_finding_is_where_its_truth_says(name, side, place):
    """On the 64-pixel film a small finding changes its own half clearly, and the other half not at all."""
    for patient in range(5):
        found = [Finding(name, side, place, size=0.1, seed=patient / 5)]
        change = np.abs(film(found, patient) - film([], patient))
        halves = {"right": change[:, :31], "left": change[:, 33:]}  # the patient faces us
        own, other = halves.pop(side), *halves.values()
        assert other.max() < 1e-4
        assert np.sort(own.ravel())[-10:].mean() > 6 * NOISE


@pytest.mark.parametrize("name", ["Cardiomegaly", "Enlarged Cardiomediastinum", "Edema"])
def test_a_finding_without_side_is_seen(name):
    """Heart, mediastinum and edema change dozens of pixels by more than noise, even at their smallest."""
    _, ((side, place), *_) = CATALOGUE[name]
    for patient in range(5):
        change = np.abs(film([Finding(name, side, place, 0.0, 0.5)], patient) - film([], patient))
        assert (change > 3 * NOISE).sum() > 30


@pytest.mark.parametrize("side, place", sorted(set(CATALOGUE["Support Devices"][1])))
def test_every_device_is_seen(side, place):
    """Each kind of device brightens the film, a pacemaker's box in its own half."""
    change = film([Finding("Support Devices", side, place, 0.5, 0.5)]) - film([])
    assert change.min() > -1e-6 and (change > 5 * NOISE).sum() > 15
    if place == "pacemaker":
        right, left = change[:30, :31].sum(), change[:30, 33:].sum()
        assert (left > 2 * right) if side == "left" else (right > 2 * left)


def test_a_lead_is_seen_in_front_of_the_heart():
    """Metal is brighter than any tissue: a pacemaker's lead stands out by a tenth of the greys."""
    without = film([])
    lead = film([Finding("Support Devices", "left", "pacemaker", 0.5, 0.5)])[38:44, 20:44]
    assert (lead - without[38:44, 20:44]).max() > 0.1 and lead.max() > without.max()


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "Support Devices"])
def test_larger_means_larger(name):
    """A finding of size 1 changes the film more than one of size 0; a pneumothorax darkens more of it."""
    side, place = CATALOGUE[name][1][0]
    change = [film([Finding(name, side, place, size, 0.5)]) - film([]) for size in (0, 1)]
    small, large = (np.minimum(c, 0).sum() if name == "Pneumothorax" else np.abs(c).sum() for c in change)
    assert abs(large) > 1.3 * abs(small)


def test_what_is_not_shown_is_not_drawn():
    """A finding that the reader only suspected leaves no trace."""
    suspected = Finding("Pleural Effusion", "left", "lower", 0.9, 0.5, sure=False, shown=False)
    assert np.array_equal(film([suspected]), film([]))


def test_it_is_a_chest():
    """Averaged over patients: lungs darker than heart, spine and abdomen; the heart reaches further left; the
    left dome is lower; the corners above the shoulders are air."""
    mean = render(range(200), size=64).float().mean(0)[0] / 255
    right_lung, left_lung = mean[22:34, 14:20].mean(), mean[22:34, 44:50].mean()
    heart, abdomen, air = mean[36:42, 31:36].mean(), mean[56:, 20:44].mean(), mean[:4, :8].mean()
    assert max(right_lung, left_lung) < 0.5 < 0.75 < min(heart, abdomen) and air < 0.15
    assert mean[40, 40:44].mean() > mean[40, 20:24].mean() + 0.1
    assert mean[46, 12:20].mean() > mean[46, 44:52].mean() + 0.02


def test_noise_and_exposure():
    """Tissue has most of the range of greys, without clipping much of it; films differ in exposure."""
    films = render(range(100)).float() / 255
    assert films.quantile(0.01) < 0.15 and films.quantile(0.99) > 0.75
    assert share((films == 0) | (films == 1)) < 0.02
    assert films.mean((1, 2, 3)).std() > 0.02


# ------------------------------------------------------------------------------------------------------------
# Reports

def test_labels_are_what_the_labeler_reads():
    """labels.label reads from every report, with and without faults, exactly the labels that come with it."""
    for texts in (MANY, describe(range(10**6, 10**6 + 4000), seed=3, faults=True)):
        read = label_all(texts.reports)
        agree = ((read == texts.labels) | (read.isnan() & texts.labels.isnan())).all(1)
        assert agree.all(), [texts.reports[i] for i in (~agree).nonzero()[:5, 0]]


def test_clean_reports_are_true_and_complete():
    """What a clean report affirms or denies is so; what its film shows it affirms or at least suspects."""
    labels, truth = MANY.labels, MANY.truth
    certain = (labels == 0) | (labels == 1)
    assert torch.equal(labels[certain], truth[certain])
    derived = [LABELS.index(name) for name in ("No Finding", "Lung Opacity")]
    named = [i for i in range(len(LABELS)) if i not in derived]
    spoken = (labels == 1) | (labels == -1)
    assert spoken[:, named][truth[:, named] == 1].all()


def test_suspicions_are_a_coin_toss():
    """Of the findings called uncertain, half are there."""
    unsure = MANY.labels == -1
    assert unsure.any(0).sum() >= 10
    assert abs(MANY.truth[unsure].mean() - 0.5) < 0.1


def test_no_finding():
    """No Finding is said where nothing but devices is suspected, and is true of about NORMAL_SHARE."""
    ill = [i for i, name in enumerate(LABELS) if name not in ("No Finding", "Support Devices")]
    spoken = ((MANY.labels == 1) | (MANY.labels == -1))[:, ill].any(1)
    assert torch.equal(MANY.labels[:, 0] == 1, ~spoken)
    assert torch.equal(MANY.truth[:, 0] == 1, ~(MANY.truth[:, ill] == 1).any(1))
    assert abs(MANY.truth[:, 0].mean() - NORMAL_SHARE) < 0.09  # a patient with just a device counts too


def test_rates():
    """A finding is on 9 to 14 % of the films, devices on 30 %; each is denied in more than 5 % of reports."""
    for name in CATALOGUE:
        column = LABELS.index(name)
        low, high = (0.27, 0.33) if name == "Support Devices" else (0.09, 0.14)
        assert low < MANY.truth[:, column].mean() < high, name
        assert share(MANY.labels[:, column] == 0) > 0.05, name


def test_reports_are_short_and_varied():
    """5 to 60 words, some of an impression's length, some long; hardly two alike of those with findings."""
    words = [len(report.split()) for report in MANY.reports]
    assert min(words) >= 5 and max(words) <= 60
    assert np.percentile(words, 10) <= 9 and np.percentile(words, 90) >= 35
    ill = [report for report, sick in zip(MANY.reports, MANY.truth[:, 0] == 0, strict=True) if sick]
    assert len(set(ill)) > 0.97 * len(ill)
    for report in MANY.reports:
        assert "{" not in report and "  " not in report and report[0].isupper() and report.endswith(".")
        sentences = report.split(". ")
        assert len(set(sentences)) == len(sentences)


def test_readme_prompt_is_in_style():
    """The prompt of the README's example is made of sentences that reports use."""
    sentences = {sentence.strip(". ") for report in MANY.reports for sentence in report.split(".")}
    assert {"Moderate left pleural effusion", "Heart size is normal"} <= sentences


def test_an_archive_misreports_about_a_tenth():
    """Of an archive's reports BAD_REPORT differ from the clean; some leave out, add, or change sides."""
    clean, archive = describe(range(4000)), describe(range(4000), faults=True)
    differ = torch.tensor([a != b for a, b in zip(clean.reports, archive.reports, strict=True)])
    assert abs(share(differ) - BAD_REPORT) < 0.02
    before, after = (clean.labels[:, 1:] == 1)[differ], (archive.labels[:, 1:] == 1)[differ]
    less, more = (before & ~after).any(1), (after & ~before).any(1)
    assert share(less) > 0.15 and share(more) > 0.2 and share(~less & ~more) > 0.15


# ------------------------------------------------------------------------------------------------------------

def test_speed():
    """Loose floors, as tests share their cores: 200 films and 2,000 descriptions a second."""
    start = time.process_time()
    render(range(100))
    drawn = time.process_time()
    describe(range(2000))
    assert drawn - start < 100 / 200 and time.process_time() - drawn < 2000 / 2000
