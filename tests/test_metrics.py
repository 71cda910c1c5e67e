"""metrics.py against independent references: literal loops, scipy, scikit-learn, pytorch_msssim, closed
forms."""
import math

import pytest
import torch
from torch import Tensor

from evaluation import metrics


def gaussian(n: int, d: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def chests(n: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures in [0, 1]: n 1 side side."""
    noise = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear")


# ------------------------------------------------------------------------------------------------ bootstrap


def test_resampling_rows_are_counts():
    """Row 0 is the sample itself; every other row redistributes exactly n draws, and a seed repeats them."""
    weights = metrics.resampling(50, 20, seed=3)
    assert weights.shape == (21, 50) and (weights[0] == 1).all()
    assert (weights.sum(1) == 50).all() and weights[1:].max() > 1
    assert torch.equal(weights, metrics.resampling(50, 20, seed=3))
    assert not torch.equal(weights, metrics.resampling(50, 20, seed=4))


def test_interval_of_a_mean_is_the_textbook_one():
    """For a mean of 400 values the bootstrap interval is mean +- 1.96 sigma / sqrt(n),
    within a tenth of its width."""
    values = gaussian(400, 1)[:, 0]
    rows = metrics.mean(values, metrics.resampling(400, 1000))
    low, high = metrics.interval(rows)
    half = 1.96 * values.std().item() / 20
    assert rows[0].item() == pytest.approx(values.mean().item())
    assert abs(low - (rows[0].item() - half)) < 0.2 * half
    assert abs(high - (rows[0].item() + half)) < 0.2 * half


def test_a_weighted_row_equals_the_metric_of_the_repeated_images():
    """Counting an image twice is the same as putting it into the set twice:
    for means, AUROC and FID's moments."""
    weights = metrics.resampling(40, 1, seed=5)
    repeated = torch.arange(40).repeat_interleave(weights[1].long())
    values = gaussian(40, 3)
    labels = (gaussian(40, 3, seed=1) > 0).double()
    assert metrics.mean(values[:, 0], weights)[1] == pytest.approx(values[repeated, 0].mean().item())
    torch.testing.assert_close(metrics.auroc(values, labels, weights)[1],
                               metrics.auroc(values[repeated], labels[repeated])[0])
    reference = gaussian(60, 3, seed=2)
    torch.testing.assert_close(metrics.fid(values, reference, weights[1:])[0],
                               metrics.fid(values[repeated], reference)[0])


def test_values_that_are_undefined_for_an_image_carry_no_weight():
    """The mean leaves nan out, in the value and in every resample."""
    rows = metrics.mean(torch.tensor([1.0, math.nan, 3.0]), metrics.resampling(3, 5))
    assert rows[0] == 2


# --------------------------------------------------------------------------------------------- FID, KID, PRDC


def test_fid_matches_scipy_sqrtm():
    """The symmetric eigenvalue form equals the textbook form with a general matrix square root."""
    sqrtm = pytest.importorskip("scipy.linalg", reason="scipy is not installed").sqrtm
    x, y = gaussian(200), gaussian(150, seed=1, shift=0.5)
    s1, s2 = torch.cov(x.T), torch.cov(y.T)
    root = torch.from_numpy(sqrtm((s1 @ s2).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + torch.trace(s1 + s2 - 2 * root)
    assert metrics.fid(x, y)[0].item() == pytest.approx(expected.item(), rel=1e-8)


def test_fid_of_exact_gaussians():
    """Points with mean 0 and unit covariance, moved by m and scaled by a: FID = |m|^2 + d (1 - a)^2."""
    x = gaussian(100, 4)
    x = x - x.mean(0)
    x = torch.linalg.solve(torch.linalg.cholesky(torch.cov(x.T)), x.T).T     # whitened: covariance exactly 1
    assert metrics.fid(3 * x + 0.5, x)[0].item() == pytest.approx(4 * 0.25 + 4 * 4, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero():
    """Also with fewer images than dimensions, where the covariance is singular."""
    assert abs(metrics.fid(gaussian(200, 32), gaussian(200, 32))[0]) < 1e-3
    assert abs(metrics.fid(gaussian(20, 64), gaussian(20, 64))[0]) < 1e-3


def test_fid_of_fewer_images_than_features_is_the_same_formula():
    """Features that are always 0 change nothing but which of the two matrices is the smaller."""
    x, y, weights = gaussian(30, 8), gaussian(40, 8, seed=1, shift=0.3), metrics.resampling(30, 5)
    padded = [torch.cat([z, z.new_zeros(len(z), 56)], 1) for z in (x, y)]
    torch.testing.assert_close(metrics.fid(*padded, weights), metrics.fid(x, y, weights), rtol=1e-6, atol=0)


def test_fid_interval_holds_its_value():
    """Resampling inflates FID; the shifted rows are centred on the value again."""
    rows = metrics.fid(gaussian(80, 16), gaussian(90, 16, seed=1), metrics.resampling(80, 100))
    low, high = metrics.interval(rows)
    assert low < rows[0] < high
    assert rows[1:].mean().item() == pytest.approx(rows[0].item())


def literal_kid(x: Tensor, y: Tensor) -> float:
    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_matches_a_literal_loop():
    """Matrix form against the definition written out pair by pair."""
    x, y = gaussian(9, 4), gaussian(7, 4, seed=1, shift=0.3)
    assert metrics.kid(x, y)[0].item() == pytest.approx(literal_kid(x, y), rel=1e-9)


def test_kid_is_unbiased():
    """Over many small samples of one distribution its mean is 0,
    and its bootstrap rows have no drift either."""
    def draw(seed):
        return torch.randn(20, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = torch.cat([metrics.kid(draw(2 * s), draw(2 * s + 1)) for s in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20
    rows = metrics.kid(draw(1), draw(2), metrics.resampling(20, 1000))
    assert abs(rows[1:].mean() - rows[0]) < 0.3 * rows[1:].std()


def test_neighbourhoods_match_a_literal_loop():
    """Precision, recall, density and coverage written out ball by ball."""
    real, fake, k = gaussian(30, 3), gaussian(25, 3, seed=1), 5

    def d(a, b):
        return (a - b).square().sum().sqrt().item()

    def radius(i, rows):
        return sorted(d(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    real_r, fake_r = [radius(i, real) for i in range(30)], [radius(j, fake) for j in range(25)]
    inside = [[d(real[i], fake[j]) < real_r[i] for j in range(25)] for i in range(30)]
    expected = {
        "precision": sum(any(inside[i][j] for i in range(30)) for j in range(25)) / 25,
        "density": sum(map(sum, inside)) / (k * 25),
        "recall": sum(any(d(real[i], fake[j]) < fake_r[j] for j in range(25)) for i in range(30)) / 30,
        "coverage": sum(any(row) for row in inside) / 30,
    }
    got = metrics.neighbourhoods(real, fake, k)
    assert {name: v.mean().item() for name, v in got.items()} == pytest.approx(expected)


def test_neighbourhoods_of_a_set_with_itself_and_with_a_far_one():
    """A copy of the real set is precise and covers it; a set far away is neither."""
    real = gaussian(40, 3)
    same, far = metrics.neighbourhoods(real, real), metrics.neighbourhoods(real, real + 1e3)
    assert all(same[name].mean() == 1 for name in ("precision", "recall", "coverage"))
    assert all(values.mean() == 0 for values in far.values())


def test_nearest_distance_sees_a_copy():
    """0 for a memorised image, the distance to the closest other one otherwise."""
    train = gaussian(300, 5)
    x = torch.cat([train[7:8], train[9:10] + 1e-3])
    expected = torch.tensor([0, 1e-3 * math.sqrt(5)], dtype=torch.float64)
    torch.testing.assert_close(metrics.nearest(x, train)[0], expected)


def test_closer_tells_copies_from_new_draws():
    """Copies of training images are all closer to these than to held-out ones, new draws half of the time,
    however large the training set; a tie counts half."""
    train, held_out, new = gaussian(4000, seed=1), gaussian(500, seed=2), gaussian(400, seed=3)
    assert metrics.closer(train[:100] + 1e-6, train, held_out).tolist() == [1] * 100
    assert metrics.closer(held_out[:100], train, held_out).tolist() == [0] * 100
    assert metrics.closer(new, train, held_out).mean().item() == pytest.approx(0.5, abs=0.08)
    assert metrics.closer(new, train, train[:500]).tolist() == [0.5] * 400
    values, index = metrics.nearest(train[:3] + 1e-6, train)
    assert index.tolist() == [0, 1, 2] and values.max() < 1e-4


# ------------------------------------------------------------------------------------------------ MS-SSIM


def test_ms_ssim_of_an_image_with_itself_is_one():
    """And it falls as noise is added; every pair is judged for itself."""
    x = chests(3, 64)
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    torch.testing.assert_close(metrics.ms_ssim(x, x), torch.ones(3))
    assert (metrics.ms_ssim(x, noisy) < 0.97).all()
    torch.testing.assert_close(metrics.ms_ssim(x, noisy)[1:2], metrics.ms_ssim(x[1:2], noisy[1:2]))


def test_ms_ssim_matches_pytorch_msssim():
    """Five scales (even and odd sides) equal the package that RoentGen's protocol uses."""
    package = pytest.importorskip("pytorch_msssim", reason="pytorch_msssim is not installed")
    for side in (192, 180):
        x, y = chests(2, side), chests(2, side, seed=1)
        expected = package.ms_ssim(x, y, data_range=1, size_average=False)
        torch.testing.assert_close(metrics.ms_ssim(x, y), expected, rtol=1e-4, atol=1e-5)


def test_ms_ssim_at_64_px_matches_a_literal_loop():
    """Three scales, windows placed one by one, weights renormalised to the sum of the five."""
    x, y = chests(1, 64).double(), (chests(1, 64) + 0.3 * chests(1, 64, seed=1)).double() / 1.3
    offset = torch.arange(11.0, dtype=torch.float64) - 5
    g = torch.exp(-offset**2 / 4.5)
    g = torch.outer(g, g) / g.sum() ** 2
    powers = [w * 1.0001 / (0.0448 + 0.2856 + 0.3001) for w in (0.0448, 0.2856, 0.3001)]
    a, b, value = x[0, 0], y[0, 0], 1.0
    for scale in range(3):
        cs, full = [], []
        for i in range(len(a) - 10):
            for j in range(len(a) - 10):
                p, q = a[i:i + 11, j:j + 11], b[i:i + 11, j:j + 11]
                mp, mq = (g * p).sum(), (g * q).sum()
                vp, vq, c = (g * (p - mp)**2).sum(), (g * (q - mq)**2).sum(), (g * (p - mp) * (q - mq)).sum()
                cs.append((2 * c + 9e-4) / (vp + vq + 9e-4))
                full.append(cs[-1] * (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4))
        value *= max(torch.stack(full if scale == 2 else cs).mean().item(), 0) ** powers[scale]
        a, b = (v.reshape(len(v) // 2, 2, len(v) // 2, 2).mean((1, 3)) for v in (a, b))
    assert metrics.ms_ssim(x, y).item() == pytest.approx(value, rel=1e-9)


def test_scales_follow_the_side():
    """The coarsest scale still has to fit the 11 px window."""
    assert [metrics.ms_ssim_scales(side) for side in (512, 161, 160, 64, 32, 16)] == [5, 5, 4, 3, 2, 1]


# ------------------------------------------------------------------------------------------------ labels


def test_auroc_matches_scikit_learn_with_ties_and_weights():
    """Mid-ranks for ties; resampling counts act as scikit-learn's sample weights;
    a missing class gives nan."""
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    roc_auc_score = sklearn_metrics.roc_auc_score
    scores = (gaussian(80, 3) * 2).round()                       # many ties
    labels = (gaussian(80, 3, seed=1) + scores > 1).double()
    labels[:, 2] = 1
    labels[:10, 1] = math.nan
    weights = metrics.resampling(80, 30)
    got = metrics.auroc(scores, labels, weights)
    for row, w in zip(got, weights, strict=True):
        first = roc_auc_score(labels[:, 0], scores[:, 0], sample_weight=w)
        second = roc_auc_score(labels[10:, 1], scores[10:, 1], sample_weight=w[10:])
        assert row[0].item() == pytest.approx(first) and row[1].item() == pytest.approx(second)
    assert got[:, 2].isnan().all()
    torch.testing.assert_close(metrics.macro(got), got[:, :2].mean(1))


def test_auroc_closed_forms():
    """Perfect order 1, reversed 0, all equal one half."""
    labels = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 1, 1]])
    scores = torch.tensor([[1.0, 3, 5], [2, 2, 5], [3, 1, 5]])
    assert metrics.auroc(scores, labels)[0].tolist() == [1, 0, 0.5]


def test_label_accuracy_ignores_uncertain_labels():
    """nan labels count neither as right nor as wrong; an image without any label has no accuracy,
    and is not right altogether either."""
    p = torch.tensor([[0.9, 0.2, 0.7], [0.9, 0.2, 0.7], [0.1, 0.1, 0.1]])
    labels = torch.tensor([[1, 0, math.nan], [1, 1, 0], [math.nan] * 3])
    accuracy = metrics.label_accuracy(p, labels)
    assert accuracy[:2].tolist() == pytest.approx([1, 1 / 3]) and accuracy[2].isnan()
    right = metrics.all_labels_right(p, labels)
    assert right[:2].tolist() == [1, 0] and right[2].isnan()


def test_blur_shows_in_fine_detail_and_texture():
    """A blurred set keeps its grey values and loses its fine detail: the amplitude falls with every pass, and
    the Frechet distance of textures to unseen sharp images rises far above that of sharp ones."""
    g = torch.Generator().manual_seed(0)
    films = torch.nn.functional.interpolate(torch.rand(200, 1, 32, 32, generator=g), (64, 64))
    other, soft = metrics.texture(metrics.octaves(films[100:])), films[:100]
    amplitudes, distances = [], []
    for _ in range(3):
        energies = metrics.octaves(soft)
        assert energies.shape == (100, 3, 4, 4)
        amplitudes.append(metrics.fine_detail(energies).mean().item())
        distances.append(metrics.fid(metrics.texture(energies), other).item())
        soft = torch.nn.functional.avg_pool2d(soft, 3, 1, 1)
    assert amplitudes[0] > 1.5 * amplitudes[1] > 1.5 * 1.2 * amplitudes[2]
    assert distances[2] > distances[1] > 3 * distances[0]
    assert metrics.fine_detail(metrics.octaves(torch.full((1, 1, 64, 64), 0.3))) == 0
