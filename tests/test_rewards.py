"""rewards.py: what each score means, that it is the same in any batch,
and that alignment undoes a known warp."""
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import rewards
import train
from chests.labels import LABELS
from data import PhantomChests
from rewards import (
    IDENTITY,
    ConsistencyNet,
    DenseNet121,
    DiagnosisNet,
    PostureNet,
    RewardConfig,
    Rewards,
    affine,
    warp,
)
from text_encoder import Tokenizer

TINY = RewardConfig(width=8, blocks=1, embed_dim=16, text_dim=32, text_layers=1, vocab_size=600, positions=32)
REPORTS = ["No pleural effusion.", "Large left pleural effusion.",
           "Moderate cardiomegaly. No pneumothorax."] * 4


def three() -> Rewards:
    torch.manual_seed(0)
    consistency = ConsistencyNet(TINY)
    consistency.tokenizer = Tokenizer.train(REPORTS, TINY.vocab_size, TINY.positions)
    posture = PostureNet(TINY)
    torch.nn.init.normal_(posture.head.weight, std=0.02)
    return Rewards(posture.eval(), DiagnosisNet(TINY).eval(), consistency.eval())


def blob(psi: torch.Tensor) -> torch.Tensor:
    """A bright asymmetric figure in pose psi: b 5 -> b 1 32 32, drawn at canonical coordinates."""
    lines = (torch.arange(rewards.POSE_SIZE) + 0.5) * 2 / rewards.POSE_SIZE - 1
    y, x = torch.meshgrid(lines, lines, indexing="ij")
    matrix = affine(psi)
    full = torch.cat([matrix, torch.tensor([[[0.0, 0, 1]]]).expand(len(psi), -1, -1)], 1)
    u = torch.einsum("brc,chw->brhw", torch.linalg.inv(full), torch.stack([x, y, torch.ones_like(x)]))
    r = (u[:, 0] / 0.6) ** 2 + (u[:, 1] / 0.4) ** 2
    spot = ((u[:, 0] - 0.2) ** 2 + (u[:, 1] - 0.15) ** 2) / 0.01
    return (0.6 * torch.exp(-r**2) + 0.4 * torch.exp(-spot)).unsqueeze(1)


def test_scores_are_the_same_in_any_batch():
    """Each of the three gives (b,) float32 that does not depend on
    which other images are scored beside it."""
    nets, images = three(), torch.rand(12, 1, 64, 64)
    together = nets.scores(images, REPORTS)
    for i in (0, 5, 11):
        for name, value in nets.scores(images[i:i + 1], REPORTS[i:i + 1]).items():
            assert value.shape == (1,) and value.dtype == torch.float32
            assert value.item() == pytest.approx(together[name][i].item(), abs=2e-5), name


def test_warp_by_psi_brings_the_figure_to_the_canonical_pose():
    """psi is the sampling transform: warping an image in pose psi by affine(psi)
    gives the canonical image."""
    psi = torch.tensor([[1.2, 0.9, 0.1, -0.05, 0.15]])
    assert (warp(blob(psi), affine(psi)) - blob(torch.tensor([IDENTITY]))).abs().mean() < 0.005


def test_posture_net_starts_at_no_warp_and_zooming_in_means_s_above_one():
    """The last layer starts at 0, the identity;
    a zoomed-in image (psi with s > 1) shows the figure larger."""
    assert torch.equal(PostureNet(TINY)(torch.rand(3, 1, 80, 72)), torch.tensor(IDENTITY).expand(3, -1))
    large, normal = blob(torch.tensor([[1.3, 1.3, 0, 0, 0.0]])), blob(torch.tensor([IDENTITY]))
    assert (large > 0.2).sum() > 1.3 * (normal > 0.2).sum()


def test_alignment_is_learned_without_labels():
    """A hundred steps on unlabelled figures make psi follow the true pose:
    correlation above 0.9 for every shift."""
    torch.manual_seed(0)
    spread = torch.tensor([0.1, 0.1, 0.15, 0.15, 0.1])

    def poses(n: int) -> torch.Tensor:
        return torch.tensor(IDENTITY) + spread * (torch.rand(n, 5) * 2 - 1)

    net = PostureNet(TINY)
    net.canonical.copy_(rewards.canonical_chest(blob(poses(256) * 0.3 + 0.7 * torch.tensor(IDENTITY))))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(100):
        loss, _ = net.loss(blob(poses(32)), poses(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = poses(64)
    with torch.no_grad():
        psi = net.eval()(blob(truth))
    for i in (2, 3):
        assert torch.corrcoef(torch.stack([psi[:, i], truth[:, i]]))[0, 1] > 0.9
    score = net.score(blob(torch.tensor([IDENTITY, (1.1, 0.9, 0.14, -0.14, 0.1)])), ["", ""])
    assert score[0] > score[1]


def test_canonical_chest_leaves_the_badly_positioned_out():
    """The canonical image is the mean of the half nearest to everybody's mean,
    so a minority of outliers leaves no trace."""
    good = blob(torch.tensor([IDENTITY])).expand(30, -1, -1, -1)
    bad = blob(torch.tensor([[1.3, 0.7, 0.3, 0.3, 0.2]] * 10))
    chest = rewards.canonical_chest(torch.cat([good, bad]))
    assert torch.allclose(chest, rewards.standardise(good[:1]), atol=1e-4)


def test_exposure_does_not_count_as_posture():
    """Brightness and contrast are taken out before images are compared."""
    x = torch.rand(2, 1, rewards.POSE_SIZE, rewards.POSE_SIZE)
    assert torch.allclose(rewards.standardise(0.5 * x + 0.2), rewards.standardise(x), atol=5e-3)
    assert rewards.edges(torch.ones(1, 1, 8, 8)).abs().max() < 1e-6


def test_diagnosis_score_is_the_balanced_probability_of_the_right_answer():
    """Half of the score is the positives', half the rest's; uncertain labels are left out;
    the range is [0, 1]."""
    net = DiagnosisNet(TINY).eval()
    torch.nn.init.zeros_(net.head.weight)
    logit = torch.zeros(len(LABELS))
    # The network says 0.9 effusion, 0.5 all else.
    logit[LABELS.index("Pleural Effusion")] = math.log(0.9 / 0.1)
    net.head.bias.data.copy_(logit)
    scores = net.score(torch.rand(3, 1, 64, 64), ["Large left pleural effusion.", "No pleural effusion.",
                                                  "Possible pleural effusion."])
    assert scores[0].item() == pytest.approx(0.5 * 0.9 + 0.5 * 0.5, abs=1e-4)
    no_finding = 0.5 * 0.5 + 0.5 * (0.1 + 12 * 0.5) / 13   # No Finding is positive
    assert scores[1].item() == pytest.approx(no_finding, abs=1e-4)
    assert scores[2].item() == pytest.approx(0.5, abs=1e-4)


def test_uncertain_labels_give_no_gradient():
    """An uncertain label leaves the loss alone; one that is not mentioned counts as absent."""
    net, images = DiagnosisNet(TINY).eval(), torch.rand(2, 1, 64, 64)
    uncertain = torch.full((2, len(LABELS)), -1.0)
    assert net.loss(images, uncertain)[0] == 0
    absent, unmentioned = torch.zeros(2, len(LABELS)), torch.full((2, len(LABELS)), math.nan)
    assert torch.equal(net.loss(images, absent)[0], net.loss(images, unmentioned)[0])


def test_consistency_ignores_padding():
    """The report's embedding is that of its own tokens: the length of its neighbours plays no part."""
    net = three().consistency
    long = "Moderate cardiomegaly. No pneumothorax. Large left pleural effusion. No pleural effusion."
    short = "No pleural effusion."
    assert torch.allclose(net.embed_reports([short, long])[0], net.embed_reports([short])[0], atol=1e-5)


def test_calibration_takes_unit_and_floor_from_real_pairs():
    """One unit of a reward is the spread of real pairs, and its floor lies FLOOR of them below the median."""
    nets, images = three(), torch.rand(12, 1, 64, 64)
    for name, net in nets.named().items():
        scores = net.score(images, REPORTS)
        assert nets.units()[name] == 1
        net.calibrate(images, REPORTS)
        unit = scores.std(correction=0).clamp(min=1e-3).item()
        assert nets.units()[name].item() == pytest.approx(unit, rel=1e-4)
        floor = scores.median().item() - rewards.FLOOR[name] * unit
        assert nets.floors()[name].item() == pytest.approx(floor, abs=1e-5)


def test_rlcf_is_a_margin_and_spares_posture():
    """Diagnosis and consistency are counted against the anchor's image,
    posture is not (it is not comparative)."""
    nets, images = three(), torch.rand(12, 1, 64, 64)
    scores = nets.scores(images, REPORTS)
    alone, compared = rewards.compare(scores, None), rewards.compare(scores, scores)
    assert torch.equal(alone["align"], compared["align"])
    assert compared["diag"].abs().max() == 0 and compared["consist"].abs().max() == 0


def test_a_misspelt_trunk_is_no_resnet():
    """A DenseNet that was asked for by another name would silently be a ResNet."""
    with pytest.raises(ValueError, match="trunk is 'densenet', expected resnet or densenet121"):
        rewards.RewardConfig(trunk="densenet")


def test_sizes_that_cannot_be_meant_are_refused():
    """A damaged config.json would have a network of 10^9 layers built first."""
    with pytest.raises(ValueError, match="text_layers is 1000000000, expected a positive integer below 256"):
        rewards.RewardConfig(text_layers=10**9)
    with pytest.raises(ValueError, match="width is True"):
        rewards.RewardConfig(width=True)


def test_every_reward_has_a_gradient_on_the_image():
    """raw_scores is scores with gradient: each network says how a pixel should change."""
    nets, images = three(), torch.rand(3, 1, 64, 64, requires_grad=True)
    torch.nn.init.normal_(nets.posture.head.weight, std=0.1)   # it starts at no warp, hence with no gradient
    scores, fixed = nets.raw_scores(images, REPORTS[:3]), nets.scores(images.detach(), REPORTS[:3])
    for name, score in scores.items():
        assert torch.allclose(score, fixed[name], atol=1e-5)
        assert torch.autograd.grad(score.sum(), images)[0].abs().sum() > 0, name


def test_folders_round_trip_and_damage_is_named(tmp_path):
    """Saved networks score as before; a truncated file or a missing folder gives one error naming it."""
    nets, images = three(), torch.rand(3, 1, 64, 64)
    for name in ("posture", "diagnosis", "consistency"):
        getattr(nets, name).calibrate(images, REPORTS[:3])
        getattr(nets, name).save_pretrained(tmp_path / name)
    loaded = Rewards.load(tmp_path)
    for name, value in nets.scores(images, REPORTS[:3]).items():
        assert torch.allclose(loaded.scores(images, REPORTS[:3])[name], value, atol=1e-6)
    path = tmp_path / "posture" / "model.safetensors"
    weights = load_file(path)
    for key, value in (("spread", -weights["spread"]), ("median", weights["median"].int())):
        save_file(weights | {key: value}, path)
        with pytest.raises(ValueError, match=f"posture: not a reward network.*{key}"):
            PostureNet.from_pretrained(tmp_path / "posture")
    save_file(weights, path)
    path = tmp_path / "diagnosis" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="diagnosis: not a reward network"):
        Rewards.load(tmp_path)
    with pytest.raises(ValueError, match="absent"):
        PostureNet.from_pretrained(tmp_path / "absent")


def densenet_by_hand(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """DenseNet-121 written out from the paper's table, reading tensors by torchvision's names."""
    def norm_relu(x, name):
        return F.relu(F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"],
                                   w[f"{name}.weight"], w[f"{name}.bias"]))

    x = F.conv2d(x, w["features.conv0.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm_relu(x, "features.norm0"), 3, 2, 1)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            h = F.conv2d(norm_relu(x, f"{name}.norm1"), w[f"{name}.conv1.weight"])
            new = F.conv2d(norm_relu(h, f"{name}.norm2"), w[f"{name}.conv2.weight"], padding=1)
            x = torch.cat([x, new], 1)
        if block < 4:
            name = f"features.transition{block}"
            x = F.avg_pool2d(F.conv2d(norm_relu(x, f"{name}.norm"), w[f"{name}.conv.weight"]), 2)
    return norm_relu(x, "features.norm5")


def random_densenet(labels: int) -> dict[str, torch.Tensor]:
    """Weights as torchvision stores them, statistics that are not trivial."""
    torch.manual_seed(0)
    weights = DenseNet121().state_dict()
    for key, value in weights.items():
        if "norm" in key and value.is_floating_point():
            weights[key] = value + 0.3 * torch.rand_like(value)
    head = {"classifier.weight": torch.randn(labels, 1024) / 32, "classifier.bias": torch.randn(labels)}
    return {**weights, **head}


def test_densenet_is_torchvisions():
    """As many parameters as torchvision's (7,978,856 with colour input and 1,000 classes), the same names,
    and the function that those names stand for."""
    net = DenseNet121().eval()
    assert sum(p.numel() for p in net.parameters()) + 2 * 64 * 49 + 1000 * 1025 == 7_978_856
    weights = random_densenet(18)
    net.load_state_dict({k: v for k, v in weights.items() if k.startswith("features.")})
    x = torch.rand(2, 1, 224, 224) - 0.5
    with torch.no_grad():
        ours, theirs = net(x), densenet_by_hand(weights, 2048 * x)
    assert ours.shape == (2, 1024, 7, 7) and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_your_own_densenet_is_the_diagnosis_reward(tmp_path):
    """Rows of the classifier go to CheXpert's labels by name, torchxrayvision's names and operating points
    included; other labels are left out, and what it never learnt does not count."""
    weights = random_densenet(3) | {"op_threshs": torch.tensor([0.2, 0.9, float("nan")])}
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "xrv.safetensors")
    (tmp_path / "xrv.json").write_text('["Effusion", "Hernia", "Edema"]')
    net = DiagnosisNet.from_densenet(tmp_path / "xrv.safetensors")
    effusion, edema = LABELS.index("Pleural Effusion"), LABELS.index("Edema")
    assert net.known.nonzero().flatten().tolist() == sorted([effusion, edema])
    assert torch.equal(net.head.weight[effusion], weights["classifier.weight"][0])
    assert net.threshold[effusion] == pytest.approx(0.2) and net.threshold[edema] == 0.5
    images = torch.rand(2, 1, 64, 64)
    p = net(images).sigmoid()[:, [effusion, edema]]
    p[:, 0] = torch.where(p[:, 0] < 0.2, p[:, 0] / 0.4, 1 - (1 - p[:, 0]) / 1.6)
    score = net.score(images, ["Large left pleural effusion.", "Large right pneumothorax."])
    assert torch.allclose(score, torch.stack([(p[0, 0] + 1 - p[0, 1]) / 2, 1 - p[1].mean()]), atol=1e-5)
    net.save_pretrained(tmp_path / "kept")
    assert torch.equal(DiagnosisNet.from_pretrained(tmp_path / "kept")(images), net(images))


@pytest.mark.parametrize("change, words", [
    ({"classifier.weight": torch.zeros(3, 1000)}, "another width"),
    ({"classifier.bias": torch.zeros(1)}, "width"), ({"op_threshs": torch.zeros(2)}, "width"),
    ({"classifier.bias": torch.full((3,), torch.nan)}, "not finite"),
    ({"classifier.weight": torch.zeros(3, 1024, dtype=torch.int8)}, "not finite"),
    ({"op_threshs": torch.tensor([0.5, 1.7, torch.nan])}, "between 0 and 1")])
def test_a_head_of_another_width_is_refused(tmp_path, change, words):
    """Head, bias and operating points are one for each label and as wide as the trunk, and finite."""
    weights = random_densenet(3) | change
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "own.safetensors")
    (tmp_path / "own.json").write_text('["Edema", "Hernia", "Mass"]')
    with pytest.raises(ValueError, match=f"own.safetensors: not a DenseNet-121.*{words}"):
        DiagnosisNet.from_densenet(tmp_path / "own.safetensors")


@pytest.mark.parametrize("labels, words", [('["Hernia", "Mass", "Nodule"]', "none of its labels"),
                                           ('["Edema"]', "1 labels for 3 outputs"), ("{", ""),
                                           ('["Effusion", "", "Pleural Effusion"]', "two outputs")])
def test_a_densenet_that_does_not_fit_is_refused(tmp_path, labels, words):
    """One line that names the file and says what is wrong with it."""
    save_file({k: v.contiguous() for k, v in random_densenet(3).items()}, tmp_path / "own.safetensors")
    (tmp_path / "own.json").write_text(labels)
    with pytest.raises(ValueError, match=f"own.safetensors: not a DenseNet-121.*{words}"):
        DiagnosisNet.from_densenet(tmp_path / "own.safetensors")


def test_few_pairs_are_seen_in_ever_other_poses():
    """Pairs that a network sees more than MOST_PASSES times are warped, else it would learn them by heart."""
    train_set = PhantomChests("train", 0, 50, 0, 64, True)
    for steps, same in ((train.MOST_PASSES * 50 // 8, True), (50, False)):
        pairs = train.Pairs(train_set, 50, 8, steps, 0, torch.device("cpu"))
        images, index, _ = pairs.draw("diagnosis", 0)
        warped, rows = pairs.warped("diagnosis", 0)
        assert torch.equal(index, rows) and torch.equal(images, warped) is same
