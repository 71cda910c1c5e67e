"""judge.py: the geometry of psi, n-grams, and that the judge learns a toy chest and keeps what it learned."""
import functools
import hashlib
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chests.labels import LABELS, label_all
from evaluation import judge, metrics

HEART, FLUID = LABELS.index("Cardiomegaly"), LABELS.index("Pleural Effusion")
SENTENCES = {HEART: ("The heart is enlarged.", "The heart is not enlarged."),
             FLUID: ("There is a pleural effusion.", "No pleural effusion.")}


@dataclass
class ToyChests:
    """A grey oval with two lungs, at random poses; the heart may be large, the left base may be white."""

    count: int
    seed: int
    name: str = "test"
    size: int = 32
    posed: bool = True       # False: hide the true posture and factors, as with real images
    truth: Tensor | None = field(init=False)
    posture: Tensor | None = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        self.truth = torch.zeros(self.count, len(LABELS))
        self.truth[:, [HEART, FLUID]] = (torch.rand(self.count, 2, generator=generator) < 0.5).float()
        psi = judge.IDENTITY + 0.06 * torch.randn(self.count, 5, generator=generator)
        self.pixels = (255 * toy_images(self.truth, psi, self.size)).byte()
        self.posture = psi
        self.reports = [" ".join(SENTENCES[i][int(1 - row[i])] for i in (HEART, FLUID)) for row in self.truth]
        self.labels = label_all(self.reports)
        self.patients = [f"{self.seed}:{i}" for i in range(self.count)]
        self.digest = hashlib.sha256(self.pixels.numpy().tobytes() + repr(self.reports).encode()).hexdigest()
        if not self.posed:
            self.truth = self.posture = None

    def __len__(self) -> int:
        return self.count

    def images(self, index) -> Tensor:
        return self.pixels[index]


def toy_images(truth: Tensor, psi: Tensor, size: int) -> Tensor:
    """-> n 1 size size in [0, 1]"""
    matrix = torch.linalg.inv(judge.pose(psi))[:, :2]
    grid = F.affine_grid(matrix, [len(psi), 1, size, size], align_corners=False)
    x, y = grid.unbind(-1)
    heart, fluid = truth[:, HEART, None, None], truth[:, FLUID, None, None]

    def oval(cx, cy, rx, ry):
        return torch.sigmoid(8 * (1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2))

    body = 0.6 * oval(0, 0.1, 0.9, 1) - 0.4 * oval(-0.4, 0, 0.25, 0.55) - 0.4 * oval(0.4, 0, 0.25, 0.55)
    silhouette = 0.4 * oval(0.1, 0.25, 0.18 + 0.2 * heart, 0.25)
    return (body + silhouette + 0.5 * fluid * oval(0.4, 0.5, 0.3, 0.15)).clamp(0, 1)[:, None]


@functools.cache
def trained() -> tuple[judge.Judge, Path]:
    """A judge taught by 512 toy chests, once a session, and the file that it is kept in."""
    path = Path(tempfile.mkdtemp()) / "state" / "judge.safetensors"
    return judge.load_judge(path, ToyChests(512, seed=1, name="judge"), torch.device("cpu")), path


@pytest.fixture
def toy_judge() -> judge.Judge:
    return trained()[0]


# ------------------------------------------------------------------------------------------------ geometry


def test_psi_above_one_is_a_chest_that_fills_more_of_the_image():
    """psi is the sampling transform that canonicalises: a chest drawn larger has s > 1,
    one moved right has t_x > 0."""
    square = torch.zeros(1, 1, 64, 64)
    square[..., 24:40, 24:40] = 1
    start = judge.IDENTITY[None]
    larger = judge.reposition(square, start, torch.tensor([[1.5, 1, 0, 0, 0]]))
    assert larger.sum().item() == pytest.approx(1.5 * square.sum().item(), rel=0.02)
    moved = judge.reposition(square, start, torch.tensor([[1, 1, 0.25, 0, 0]]))
    columns = moved[0, 0].sum(0)
    assert (columns @ torch.arange(64.0) / columns.sum()).item() == pytest.approx(31.5 + 0.25 * 32, abs=0.1)


def test_reposition_composes_and_reverses():
    """From one pose to another and back is the same image;
    canonicalising a posed chest gives the canonical chest."""
    truth = torch.zeros(4, len(LABELS))
    still = judge.IDENTITY.expand(4, 5)
    psi = torch.tensor([[0.85, 1.1, 0.1, 0, 0.1], [1.2, 1.1, 0, -0.1, -0.15],
                        [0.9, 0.8, -0.1, 0.1, 0.2], [1, 1, 0.1, 0.1, 0]])
    canonical, posed = toy_images(truth, still, 64), toy_images(truth, psi, 64)
    inside = (slice(None), slice(None), slice(16, 48), slice(16, 48))   # the border is not seen in every pose
    assert (posed - canonical)[inside].abs().mean() > 0.04
    assert (judge.reposition(posed, psi, still) - canonical)[inside].abs().mean() < 0.01
    assert (judge.reposition(canonical, still, psi) - posed)[inside].abs().mean() < 0.01


def test_well_positioned_half_of_unlabelled_images_stands_for_the_canonical_pose():
    """Without true posture, the half nearest to the mean chest has psi = identity, the rest none,
    and it is the right half."""
    chests = ToyChests(200, seed=5)
    deviation = (chests.posture - judge.IDENTITY).abs().sum(1)
    chests.posture = None
    psi = judge.native_posture(chests)
    near = ~psi.isnan().any(1)
    assert near.sum() == 100 and (psi[near] == judge.IDENTITY).all()
    assert deviation[near].mean() < deviation[~near].mean()


# ----------------------------------------------------------------------------------------- reports and labels


def test_ngrams_are_the_same_in_every_process_and_see_negation():
    """crc32, unlike hash(), is not salted; word pairs make "no effusion" differ from "effusion, no"."""
    assert judge.ngrams("No effusion.", 8192).tolist() == [2079, 3963, 578, 414, 2973, 3881]
    assert set(judge.ngrams("effusion", 8192).tolist()) < set(judge.ngrams("No effusion.", 8192).tolist())
    assert len(judge.ngrams("", 8192)) == 1


def test_uncertain_labels_are_ignored_and_unmentioned_ones_negative():
    """1, 0, uncertain, not mentioned -> 1, 0, ignored, 0."""
    row = torch.full((1, len(LABELS)), math.nan)
    row[0, :3], row[0, FLUID] = torch.tensor([math.nan, 1.0, 0.0]), -1
    got = judge.prompt_labels(row)[0]
    assert got[:3].tolist() == [0, 1, 0] and got[FLUID].isnan() and got[LABELS.index("Fracture")] == 0


def test_what_a_report_leaves_open_is_ignored():
    """"Pneumonia." says neither opacity nor its absence; "possible effusion." says neither normal nor ill."""
    pneumonia, doubt = judge.prompt_labels(label_all(["Pneumonia.", "Possible pleural effusion."]))
    assert pneumonia[LABELS.index("Lung Opacity")].isnan()
    assert pneumonia[LABELS.index("Consolidation")].isnan()
    assert pneumonia[LABELS.index("No Finding")] == 0
    assert doubt[LABELS.index("No Finding")].isnan() and doubt[LABELS.index("Lung Opacity")] == 0


# ------------------------------------------------------------------------------------------ the trained judge


def test_judge_generalises_on_the_toy_chest(toy_judge):
    """On unseen chests: findings told apart, posture within half of its spread,
    a report closest to its own kind."""
    net, chests = toy_judge, ToyChests(256, seed=2)
    seen = judge.look(net, chests.images(torch.arange(256)))
    auroc = metrics.auroc(seen["findings"], chests.truth)[0]
    assert auroc[HEART] > 0.97 and auroc[FLUID] > 0.97
    error = (seen["psi"] - chests.posture).abs().sum(1).mean()
    assert error < 0.5 * (chests.posture - judge.IDENTITY).abs().sum(1).mean()
    reports = net.embed_reports([judge.ngrams(r, net.config.buckets) for r in chests.reports])
    cosine = seen["embedding"] @ reports.T
    same = torch.tensor([[a == b for b in chests.reports] for a in chests.reports])
    assert cosine[same].mean() > cosine[~same].mean() + 0.3


def test_judge_keeps_its_verdict_under_a_little_blur(toy_judge):
    """A VAE's softness is no finding: light blur and noise move the AUROC by less than 0.02."""
    net, chests = toy_judge, ToyChests(256, seed=2)
    clear = chests.images(torch.arange(256)).float() / 255
    soft = judge.roughen(clear, torch.Generator().manual_seed(0))
    macro = [metrics.macro(metrics.auroc(judge.look(net, x)["findings"], chests.truth)).item()
             for x in (clear, soft)]
    assert macro[1] > macro[0] - 0.02


def test_verdict_is_the_same_in_any_batch(toy_judge):
    """Nothing in the judge depends on the other images of a batch, nor on 8 bits or floats."""
    net, images = toy_judge, ToyChests(140, seed=3).images(torch.arange(140))
    together, alone = judge.look(net, images), judge.look(net, images[137:138].float() / 255)
    for name in together:
        torch.testing.assert_close(together[name][137:138], alone[name], rtol=1e-4, atol=1e-5)


def test_only_findings_with_both_classes_are_judged(toy_judge):
    """A finding that no training image shows cannot be scored."""
    assert toy_judge.judged.nonzero().flatten().tolist() == [HEART, FLUID]


def test_judge_is_kept_and_used_again():
    """The same settings and images load the file; other images or a damaged file train anew."""
    net, path = trained()
    kept = path.stat().st_mtime_ns
    again = judge.load_judge(path, ToyChests(512, seed=1, name="judge"), torch.device("cpu"))
    assert path.stat().st_mtime_ns == kept
    x = ToyChests(8, seed=4).images(torch.arange(8))
    assert torch.equal(judge.look(net, x)["psi"], judge.look(again, x)["psi"])
    copy = path.with_name("copy.safetensors")
    copy.write_bytes(path.read_bytes()[:1000])
    judge.load_judge(copy, ToyChests(16, seed=1), torch.device("cpu"))
    small = copy.stat().st_mtime_ns
    judge.load_judge(copy, ToyChests(16, seed=2), torch.device("cpu"))
    assert copy.stat().st_mtime_ns > small


def test_training_the_judge_leaves_the_callers_random_numbers_alone():
    """An evaluation between two training stages must not change what the second one draws."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    judge.train_judge(ToyChests(16, seed=1), judge.JudgeConfig(size=32), torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_judge_learns_posture_without_labels():
    """Real sets: known warps of the well-positioned half teach psi; reports teach the findings."""
    config, chests = judge.JudgeConfig(size=32, steps=160), ToyChests(128, seed=2)
    net = judge.train_judge(ToyChests(512, seed=1, posed=False), config, torch.device("cpu"))
    psi = judge.look(net, chests.images(torch.arange(128)))["psi"]
    correlation = torch.stack([torch.corrcoef(torch.stack([psi[:, i], chests.posture[:, i]]))[0, 1]
                               for i in range(5)])
    assert correlation.mean() > 0.6
