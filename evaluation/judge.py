"""The judge: one network that scores generated images and gave no reward in training.

Independent of rewards.py in three ways: another architecture (ConvNeXt-like blocks where the rewards have
ResNets, a bag of hashed n-grams where they have a transformer), another seed, other data (data.load's
"judge": phantoms of another seed with their true factors; of real sets, patients that no stage saw).

One image tower has three heads. Findings: 14 CheXpert logits, binary cross-entropy; phantoms are taught by
what the image shows, real images by what the report says (uncertain left out, not mentioned negative).
Posture: psi, smooth L1; phantoms are taught by the true psi, real images by known warps of well-positioned
ones. Embedding: image and report side by side, symmetric InfoNCE. The features behind the heads serve FID,
KID, precision ... coverage and nearest images.
"""
import hashlib
import json
import math
import os
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from tqdm import tqdm

from chests.findings import LABELS
from evaluation.results import summary
from rewards import affine, usual_half, warp
from storage.files import keep_tensors
from storage.pictures import unit
from storage.weights import read_kept

IDENTITY = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])   # psi = (s_x, s_y, t_x, t_y, theta) of a canonical chest
PSI_UNIT = 0.1                                       # what the posture head and its loss count in
BATCH = 128

# ------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True)
class JudgeConfig:
    seed: int = 90_001
    size: int = 64            # px; larger images are reduced to 224 at most
    width: int = 48           # channels of the first stage; doubled at every halving of the side
    embed: int = 64           # dimensions of the shared image-report space
    buckets: int = 8192       # rows of the hashed n-gram table
    steps: int = 900          # a minute on two CPU cores at 64 px
    passes: int = 32          # over a small set: fewer steps, lest it be learned by heart
    batch: int = 64
    lr: float = 6e-3
    weight_decay: float = 0.05


class Block(nn.Module):
    """b c h w -> b c h w; ConvNeXt (Liu et al. 2022) with batch norm, which learns faster in few steps"""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.depthwise(x)))


class Judge(nn.Module):
    """One image tower with three heads - findings, posture, embedding - and a bag-of-n-grams text tower."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        stages = max(int(math.log2(config.size / 8)) - 1, 1)   # from size / 4 px to 8 .. 15 (64: 16, 8)
        widths = [config.width * 2**i for i in range(stages)]
        layers = [nn.Conv2d(1, widths[0], 4, 4), Block(widths[0])]
        for before, width in zip(widths, widths[1:], strict=False):
            layers += [nn.GroupNorm(1, before), nn.Conv2d(before, width, 2, 2), Block(width), Block(width)]
        self.tower = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(2 * widths[-1])
        self.findings = nn.Linear(2 * widths[-1], len(LABELS))
        self.where = nn.Conv2d(widths[-1], 32, 1)              # posture needs places, not their mean
        self.posture = nn.Sequential(nn.Linear(32 * 16, 128), nn.GELU(), nn.Linear(128, len(IDENTITY)))
        self.image_embed = nn.Linear(2 * widths[-1], config.embed)
        self.ngrams = nn.EmbeddingBag(config.buckets, 128, mode="mean")
        self.text_embed = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 256), nn.GELU(),
                                        nn.Linear(256, config.embed))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())   # CLIP's inverse temperature
        # Findings that the training data shows both present and absent: only these are judged.
        self.register_buffer("judged", torch.ones(len(LABELS), dtype=torch.bool))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: b 1 h w in [0, 1] -> findings: b 14 logits, psi: b 5, embedding: b e, features: b d"""
        side = self.config.size
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        x = self.tower((4 * images - 2).contiguous(memory_format=torch.channels_last))        # b c h w
        # The mean sees what fills the chest, the maximum a nodule of a few pixels.
        pooled = torch.cat([reduce(x, "b c h w -> b c", how) for how in ("mean", "max")], 1)  # b 2c
        features = self.norm(pooled)
        places = F.adaptive_avg_pool2d(F.gelu(self.where(x)), 4).flatten(1)                   # b 512
        return {"findings": self.findings(features), "features": features,
                "psi": IDENTITY.to(x.device) + PSI_UNIT * self.posture(places),
                "embedding": F.normalize(self.image_embed(features), dim=-1)}

    def embed_reports(self, grams: list[Tensor]) -> Tensor:
        """b tensors of n-gram rows -> b e, unit length"""
        lengths = torch.tensor([0] + [len(g) for g in grams[:-1]])
        device = self.log_scale.device
        bags = self.ngrams(torch.cat(grams).to(device), lengths.cumsum(0).to(device))
        return F.normalize(self.text_embed(bags), dim=-1)


def ngrams(report: str, buckets: int) -> Tensor:
    """Report -> rows of its words, word pairs and word triples (crc32: the same in every process)."""
    words = re.findall(r"[a-z0-9]+|[.]", report.lower()) or ["."]
    grams = [" ".join(words[i:i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]
    return torch.tensor([zlib.crc32(g.encode()) % buckets for g in grams])


# CheXpert's hierarchy (Irvin et al. 2019, Fig. 1): a report that names the kind need not name the parent.
KINDS = {"Enlarged Cardiomediastinum": ("Cardiomegaly",), "Consolidation": ("Pneumonia",),
         "Lung Opacity": ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")}


def prompt_labels(labels: Tensor) -> Tensor:
    """n 14 in {1, 0, -1 uncertain, nan not mentioned} -> n 14 in {1, 0, nan ignored}.

    Uncertain is ignored. Not mentioned is 0, except where the report leaves it open: a parent of a finding
    that is there or suspected, and No Finding where all that is said is a suspicion.
    """
    answer = torch.where(labels == -1, math.nan, labels.nan_to_num(0))
    silent, there, suspected = labels.isnan(), labels == 1, labels == -1
    for parent, kinds in KINDS.items():
        column, rows = LABELS.index(parent), [LABELS.index(kind) for kind in kinds]
        answer[silent[:, column] & (there | suspected)[:, rows].any(1), column] = math.nan
    none = LABELS.index("No Finding")
    answer[silent[:, none] & suspected.any(1) & ~there.any(1), none] = math.nan
    return answer


# ----------------------------------------------------------------------------------------- training the judge


def pose(psi: Tensor) -> Tensor:
    """psi: b 5 -> b 3 3: canonical coordinates to the image's, as a matrix that has an inverse"""
    return torch.cat([affine(psi), torch.tensor([0.0, 0.0, 1.0]).expand(len(psi), 1, 3)], 1)


def reposition(images: Tensor, psi: Tensor, new: Tensor) -> Tensor:
    """(images: b 1 h w in pose psi: b 5, new: b 5) -> the same chests in pose `new`.

    The canonical chest is c(p) = x(A p). It has to be c(p) = x'(A' p), so x'(u) = x(A A'^-1 u).
    """
    return warp(images, (pose(psi) @ torch.linalg.inv(pose(new)))[:, :2])


def jitter(psi: Tensor, generator: torch.Generator) -> Tensor:
    """psi: b 5 -> b 5, another pose: scales by up to 25 %, shifts by up to 0.18, rotation by up to 0.22 rad.

    Each image has its own reach, so that poses near psi are seen most often.
    """
    reach = torch.tensor([0.25, 0.25, 0.18, 0.18, 0.22]) * torch.rand(len(psi), 1, generator=generator)
    offset = reach * (2 * torch.rand(psi.shape, generator=generator) - 1)
    return torch.cat([psi[:, :2] * (1 + offset[:, :2]), psi[:, 2:] + offset[:, 2:]], 1)


def roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """b 1 h w -> b 1 h w: random blur, exposure and noise, so that a VAE's softness is nothing unseen."""
    blur, gain, level, grain = torch.rand(4, len(images), 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    images = images.lerp(soft, 0.7 * blur) * (0.85 + 0.3 * gain) + 0.1 * (level - 0.5)
    return (images + 0.04 * grain * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def native_posture(chests, most: int | None = None) -> Tensor:
    """-> n 5, of the first `most`. Phantoms: the truth. Real images: identity for the half nearest to the
    mean chest, else nan.

    Without labels, well-positioned images stand for the canonical pose; known warps of them then teach.
    """
    if chests.posture is not None:
        return chests.posture[:most]
    parts = torch.arange(len(chests))[:most].split(512)
    x = torch.cat([F.interpolate(unit(chests.images(part)), (32, 32), mode="area") for part in parts])
    x = (x - reduce(x, "n c h w -> n 1 1 1", "mean")) / x.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
    psi = torch.full((len(x), len(IDENTITY)), math.nan)
    psi[usual_half(x)] = IDENTITY
    return psi


def judge_loss(judge: Judge, images: Tensor, targets: Tensor, psi: Tensor, grams: list[Tensor],
               same: Tensor) -> Tensor:
    """(images: b 1 h w, targets: b 14 in {1, 0, nan}, psi: b 5 or nan, same: b b, equal reports) -> scalar"""
    out = judge(images)
    known, posed = ~targets.isnan(), ~psi.isnan()
    findings = F.binary_cross_entropy_with_logits(out["findings"][known], targets[known])
    error = ((out["psi"] - psi) / PSI_UNIT).where(posed, 0)
    posture = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.3)
    logits = judge.log_scale.exp().clamp(max=100) * out["embedding"] @ judge.embed_reports(grams).T
    # The same sentence under two images is no wrong answer: only the diagonal stands for it.
    own = torch.arange(len(images), device=images.device)
    logits = logits.masked_fill(same & (own[:, None] != own), -math.inf)
    return 4 * findings + posture + 0.15 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def train_judge(chests, config: JudgeConfig, device: torch.device) -> Judge:
    """Chests of data.load's "judge" -> the trained judge, in eval mode. AdamW, warm-up and cosine; beta_1 the
    other way, from 0.95 to 0.85 and back, as torch's OneCycleLR has it.

    Poses widen over the first half: small findings are learned much faster where they do not move about.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):   # the caller's random numbers stay as they are
        torch.manual_seed(config.seed)
        judge = Judge(config).to(device, memory_format=torch.channels_last).train()
    targets = prompt_labels(chests.labels) if chests.truth is None else chests.truth
    judge.judged.copy_((targets == 1).any(0) & (targets == 0).any(0))
    native = native_posture(chests)
    grams = [ngrams(report, config.buckets) for report in chests.reports]
    number = {report: i for i, report in enumerate(dict.fromkeys(chests.reports))}
    report_id = torch.tensor([number[report] for report in chests.reports])
    steps = min(config.steps, math.ceil(config.passes * len(chests) / config.batch))
    optimizer = torch.optim.AdamW(judge.parameters(), config.lr, weight_decay=config.weight_decay,
                                  fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, pct_start=0.1)
    for step in (bar := tqdm(range(steps), "judge", unit="step")):
        index = torch.randint(len(chests), (config.batch,), generator=generator)
        psi = native[index].where(~native[index].isnan(), IDENTITY)
        new = psi + min(2 * step / steps, 1) * (jitter(psi, generator) - psi)
        images = roughen(reposition(unit(chests.images(index)), psi, new), generator)
        loss = judge_loss(judge, images.to(device), targets[index].to(device),
                          new.where(~native[index].isnan(), math.nan).to(device), [grams[i] for i in index],
                          (report_id[index, None] == report_id[index]).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step + 1 == steps:
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"judge: loss is {loss.item()} at step {step}, seed {config.seed}")
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return judge.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------ in use


def load_judge(path: Path, chests, device: torch.device) -> Judge:
    """The judge kept at `path`, if these settings and images made it; else train it and keep it there."""
    small = chests.size <= 64
    config = JudgeConfig(size=min(chests.size, 224), steps=900 if small else 6000)
    digest = hashlib.sha256(json.dumps([asdict(config), chests.digest]).encode()).hexdigest()
    if os.path.lexists(path):
        try:
            tensors, header = read_kept(path)
            if header.get("digest") == digest and all(t.isfinite().all() for t in tensors.values()):
                judge = Judge(config)
                judge.load_state_dict(tensors)
                return judge.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
            error = "of other images, reports or labels"
        except (ValueError, RuntimeError) as damage:   # or of an older version of this file
            error = str(damage).splitlines()[0]
        print(f"judge: {path} cannot be used ({error}); training it again")
    judge = train_judge(chests, config, device)
    keep_tensors(path, judge.state_dict(), {"digest": digest})
    return judge


@torch.no_grad()
def look(judge: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """images: n 1 h w, [0, 1] or uint8 -> the judge's outputs on the CPU, in float32; the
    one output of any other network is its "features"."""
    device, parts = next(judge.parameters()).device, []
    for batch in images.split(BATCH):
        batch = unit(batch) if batch.dtype == torch.uint8 else batch.float()
        seen = judge(batch.to(device))
        seen = {"features": seen} if isinstance(seen, Tensor) else seen
        parts.append({name: value.float().cpu() for name, value in seen.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def judge_quality(judge: Judge, train, most: int, real: dict[str, Tensor], seed: int) -> dict:
    """How far the judge itself can be trusted.

    accuracy, auroc: on the true images of the prompts (`real`, what was measured of them). posture_error:
    mean L1 of psi on 512 images of the first `most` of the training split, which the judge has not seen and
    which has an archive's bad positioning. For sets without true posture: on known warps of images near the
    mean chest, which is also how the judge was taught.
    """
    psi = native_posture(train, most)
    index = (~psi.isnan().any(1)).nonzero()[:512, 0]
    images, psi = unit(train.images(index)), psi[index]
    if train.posture is None:
        new = jitter(psi, torch.Generator().manual_seed(seed))
        images, psi = reposition(images, psi, new), new
    error = (look(judge, images)["psi"] - psi).abs()
    return {"train_seed": judge.config.seed, "accuracy_on_real": summary(real["label_accuracy"])["value"],
            "auroc_on_real": summary(real["auroc"])["value"], "posture_error": error.sum(1).mean().item(),
            "posture_spread": (psi - IDENTITY).abs().sum(1).mean().item()}
