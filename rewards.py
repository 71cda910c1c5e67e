"""The three reward networks of CXRL, frozen during RL: posture alignment, diagnosis,
image-report consistency.

Every score takes images in [0, 1] and their prompts and gives (b,) float32, higher is better, without
gradient, the same value in any batch. RLCF (RL with comparative feedback, CXRL Sec. 2.2) subtracts the score
of the anchor's image. Normalisation is not done here: rl.py turns these rewards into advantages.

    r_align(psi)        = -|psi - psi_0|_1                    in [-5, 0]    not comparative
    r_diag(x, x^)       = S(x, labels) - S(x^, labels)        in [-1, 1]    S: probability of the right answer
    r_consist(x, x^, y) = cos(F(x), G(y)) - cos(F(x^), G(y))  in [-2, 2]

Each network is calibrated on real pairs: their spread is the unit of its reward, and what lies more than
its FLOOR in spreads below the median pair is no example to learn from.
"""
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from chests.findings import LABELS
from chests.labels import label_all
from pretrained.densenet import DenseNet121
from pretrained.vit import CLIPPair
from storage.files import naming, read_json, read_text, write_json
from storage.pictures import unit
from storage.weights import check_numbers, read_config, read_kept, read_weights, require, write_folder
from text_encoder import EOS, Tokenizer, info_nce
from training.ranks import rank, ranks, reduce_over_ranks

NAMES = ("align", "diag", "consist")   # of the rewards, in the order of `Rewards`; --w-NAME is one's weight
IDENTITY = (1.0, 1.0, 0.0, 0.0, 0.0)   # psi of an image that is already in the canonical pose
REACH = 0.5                            # psi is sought within identity +- REACH
XRV_NAMES = {"Effusion": "Pleural Effusion", "Pleural_Thickening": "Pleural Other"}   # torchxrayvision's
FLOOR = {"align": 1.5, "diag": 1.0, "consist": 1.0}   # spreads below the median that examples may score
BATCH = 64                             # images scored at a time
POSE_SIZE = 32                         # posture is judged at 32 px whatever the image size: poses are coarse


@dataclass(frozen=True)
class RewardConfig:
    """Sizes of all three networks; ResNet-18 is width 64, blocks 2."""

    trunk: str = "resnet"    # of diagnosis and consistency; or densenet121, whose size is fixed
    width: int = 64
    blocks: int = 2
    embed_dim: int = 512     # of the consistency network, 512 in CXR-CLIP
    text_dim: int = 256
    text_layers: int = 4
    vocab_size: int = 8192
    positions: int = 128

    def __post_init__(self):
        require(self.trunk in ("resnet", "densenet121"), "trunk", self.trunk, "resnet or densenet121")
        for name, value in asdict(self).items():
            most = 2**8 if name in ("blocks", "text_layers") else 2**17
            require(name == "trunk" or type(value) is int and 0 < value < most, name, value,
                    f"a positive integer below {most}")

    @classmethod
    def tiny(cls):
        return cls(width=16, blocks=1, embed_dim=128, text_dim=128, text_layers=2, vocab_size=1024,
                   positions=64)


class RewardNet(nn.Module):
    """What the three networks share: a scale taken from real pairs, and a folder with config.json and
    model.safetensors. Each has its own raw_score(images: b 1 h w in [0, 1], reports) -> b, which the
    pathwise gradient goes through."""

    def __init__(self, config: RewardConfig):
        super().__init__()
        self.config = config
        self.register_buffer("median", torch.tensor(0.0))   # score of the median real pair
        self.register_buffer("spread", torch.tensor(1.0))   # standard deviation over real pairs

    @torch.no_grad()
    def score(self, images: Tensor, reports: list[str]) -> Tensor:
        """(images: b 1 h w in [0, 1]) -> b, float32; a batch in memory at a time"""
        parts = [slice(i, i + BATCH) for i in range(0, len(images), BATCH)]
        return torch.cat([self.raw_score(images[part], reports[part]).float() for part in parts])

    def calibrate(self, images: Tensor, reports: list[str]) -> None:
        """Take the scale from real images, n 1 h w in [0, 1], and their reports."""
        scores = self.score(images, reports)
        self.median.copy_(scores.median())
        self.spread.copy_(scores.std(correction=0).clamp(min=1e-6))

    @classmethod
    def from_pretrained(cls, folder: Path):
        # Missing, truncated or foreign files: one message for all.
        with naming(f"{folder}: not a reward network (config.json + model.safetensors): ", Exception):
            net, weights = cls(read_config(folder, RewardConfig, {})), read_weights(folder, "model")[0]
            net.load_state_dict(weights)
            check_numbers(weights)
            require(net.spread > 0, "spread", net.spread.item(), "more than 0")
        return net.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path) -> None:
        write_folder(folder, self.state_dict(), "model", asdict(self.config))


class Block(nn.Module):
    """ResNet basic block: b c h w -> b c' h/stride w/stride"""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.skip = nn.Identity() if (c_in, stride) == (c_out, 1) else nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.skip(x) + self.bn2(self.conv2(h)))


def resnet(config: RewardConfig) -> nn.Sequential:
    """b 1 h w -> b 8*width h/16 w/16"""
    w = config.width
    layers = [nn.Conv2d(1, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
    for c_in, c_out in [(w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)]:
        layers += [Block(c_in if i == 0 else c_out, c_out, 2 if i == 0 and c_in != c_out else 1)
                   for i in range(config.blocks)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)   # a fifth faster on a CPU


def image_trunk(config: RewardConfig) -> tuple[nn.Module, int]:
    """-> a network b 1 h w in [-0.5, 0.5] -> b c h' w', and c"""
    if config.trunk == "densenet121":
        return DenseNet121(), 1024
    return resnet(config), 8 * config.width


# ------------------------------------------------------------------------------------------------ posture


def affine(psi: Tensor) -> Tensor:
    """psi = (s_x, s_y, t_x, t_y, theta): b 5 -> b 2 3,
    the map from canonical to image coordinates in [-1, 1]."""
    s_x, s_y, t_x, t_y, theta = psi.unbind(-1)
    cos, sin = theta.cos(), theta.sin()
    entries = torch.stack([s_x * cos, -s_y * sin, t_x, s_x * sin, s_y * cos, t_y], -1)
    return rearrange(entries, "b (r c) -> b r c", r=2)


def random_pose(b: int, generator: torch.Generator) -> Tensor:
    """-> psi: b 5, as badly positioned films have it"""
    spread = torch.tensor([0.15, 0.15, 0.1, 0.1, 0.12])
    return torch.tensor(IDENTITY) + torch.randn(b, 5, generator=generator).clamp(-2, 2) * spread


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """(images: b 1 h w, matrix: b 2 3) -> b 1 h w, sampled at matrix @ (u, 1), borders repeated."""
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def standardise(images: Tensor) -> Tensor:
    """Zero mean and unit variance per image, which takes exposure out of the comparison."""
    mean = reduce(images, "b c h w -> b c 1 1", "mean")
    return (images - mean) / (reduce((images - mean) ** 2, "b c h w -> b c 1 1", "mean") + 1e-4).sqrt()


def edges(images: Tensor) -> Tensor:
    """b 1 h w -> b 2 h-2 w-2: horizontal and vertical gradients, the features of the alignment loss."""
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=images.device) / 4
    return F.conv2d(images, torch.stack([sobel, sobel.T])[:, None])


def pose_view(images: Tensor) -> Tensor:
    """b 1 h w in [0, 1] -> b 1 32 32, what posture is judged by"""
    return standardise(F.interpolate(images, (POSE_SIZE, POSE_SIZE), mode="area"))


def nearer_half(x: Tensor, mean: Tensor) -> Tensor:
    """(x: n 1 32 32, mean: 1 1 32 32) -> the indices of the half that is nearest to it"""
    distance = reduce((x - mean) ** 2, "n c h w -> n", "mean")
    return distance.argsort(stable=True)[:max(len(x) // 2, 1)]


def usual_half(x: Tensor) -> Tensor:
    """(x: n 1 32 32) -> the indices of the half that is nearest to that half's mean, found in a few rounds.

    No posture label is used: badly positioned exposures are the ones that differ most from everybody's mean.
    """
    near = torch.arange(len(x), device=x.device)
    for _ in range(3):
        near = nearer_half(x, x[near].mean(0, keepdim=True))
    return near


def canonical_chest(images: Tensor) -> Tensor:
    """(images: n 1 h w in [0, 1]) -> 1 1 32 32: mean of the half that is nearest to the mean"""
    x = pose_view(images)
    return x[usual_half(x)].mean(0, keepdim=True)


class PostureNet(RewardNet):
    """Predicts psi, the warp that brings a chest to the canonical pose (Liu et al., ICCV 2019).
    Trained without labels."""

    def __init__(self, config: RewardConfig):
        super().__init__(config)
        self.trunk = resnet(config)
        self.head = nn.Linear(8 * config.width * (POSE_SIZE // 16) ** 2, 5)
        nn.init.zeros_(self.head.weight)   # starts at "no warp"
        nn.init.zeros_(self.head.bias)
        self.register_buffer("identity", torch.tensor(IDENTITY))
        self.register_buffer("canonical", torch.zeros(1, 1, POSE_SIZE, POSE_SIZE))
        # Mean psi of well-positioned images: the reward's zero.
        self.register_buffer("psi_0", torch.tensor(IDENTITY))

    def forward(self, images: Tensor) -> Tensor:
        """images: b 1 h w in [0, 1] -> psi: b 5"""
        # Bounded: a warp that leaves the chest altogether would see a flat border and get no gradient back.
        return self.identity + REACH * self.head(self.trunk(pose_view(images)).flatten(1)).tanh()

    def loss(self, images: Tensor, jitter: Tensor) -> tuple[Tensor, dict]:
        """(images: b 1 32 32, jitter: b 5, random psi) -> alignment loss
        = pixel + feature + equivariance terms.

        The jittered copy x'(u) = x(J u) must be canonicalised by M' with J M' = M, whatever M is: this needs
        no label and holds the network to the geometry where the canonical chest, a blurred mean, says little.
        """
        j = affine(jitter)
        m, m_j = affine(self(images)), affine(self(warp(images, j)))
        aligned = standardise(warp(images, m))
        pixel = F.l1_loss(aligned, self.canonical.expand_as(aligned))
        feature = F.l1_loss(edges(aligned), edges(self.canonical).expand(len(images), -1, -1, -1))
        composed = torch.cat([j[:, :, :2] @ m_j[:, :, :2], j[:, :, :2] @ m_j[:, :, 2:] + j[:, :, 2:]], -1)
        equivariance = F.smooth_l1_loss(composed, m, beta=0.05)
        terms = {"pixel": pixel, "feature": feature, "equivariance": equivariance}
        return pixel + feature + 2 * equivariance, terms

    @torch.no_grad()
    def set_zero(self, images: Tensor) -> None:
        """Set psi_0, the zero of the reward: mean psi of the half of `images` (n 1 h w in [0, 1]) that is
        nearest to the canonical chest."""
        near = images[nearer_half(pose_view(images), self.canonical)]
        self.psi_0.copy_(torch.cat([self(x) for x in near.split(64)]).mean(0))

    def raw_score(self, images: Tensor, reports: list[str]) -> Tensor:
        """r_align = -|psi - psi_0|_1; the report plays no part."""
        return -(self(images) - self.psi_0).abs().sum(-1)


# ------------------------------------------------------------------------------------------------ diagnosis


class DiagnosisNet(RewardNet):
    """Multi-label classifier over the 14 CheXpert labels."""

    def __init__(self, config: RewardConfig):
        super().__init__(config)
        self.trunk, width = image_trunk(config)
        self.head = nn.Linear(width, len(LABELS))
        self.register_buffer("known", torch.ones(len(LABELS)))             # 0: a label that it never learnt
        self.register_buffer("threshold", torch.full((len(LABELS),), 0.5))   # operating point of each label

    def forward(self, images: Tensor) -> Tensor:
        """images: b 1 h w in [0, 1] -> logits: b 14"""
        return self.head(reduce(self.trunk(images - 0.5), "b c h w -> b c", "mean"))

    @classmethod
    def from_densenet(cls, path: Path) -> "DiagnosisNet":
        """Your own DenseNet-121: a .safetensors file with the names of torchvision or torchxrayvision,
        and beside it a .json file with the list of its labels, in the order of `classifier`.

        Labels that are not CheXpert's are left out; `op_threshs` (torchxrayvision's operating points) is used
        where it is there. ValueError names the file and what is wrong in it.
        """
        path = Path(path)
        # Missing, truncated or foreign files: one message for all.
        with naming(f"{path}: not a DenseNet-121 with a list of labels beside it: ", Exception):
            weights = read_kept(path)[0]
            names = [XRV_NAMES.get(name, name) for name in json.loads(read_text(path.with_suffix(".json")))]
            known = [name for name in names if name in LABELS]
            net = cls(RewardConfig(trunk="densenet121"))
            net.trunk.load_state_dict({k: v for k, v in weights.items() if k.startswith("features.")})
            head, bias = weights["classifier.weight"], weights["classifier.bias"]
            points = weights.get("op_threshs", torch.full((len(names),), torch.nan))
            shapes = [list(t.shape) for t in (head, bias, points)]
            if shapes != [[len(names), 1024], [len(names)], [len(names)]]:
                raise ValueError(f"{len(names)} labels for {len(head)} outputs, or another width: {shapes}")
            check_numbers({key: weight for key, weight in weights.items() if key != "op_threshs"})
            if len(set(known)) < len(known):
                raise ValueError(f"a label that two outputs have: {', '.join(known)}")
            if not all(point.isnan() or 0 < point < 1 for point in points):
                raise ValueError(f"op_threshs {points.tolist()}: expected numbers between 0 and 1, or nan")
            if not known:
                raise ValueError(f"none of its labels is one of {', '.join(LABELS)}")
        with torch.no_grad():
            ours, theirs = [LABELS.index(label) for label in known], [names.index(label) for label in known]
            net.known.zero_()[ours] = 1
            net.head.weight[ours], net.head.bias[ours] = head[theirs].float(), bias[theirs].float()
            net.threshold[ours] = points[theirs].float().nan_to_num(0.5)
        return net.eval().requires_grad_(False)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict]:
        """labels: b 14 in {1, 0, -1, nan}.
        Not mentioned counts as negative, uncertain is left out (U-Ignore)."""
        known = labels != -1
        target = labels.nan_to_num(0).clamp(min=0)
        loss = F.binary_cross_entropy_with_logits(self(images), target, reduction="none")
        return (loss * known).sum() / known.sum().clamp(min=1), {}

    def raw_score(self, images: Tensor, reports: list[str]) -> Tensor:
        """Mean probability of the right answer, in [0, 1]: half of it over the positive labels,
        half over the rest.

        Bounded, so that one very certain label cannot pay for a wrong one; balanced, because most labels of
        most reports are negative. Uncertain labels are left out.
        """
        labels = label_all(reports).to(images.device)
        p, t = self(images).float().sigmoid(), self.threshold
        p = torch.where(p < t, p / (2 * t), 1 - (1 - p) / (2 * (1 - t)))   # 1/2 at the operating point
        positive = (labels == 1).float() * self.known
        negative = ((labels == 0) | labels.isnan()).float() * self.known
        right_positive = (p * positive).sum(1) / positive.sum(1).clamp(min=1)
        right_negative = ((1 - p) * negative).sum(1) / negative.sum(1).clamp(min=1)
        has_positive, has_negative = positive.amax(1), negative.amax(1)
        return ((right_positive * has_positive + right_negative * has_negative)
                / (has_positive + has_negative).clamp(min=1))


# ------------------------------------------------------------------------------------------------ consistency


class ConsistencyNet(RewardNet):
    """Two towers trained on image-report pairs with a symmetric InfoNCE loss, as CXR-CLIP."""

    def __init__(self, config: RewardConfig):
        super().__init__(config)
        self.trunk, width = image_trunk(config)
        self.image_head = nn.Linear(width, config.embed_dim)
        self.token = nn.Embedding(config.vocab_size, config.text_dim)
        self.position = nn.Parameter(torch.randn(config.positions, config.text_dim) * 0.02)
        dim = config.text_dim
        layer = nn.TransformerEncoderLayer(dim, max(dim // 32, 1), 4 * dim, 0.0, "gelu", batch_first=True,
                                           norm_first=True)
        self.text = nn.TransformerEncoder(layer, config.text_layers, enable_nested_tensor=False)
        self.text_head = nn.Linear(config.text_dim, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.tokenizer: Tokenizer | None = None

    def embed_images(self, images: Tensor) -> Tensor:
        """images: b 1 h w in [0, 1] -> b e, unit length"""
        pooled = reduce(self.trunk(images - 0.5), "b c h w -> b c", "mean")
        return F.normalize(self.image_head(pooled), dim=-1)

    def embed_reports(self, reports: list[str]) -> Tensor:
        """-> b e, unit length; the mean over the report's own tokens, padding left out"""
        ids = self.tokenizer(reports)
        # The first end-of-text token closes the report;
        # what follows is padding (in CLIP the very same token).
        end = (ids == self.tokenizer.vocab[EOS]).long().argmax(1, keepdim=True)
        ids = ids[:, :end.max() + 1].to(self.position.device)
        padding = torch.arange(ids.shape[1], device=ids.device) > end.to(ids.device)
        h = self.text(self.token(ids) + self.position[:ids.shape[1]], src_key_padding_mask=padding)
        keep = (~padding).float()[..., None]
        return F.normalize(self.text_head((h * keep).sum(1) / keep.sum(1)), dim=-1)

    def loss(self, images: Tensor, reports: list[str]) -> tuple[Tensor, dict]:
        return info_nce(self.embed_images(images), self.embed_reports(reports), self.log_scale)

    def raw_score(self, images: Tensor, reports: list[str]) -> Tensor:
        """Cosine of the image's and the report's embedding, in [-1, 1]."""
        return (self.embed_images(images) * self.embed_reports(reports)).sum(-1)

    @classmethod
    def from_pretrained(cls, folder: Path):
        net = super().from_pretrained(folder)
        net.tokenizer = Tokenizer.from_pretrained(Path(folder) / "tokenizer")
        return net

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        super().save_pretrained(folder)


class CLIPConsistency(RewardNet):
    """Your own CLIP in its place. The folder is transformers', and beside its files lies the scale."""

    def __init__(self, pair: CLIPPair):
        super().__init__(pair.config)
        self.pair = pair

    def raw_score(self, images: Tensor, reports: list[str]) -> Tensor:
        """Cosine of the image's and the report's embedding, in [-1, 1]."""
        return (self.pair.embed_images(images) * self.pair.embed_reports(reports)).sum(-1)

    def calibrate(self, images: Tensor, reports: list[str]) -> None:
        if cut := self.pair.tokenizer.cut_count(reports):
            print(f"consistency: {cut} of {len(reports)} reports exceed the CLIP's "
                  f"{self.pair.tokenizer.max_length} tokens and are cut there")
        super().calibrate(images, reports)

    @classmethod
    def from_pretrained(cls, folder: Path):
        net, path = cls(CLIPPair.from_pretrained(folder)), Path(folder) / "reward.json"
        scale = read_json(path, missing={"median": 0.0, "spread": 1.0})   # a folder of its authors'
        for name in ("median", "spread"):
            good = isinstance(scale.get(name), float) and abs(scale[name]) < math.inf
            require(good and (name == "median" or scale[name] > 0), f"{path}: {name}", scale.get(name),
                    "a finite number, a spread above 0")
            getattr(net, name).fill_(scale[name])
        return net.eval()

    def save_pretrained(self, folder: Path) -> None:
        write_json(Path(folder) / "reward.json", {"median": self.median.item(), "spread": self.spread.item()})
        self.pair.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ all three


@dataclass
class Rewards:
    """RUN/rewards: the three networks, called together."""

    posture: PostureNet
    diagnosis: DiagnosisNet
    consistency: ConsistencyNet | CLIPConsistency

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Rewards":
        own = (Path(folder) / "consistency" / "reward.json").exists()
        kinds = [(PostureNet, "posture"), (DiagnosisNet, "diagnosis"),
                 (CLIPConsistency if own else ConsistencyNet, "consistency")]
        return cls(*(net.from_pretrained(Path(folder) / name).to(device) for net, name in kinds))

    def named(self) -> dict[str, RewardNet]:
        return dict(zip(NAMES, (getattr(self, net.name) for net in fields(self)), strict=True))

    def scores(self, images: Tensor, reports: list[str]) -> dict[str, Tensor]:
        """(images: b 1 h w in [0, 1]) -> {"align", "diag", "consist"}: (b,) float32 each, without gradient"""
        return {name: net.score(images, reports) for name, net in self.named().items()}

    def total(self, images: Tensor, reports: list[str], weights: dict[str, float]) -> Tensor:
        """(images: b 1 h w in [0, 1]) -> b: the scores, each in its unit, weighted and summed"""
        scores, units = self.scores(images, reports), self.units()
        return sum(weights[name] / units[name] * score for name, score in scores.items())

    def raw_scores(self, images: Tensor, reports: list[str]) -> dict[str, Tensor]:
        """The same with gradient, in one pass: for a small batch."""
        return {name: net.raw_score(images, reports) for name, net in self.named().items()}

    def units(self) -> dict[str, Tensor]:
        """What one unit of each reward is: the spread of its score over real pairs."""
        return {name: net.spread for name, net in self.named().items()}

    def medians(self) -> dict[str, Tensor]:
        """The score of the median real pair, which is right enough."""
        return {name: net.median for name, net in self.named().items()}

    def floors(self) -> dict[str, Tensor]:
        """The score below which a real pair is no example to learn from."""
        return {name: net.median - FLOOR[name] * net.spread for name, net in self.named().items()}


def run_weights(run: Path) -> dict[str, float]:
    """The weights of the rewards in a run, from its config.json. Raises ValueError."""
    config = read_json(run / "config.json")
    for name in NAMES:
        require(type(config.get(f"w_{name}")) in (int, float), f"{run / 'config.json'}: w_{name}",
                config.get(f"w_{name}"), "a number")
    return {name: config[f"w_{name}"] for name in NAMES}


def compare(scores: dict[str, Tensor], reference: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """RLCF: scores of a rollout, b each -> its rewards: all but posture's against the anchor's, if there are
    any: p each, one for each group of b / p adjacent images of one report."""
    if reference is None:
        return scores
    group = len(scores["align"]) // len(reference["align"])
    return scores | {name: scores[name] - reference[name].repeat_interleave(group)
                     for name in scores if name != "align"}


@torch.no_grad()
def worthy(nets: Rewards, images: Callable[[Tensor], Tensor], reports: list[str], weights: dict[str, float],
           device: torch.device) -> Tensor:
    """(images: index of b -> b 1 h w uint8) -> the rows whose pairs no reward in use scores below its floor:
    well positioned, and showing what the report says."""
    found, floors = torch.zeros(len(reports), device=device), nets.floors()
    for rows in torch.arange(len(reports)).split(4 * BATCH)[rank()::ranks()]:   # ranks share the work
        scores = nets.scores(unit(images(rows), device), [reports[i] for i in rows.tolist()])
        right = torch.stack([scores[name] >= floors[name] for name in NAMES if weights[name] > 0]).all(0)
        found[rows.to(device)] = right.float()
    reduce_over_ranks([found])
    return found.cpu().nonzero()[:, 0]
