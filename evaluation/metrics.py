"""How alike, how varied, how correct: the numbers of evaluation.json as pure functions of tensors.

Every average is taken under resampling weights w: r n, where row 0 is all ones and rows 1... say how often
each of the n images was drawn in a bootstrap resample (`resampling`). So every metric returns (r,) float64:
entry 0 is its value, the rest its bootstrap distribution, without a loop over resamples; `interval` reads the
95 % interval off it. Two systems measured under the same rows are compared pairwise: the interval of a
difference is the interval of the subtracted rows.

FID and KID resample the first argument and hold the second, the reference, as it is.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)   # Wang et al. 2003, finest scale first
FEWEST = 20                                                  # images; a k = 5 neighbourhood needs neighbours
WINDOW, SIGMA = 11, 1.5                                      # the Gaussian window of SSIM, pixels


# ------------------------------------------------------------------------------------------------ bootstrap


def resampling(n: int, resamples: int = 1000, seed: int = 0) -> Tensor:
    """-> 1+r n float64. Row 0 is ones; each other row counts how often n draws with replacement took each."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.arange(n), *torch.randint(n, (resamples, n), generator=generator)]
    return torch.stack([draw.bincount(minlength=n) for draw in draws]).double()


def interval(estimates: Tensor, level: float = 0.95) -> tuple[float, float]:
    """(estimates: 1+r) -> the percentile interval of rows 1...; nan rows (a class was lost) left out."""
    tail = (1 - level) / 2
    low, high = torch.nanquantile(estimates[1:], torch.tensor([tail, 1 - tail], dtype=estimates.dtype))
    return low.item(), high.item()


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """(values: n, weights: r n) -> r; nan values (undefined for that image) carry no weight."""
    known = ~values.isnan()
    return weights[:, known] @ values[known].double() / weights[:, known].sum(1)


# ------------------------------------------------------------------------------------------------ sharpness


def octaves(images: Tensor) -> Tensor:
    """(images: n 1 h w in [0, 1]) -> n 3 4 4, mean squares of what has wavelengths of 2 to 4, 4 to 8 and 8 to
    16 pixels (a Laplacian pyramid, Burt & Adelson 1983), in 4 x 4 places."""
    energies = []
    for _ in range(3):
        coarse = F.avg_pool2d(images, 2)
        fine = images - F.interpolate(coarse, images.shape[2:], mode="bilinear")
        energies.append(F.adaptive_avg_pool2d(fine.square(), 4))
        images = coarse
    return torch.cat(energies, 1)


def fine_detail(energies: Tensor) -> Tensor:
    """(energies: n 3 4 4) -> n, the amplitude of the two finest octaves (ribs, vessels, leads, grain)"""
    return energies[:, :2].sum(1).mean((1, 2)).sqrt()


def texture(energies: Tensor) -> Tensor:
    """(energies: n 3 4 4) -> n 48, features for a FID that blur cannot pass: how much detail, and where"""
    return (energies + 1e-6).log().flatten(1)


# ---------------------------------------------------------------------------------------------- distributions


def fid(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """(x: n d, y: m d, weights: r n) -> r; Frechet distance of two Gaussians (Heusel et al. 2017),

        |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^{1/2}).

    S has the N-1 denominator. Tr (S1 S2)^{1/2} is the sum of the roots of the eigenvalues of S2^{1/2} S1
    S2^{1/2} = A' A, which is symmetric, so that no complex root can appear; where images are fewer than
    features, of A A', which has the same. A resample repeats images, its covariance loses rank, and its FID
    is too large by about the same amount each time: the rows are shifted so that their mean is row 0.
    """
    x, y = x.double(), y.double()
    weights = x.new_ones(1, len(x)) if weights is None else weights
    mu_y, cov_y = y.mean(0), torch.cov(y.T)
    eigenvalues, vectors = torch.linalg.eigh(cov_y)
    root_y = vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T
    rows = []
    for w in weights.split(16):                                   # bounds the memory
        total = w.sum(1, keepdim=True)
        mu = w @ x / total                                                                   # r d
        scatter = (w / (total - 1)).sqrt()[..., None] * (x - mu[:, None])                    # r n d
        a = scatter @ root_y
        gram = a @ a.mT if len(x) < x.shape[1] else a.mT @ a
        cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(1)
        trace = scatter.square().sum((1, 2)) + cov_y.trace()
        rows.append((mu - mu_y).square().sum(1) + trace - 2 * cross)
    rows = torch.cat(rows)
    if len(rows) > 1:
        rows[1:] += rows[0] - rows[1:].mean()
    return rows


def kid(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """(x: n d, y: m d, weights: r n) -> r; unbiased MMD^2, k(a, b) = (a.b / d + 1)^3 (Binkowski et al. 2018).

    All n and m images are used at once. The usual mean over random subsets estimates the same number with
    more noise. A resampled image is not paired with its own copies: that pair's kernel value would bias the
    estimate.
    """
    x, y = x.double(), y.double()
    w = x.new_ones(1, len(x)) if weights is None else weights
    kxx, kyy, kxy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    kxx.fill_diagonal_(0)
    within_x = ((w @ kxx) * w).sum(1) / (w.sum(1) ** 2 - w.square().sum(1))
    within_y = (kyy.sum() - kyy.trace()) / (len(y) * (len(y) - 1))
    return within_x + within_y - 2 * (w @ kxy.mean(1)) / w.sum(1)


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x: n d, y: m d) -> n m"""
    return (x @ y.T / x.shape[1] + 1) ** 3


def neighbourhoods(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, Tensor]:
    """(real: n d, fake: m d) -> precision: m, density: m, recall: n, coverage: n, whose means these are.

    Naeem et al. 2020. An image's ball reaches to its k-th nearest neighbour in its own set. precision: is the
    fake in any real ball; density: in how many, over k; recall: is the real in any fake ball; coverage: is
    any fake in the real's ball.
    """
    real, fake = real.double(), fake.double()
    distance = exact_distance(real, fake)                                                   # n m
    # The nearest of all is the image itself, at 0.
    in_real = distance < exact_distance(real, real).kthvalue(k + 1, dim=1).values[:, None]
    in_fake = distance < exact_distance(fake, fake).kthvalue(k + 1, dim=1).values[None]
    return {"precision": in_real.any(0).double(), "density": in_real.double().sum(0) / k,
            "recall": in_fake.any(1).double(), "coverage": in_real.any(1).double()}


def exact_distance(x: Tensor, y: Tensor) -> Tensor:
    """(x: n d, y: m d) -> n m Euclidean; not through |x|^2 + |y|^2 - 2 x.y, which loses the small ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(x: n d, others: m d) -> how far each row is from the nearest of the others (0: a copy): n,
    and which that is: n"""
    parts = [exact_distance(rows.double(), others.double()).min(1) for rows in x.split(256)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def closer(x: Tensor, train: Tensor, held_out: Tensor) -> Tensor:
    """(x: n d, train: m d, held_out: k d) -> n, 1 where the nearest training image is nearer than the nearest
    held-out one, 0 where it is farther, 1/2 where neither.

    Of both sets the first min(m, k) rows are compared: the larger one would be nearer by its number alone.
    """
    few = min(len(train), len(held_out))
    learned, unseen = nearest(x, train[:few])[0], nearest(x, held_out[:few])[0]
    return (learned < unseen).double() + (learned == unseen).double() / 2


# ------------------------------------------------------------------------------------------------ diversity


def ms_ssim_scales(side: int) -> int:
    """How many of the five scales still fit the 11 x 11 window: 5 above 160 px, 3 at 64 px."""
    return max([1] + [n for n in range(2, 6) if side > (WINDOW - 1) * 2 ** (n - 1)])


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """(x: b c h w, y: b c h w), both in [0, 1] -> b; multi-scale structural similarity, 1 = identical.

    Wang et al. 2003: K = (0.01, 0.03), valid convolution, 2 x 2 means between scales, negative terms
    count as 0. Where fewer than five scales fit, the first weights are renormalised to the sum of all five.
    """
    scales = ms_ssim_scales(min(x.shape[-2:]))
    power = torch.tensor(MS_SSIM_WEIGHTS[:scales], dtype=x.dtype, device=x.device)
    power *= sum(MS_SSIM_WEIGHTS) / power.sum()
    terms = []
    for scale in range(scales):
        if scale:
            odd = [side % 2 for side in x.shape[-2:]]
            x, y = F.avg_pool2d(x, 2, padding=odd), F.avg_pool2d(y, 2, padding=odd)
        similarity, contrast = ssim_terms(x, y)
        terms.append(similarity if scale == scales - 1 else contrast)
    return (torch.stack(terms, -1).relu() ** power).prod(-1).mean(1)


def ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(x: b c h w, y: b c h w) -> (SSIM: b c, its contrast-structure factor: b c)"""
    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return (luminance * contrast).mean((-2, -1)), contrast.mean((-2, -1))


def blur(x: Tensor) -> Tensor:
    """b c h w -> b c h-10 w-10 under the Gaussian window, which is separable: one column, one row."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, WINDOW)
    return F.conv2d(F.conv2d(x, window.mT, groups=x.shape[1]), window, groups=x.shape[1])


# ------------------------------------------------------------------------------------------------ correctness


def auroc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """(scores: n l, labels: n l in {1, 0, nan = ignored}, weights: r n) -> r l; nan where a class is missing.

    The chance that a positive scores above a negative, ties counting half: the rank statistic with mid-ranks.
    Equal scores share a group; a positive in group g beats all negative weight below g and half of the
    negative weight in g.
    """
    weights = torch.ones(1, len(scores), dtype=torch.float64) if weights is None else weights
    columns = []
    for score, label in zip(scores.T, labels.T, strict=True):
        known = ~label.isnan()
        w, truth = weights[:, known], label[known].double()
        groups, group = torch.unique(score[known], return_inverse=True)                     # sorted
        empty = w.new_zeros(len(w), len(groups))
        positive = empty.index_add(1, group, w * truth)                                     # r groups
        negative = empty.index_add(1, group, w * (1 - truth))
        beaten = negative.cumsum(1) - negative / 2
        columns.append((positive * beaten).sum(1) / (positive.sum(1) * negative.sum(1)))    # 0 / 0 = nan
    return torch.stack(columns, 1)


def macro(per_label: Tensor) -> Tensor:
    """(per_label: r l) -> r, the mean over the labels that are defined on the whole sample (row 0)."""
    return per_label[:, ~per_label[0].isnan()].nanmean(1)


def label_accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(probabilities: n l, labels: n l in {1, 0, nan = ignored}) -> n, the share of an image's labels met."""
    known = ~labels.isnan()
    right = (probabilities > 0.5) == (labels > 0.5)
    return (right & known).sum(1).double() / known.sum(1)


def all_labels_right(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(probabilities: n l, labels: n l in {1, 0, nan = ignored}) -> n, 1 where all of them are met; nan where
    there is none."""
    share = label_accuracy(probabilities, labels)
    return (share == 1).double().where(~share.isnan(), torch.nan)
