"""rl.py: log-probabilities, advantages, the clipped loss, and that the whole climbs a reward."""
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rewards
import rl
from ace import ACE
from model import LoRASnapshot, UNet2DConditionModel, UNetConfig, add_lora
from rl import (
    Pathwise,
    RLConfig,
    ScoreFunction,
    advantages,
    flat_pairs,
    log_prob,
    policy_loss,
    rl_round,
    rollout,
    update,
)
from sample import Pipeline, SampleConfig, Schedule, ScheduleConfig, ddim_step, seeded_noise

UNET = UNetConfig(sample_size=4, in_channels=2, out_channels=2,
                  block_out_channels=(16, 16), layers_per_block=1,
                  down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                  norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)


def words(reports: list[str]) -> torch.Tensor:
    """Fixed embeddings b 5 8 of a few reports: a stand-in for a text encoder
    of which RL needs nothing else."""
    return torch.stack([torch.randn(5, 8, generator=torch.Generator().manual_seed(len(r))) for r in reports])


class Brightness:
    """Reward networks' interface with one known answer: how bright the picture is."""
    enough = 1.0

    def raw_scores(self, images, reports):
        value = images.mean((1, 2, 3))
        return {"align": value, "diag": value, "consist": torch.zeros_like(value)}

    def scores(self, images, reports):
        return {name: score.detach() for name, score in self.raw_scores(images, reports).items()}

    def units(self):
        return dict.fromkeys(rewards.NAMES, torch.tensor(0.02))

    def medians(self):
        return dict.fromkeys(rewards.NAMES, torch.tensor(self.enough))

    def floors(self):
        return dict.fromkeys(rewards.NAMES, torch.tensor(0.5)) | {"consist": torch.tensor(-1.0)}


def small_pipeline(tokens: int = 2) -> Pipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(UNET).eval()
    with torch.no_grad():
        for parameter in unet.parameters():   # it starts with an output of zero, which would hide much
            parameter += 0.05 * torch.randn_like(parameter)
    ace = ACE.start(tokens, words([""])[0]) if tokens else None
    pipe = Pipeline(unet, None, None, None, Schedule(ScheduleConfig.tiny()), ace)
    pipe.embed = words
    pipe.decode = lambda z: (z[:, :1] / 2 + 0.5).clamp(0, 1)
    return pipe


def sampling(guidance: float = 2.0) -> SampleConfig:
    return SampleConfig(guidance=guidance)


def start(pipe: Pipeline, b: int = 8, guidance: float = 2.0) -> tuple[rl.Rollout, torch.Tensor, torch.Tensor]:
    c_p, c_empty = words(["a"] * (b // 2) + ["bb"] * (b // 2)), words([""])[0]
    noise = seeded_noise(list(range(b)), 6, (2, 4, 4))
    return rollout(pipe, *pipe.condition(c_p, c_empty), noise, sampling(guidance), [2], 3), c_p, c_empty


def score_update(pipe: Pipeline, begun: Pipeline, rolled, advantage, config: RLConfig, optimizer,
                 guidance: float = 2.0) -> dict[str, torch.Tensor]:
    """One update on all 8 x 5 (image, step) pairs."""
    ro, c_p, c_empty = rolled
    objective = ScoreFunction(pipe, begun, ro, c_p, c_empty, sampling(guidance), config, advantage)
    return update(objective, torch.arange(40), 40, 5, optimizer)


def test_log_probabilities_counted_anew_are_those_of_the_rollout():
    """On a GPU other batches take other kernels: what is compared with is counted on the updates' own. Where
    kernels do not differ, that is what the rollout says, pair by pair, each rank's own."""
    pipe = small_pipeline()
    ro, c_p, c_empty = start(pipe)
    unknown, begun = ro._replace(logp=torch.full_like(ro.logp, torch.nan)), rl.freeze(pipe)
    objective = ScoreFunction(pipe, begun, unknown, c_p, c_empty, sampling(),
                              RLConfig(gradient="score", rl_micro=3), torch.ones_like(ro.logp))
    parts = rl.flat_pairs(8, 5, 5, 2, torch.Generator().manual_seed(0))
    objective.recount([*parts, torch.tensor([], dtype=torch.long)], 5)
    torch.testing.assert_close(objective.ro.logp, ro.logp, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in begun.unet.parameters())


def optimizer_of(pipe: Pipeline, lr: float):
    return torch.optim.AdamW([*pipe.unet.parameters(), *(pipe.ace.parameters() if pipe.ace else [])], lr=lr)


def test_log_prob_is_the_normal_density():
    """The mean log-probability equals torch.distributions' for any mean and std."""
    x, mean, std = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3, 1, 1, 1) + 0.1
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2, 3))
    assert torch.allclose(log_prob(x, mean, std), expected, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_ratio_is_one_before_the_first_update(guidance):
    """Scoring the stored actions in flattened (image, step) batches gives the log-probabilities
    of the rollout."""
    pipe = small_pipeline()
    stats = score_update(pipe, pipe, start(pipe, guidance=guidance), torch.ones(8, 5), RLConfig(rl_micro=5),
                         optimizer_of(pipe, 0.0), guidance)
    assert stats["ratio_error"] < 1e-5
    assert abs(stats["ratio_min"] - 1) < 1e-4 and abs(stats["ratio_max"] - 1) < 1e-4


def test_positive_advantage_raises_log_prob():
    """One update makes rewarded actions more probable and punished ones less."""
    for sign in (1.0, -1.0):
        pipe = small_pipeline()
        args = (start(pipe), sign * torch.ones(8, 5), RLConfig(kl=0.0))
        before = score_update(pipe, pipe, *args, optimizer_of(pipe, 1e-3))
        after = score_update(pipe, pipe, *args, optimizer_of(pipe, 0.0))
        assert before["loss"] + sign == pytest.approx(0, abs=1e-6)   # -A r with r = 1
        assert after["loss"] + sign < -1e-4   # r rose where A = 1, fell where A = -1


@pytest.mark.parametrize("kind", ["score", "pathwise"])
def test_gradient_does_not_depend_on_the_micro_batch(kind):
    """Micro-batches only save memory: the accumulated gradient is that of the whole batch,
    for UNet and ACE."""
    gradients = []
    for micro in (3, 40):
        pipe, config = small_pipeline(), RLConfig(rl_micro=micro)
        ro, c_p, c_empty = start(pipe)
        shared = (pipe, small_pipeline(0), ro, c_p, c_empty, sampling(), config)
        objective = (ScoreFunction(*shared, torch.linspace(-1, 1, 40).view(8, 5)) if kind == "score"
                     else Pathwise(*shared, Brightness(), ["a"] * 8))
        update(objective, torch.arange(40), 40, 5, optimizer_of(pipe, 0.0))
        parameters = [*pipe.unet.parameters(), *pipe.ace.parameters()]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6) and gradients[0].abs().sum() > 0


def test_the_discount_is_of_the_way_and_not_of_the_steps():
    """A promise half-way counts 0.7^5 of one from the end, in 10 steps or in 50."""
    for steps in (10, 50):
        half, end = rl.discount(torch.tensor([steps // 2 - 1, steps - 1]), steps).tolist()
        assert (half, end) == (pytest.approx(rl.DISCOUNT**5), 1)


def test_pathwise_gradient_is_the_rewards_own():
    """In a state of the rollout, the loss is minus the discounted reward of the promise, and its gradient is
    what central differences of that reward say, through denoiser, decoder and comparison."""
    pipe, begun = small_pipeline(0), small_pipeline(0)
    ro, c_p, c_empty = start(pipe)
    config = RLConfig(kl=0.0, w_align=0.0)
    objective = Pathwise(pipe, begun, ro, c_p, c_empty, sampling(), config, Brightness(), ["a"] * 8)
    image, step, bias = torch.tensor([1, 6]), torch.tensor([3, 5]), pipe.unet.conv_out.bias

    def loss(shift: float) -> torch.Tensor:
        with torch.no_grad():
            bias[0] += shift
            value = objective(image, step)["loss"].sum().double()
            bias[0] -= shift
        return value

    objective(image, step)["loss"].sum().backward()
    assert bias.grad[0] == pytest.approx(((loss(1e-2) - loss(-1e-2)) / 2e-2).item(), rel=0.02)
    assert (objective(image, torch.tensor([5, 5]))["loss"].sum() != 0).all()


def test_the_pathwise_kl_does_not_depend_on_what_the_network_predicts():
    """Two networks that say v are as far apart as those that say the same in noise."""
    pipe = small_pipeline(0)
    ro, c_p, c_empty = start(pipe)
    image, step = torch.arange(6), torch.arange(6)
    objective = Pathwise(pipe, pipe, ro, c_p, c_empty, sampling(), RLConfig(), Brightness(), ["a"] * 8)
    v = torch.randn(2, *ro.states[image, step].shape)
    a = pipe.schedule.alpha(ro.t[step])
    noise = a.sqrt() * v + (1 - a).sqrt() * ro.states[image, step]
    kl = {}
    for kind, out in (("v_prediction", v), ("epsilon", noise)):
        pipe.schedule.config = dataclasses.replace(pipe.schedule.config, prediction_type=kind)
        objective.outputs = lambda image, step, out=out: tuple(out)
        kl[kind] = objective(image, step)["kl"]
    torch.testing.assert_close(kl["epsilon"], kl["v_prediction"], rtol=1e-4, atol=0)


def test_a_picture_that_is_right_enough_has_no_gradient():
    """Up to the median real pair's score a reward pulls; above it, not at all."""
    pipe, nets, image, step = small_pipeline(0), Brightness(), torch.tensor([0]), torch.tensor([5])
    ro, c_p, c_empty = start(pipe)
    objective = Pathwise(pipe, pipe, ro, c_p, c_empty, sampling(), RLConfig(kl=0.0), nets, ["a"] * 8)
    bias = pipe.unet.conv_out.bias
    for nets.enough, pulls in ((1.0, True), (0.0, False)):
        bias.grad = None
        objective(image, step)["loss"].sum().backward()
        assert bool(bias.grad.any()) is pulls


def test_worthy_pairs_are_those_that_no_reward_in_use_finds_wanting():
    """A pair is an example if every reward with a weight scores it at or above its floor."""
    films = torch.tensor([100, 200, 127, 128], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    weights = RLConfig().weights
    kept = rewards.worthy(Brightness(), lambda rows: films[rows], ["a"] * 4, weights, torch.device("cpu"))
    assert kept.tolist() == [1, 3]
    nothing = weights | {"align": 0.0, "diag": 0.0}
    kept = rewards.worthy(Brightness(), lambda rows: films[rows], ["a"] * 4, nothing, torch.device("cpu"))
    assert len(kept) == 4


@given(st.integers(1, 5), st.integers(2, 8), st.floats(0.1, 10), st.floats(-10, 10))
def test_advantages_are_relative_to_the_group_and_in_units(p, g, scale, offset):
    """An offset of a report's rewards changes nothing, nor does a reward measured in another unit;
    inside every group advantages sum to 0."""
    reward = torch.randn(p * g, generator=torch.Generator().manual_seed(p * 10 + g))
    a = advantages({"diag": reward}, {"diag": 1.0}, {"diag": 1.0}, g)
    b = advantages({"diag": scale * reward + offset}, {"diag": 1.0}, {"diag": scale}, g)
    assert torch.allclose(a, b, atol=1e-3)
    assert torch.allclose(a.view(p, g).sum(1), torch.zeros(p), atol=1e-3 * g)


def test_advantages_fade_as_images_become_equally_good():
    """A tenth of the spread is a tenth of the advantage, and none is none; weights set proportions only; a
    non-finite reward is named."""
    r, unit = torch.randn(8), {"align": 1.0, "diag": 1.0}
    alone = advantages({"align": r}, {"align": 1.0}, unit, 4)
    assert torch.allclose(advantages({"align": 0.1 * r}, {"align": 1.0}, unit, 4), 0.1 * alone, atol=1e-6)
    assert advantages({"diag": torch.ones(8)}, {"diag": 1.0}, unit, 4).abs().max() == 0
    assert RLConfig(w_align=3.0, w_diag=0.0, w_consist=0.0).weights["align"] == 1
    with pytest.raises(FloatingPointError, match="reward diag is not finite"):
        advantages({"diag": torch.tensor([1.0, math.nan])}, {"diag": 1.0}, unit, 2)


def test_group_of_one_uses_batch_statistics():
    """group = 1 is plain DDPO: the batch is the group, and a report's only image still gets a signal."""
    a = advantages({"align": torch.arange(4.0)}, {"align": 1.0}, {"align": 1.0}, 1)
    assert a[0] < a[1] < 0 < a[2] < a[3]


def test_credit_of_the_steps_adds_up_to_the_advantage():
    """Each step has the gain of the stretch between two valued states that it lies in; the stretches' gains
    add up to the advantage. A promise that foretells the end leaves nothing to later steps, one that says
    nothing leaves all, and without promises every step has the whole advantage, as in DDPO."""
    a = torch.tensor([2.0, -1.0, -1.0])
    gains = rl.credit(a, [torch.randn(3), torch.randn(3)], [2, 4], 7)
    assert torch.equal(gains[:, 0], gains[:, 1]) and torch.equal(gains[:, 4], gains[:, 6])
    assert torch.allclose(gains[:, [0, 2, 4]].sum(1), a)
    assert torch.allclose(rl.credit(a, [3 * a], [2], 4), a[:, None] * torch.tensor([1.0, 1, 0, 0]), atol=1e-4)
    assert torch.allclose(rl.credit(a, [1e-5 * a], [2], 4)[:, :2], torch.zeros(3, 2), atol=1e-4)   # rounding
    assert torch.allclose(rl.credit(a, [0 * a], [2], 4), a[:, None] * torch.tensor([0.0, 0, 1, 1]))
    assert torch.equal(rl.credit(a, [], [], 4), a[:, None].expand(3, 4))


def test_credit_keeps_the_gradient_and_takes_noise_off_it():
    """Where the end is the sum of 8 noisy actions and a promise the sum so far, the policy gradient (noise of
    an action times what it is credited with: 1 for each) keeps its mean and loses most of its variance."""
    noise = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    so_far = noise.cumsum(1)
    gradients = {}
    for name, valued in (("end", []), ("promises", [2, 4, 6])):
        credited = rl.credit(so_far[:, -1], [so_far[:, i - 1] for i in valued], valued, 8)
        gradients[name] = (credited * noise).sum(1)
        assert gradients[name].mean() == pytest.approx(8, abs=0.3)
    assert gradients["promises"].var() < 0.4 * gradients["end"].var()


def test_valued_states_lie_evenly_between_the_first_and_the_last():
    """6 of the states of 10 steps; none for DDPO's credit or the pathwise gradient, never the start or the
    end, however few there are."""
    score = RLConfig(gradient="score")
    assert rl.valued_states(score) == [1, 3, 4, 5, 6, 8]
    assert rl.valued_states(dataclasses.replace(score, rollout_steps=2)) == []
    for none in (RLConfig(gradient="score", credit="end"), RLConfig()):
        assert rl.valued_states(none) == []


@pytest.mark.parametrize("config, steps", [(ScheduleConfig.tiny(), 10), (ScheduleConfig(), 50)])
def test_weighted_steps_pull_alike_on_the_network(config, steps):
    """The gradient of each step's log-probability on the network's output, for the same action noise, has
    one size once weighted; unweighted, late steps of the tiny schedule pull more than 5 times as hard."""
    schedule = Schedule(config)
    t, p = (x[:steps - 3] for x in schedule.timesteps(steps))
    k = len(t)
    x, noise = torch.randn(2, 1, 2, 4, 4).expand(2, k, 2, 4, 4)
    out = torch.randn(1, 2, 4, 4).repeat(k, 1, 1, 1).requires_grad_()
    mean, std, _ = ddim_step(schedule, out, x, t, p, 1.0)
    log_prob((mean + std * noise).detach(), mean, std).sum().backward()
    pull = out.grad.flatten(1).norm(dim=1)
    weights = rl.step_weights(schedule, t, p, 1.0)
    assert weights.mean() == pytest.approx(1)
    assert torch.allclose(pull * weights, (pull * weights)[:1].expand(k), rtol=1e-3)
    if config.prediction_type == "v_prediction":
        assert pull[-1] > 5 * pull[0]


def test_clip_stops_the_gradient_outside_the_range_on_the_winning_side():
    """With A > 0 nothing is gained beyond 1 + c; with A < 0 nothing beyond 1 - c;
    on the losing side the loss still acts."""
    logp = torch.log(torch.tensor([1.2, 0.8, 1.2, 0.8])).requires_grad_()
    loss, ratio = policy_loss(logp, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.1)
    loss.sum().backward()
    assert torch.allclose(ratio, torch.tensor([1.2, 0.8, 1.2, 0.8]))
    assert logp.grad[0] == 0 and logp.grad[3] == 0 and logp.grad[1] < 0 and logp.grad[2] > 0


def test_pairs_cover_every_image_and_step_once():
    """A round visits each (image, step) pair once, or as many steps of each image as asked for."""
    pairs = torch.cat(flat_pairs(6, 5, 5, 3, torch.Generator().manual_seed(0)))
    assert sorted(pairs.tolist()) == list(range(30))
    part = torch.cat(flat_pairs(6, 5, 2, 3, torch.Generator().manual_seed(0)))
    assert torch.bincount(part // 5).tolist() == [2] * 6
    sizes = [len(pairs) for pairs in flat_pairs(10, 1, 1, 8, torch.Generator().manual_seed(0))]
    assert sorted(sizes) == [1] * 6 + [2] * 2   # as many updates as asked for


def test_kl_is_zero_on_the_anchor_and_holds_the_policy():
    """The KL to itself is 0; with no advantage at all, a strong KL term pulls a perturbed policy back."""
    pipe, anchor = small_pipeline(0), small_pipeline(0)
    args = (start(pipe), torch.zeros(8, 5), RLConfig(kl=1.0))
    assert score_update(pipe, anchor, *args, optimizer_of(pipe, 0.0))["kl"] < 1e-10
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.3
    optimizer = optimizer_of(pipe, 1e-2)
    kls = [score_update(pipe, anchor, *args, optimizer)["kl"].item() for _ in range(20)]
    assert kls[-1] < 0.2 * kls[0]


@pytest.mark.parametrize("lora", [False, True])
def test_a_frozen_policy_stays_as_it_was(lora):
    """What the KL holds to: the policy at that moment, c_s included, whatever is trained afterwards; of a
    LoRA only its own weights are copied."""
    pipe = small_pipeline()
    parameters = list(add_lora(pipe.unet, 2).parameters()) if lora else [pipe.unet.conv_out.weight]
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    x, t, c = torch.randn(2, 2, 4, 4), torch.tensor([1, 5]), torch.randn(2, 5, 8)
    before, begun = pipe.unet(x, t, pipe.ace(c)).detach(), rl.freeze(pipe)
    with torch.no_grad():
        for parameter in (*parameters, pipe.ace.c_s):
            parameter += 1
    assert torch.equal(begun.unet(x, t, begun.ace(c)), before)
    assert not torch.allclose(pipe.unet(x, t, pipe.ace(c)), before, atol=1e-2)
    assert isinstance(begun.unet, LoRASnapshot) == lora


@pytest.mark.parametrize("gradient, rlcf", [("score", True), ("score", False), ("pathwise", False)])
def test_a_toy_reward_climbs(gradient, rlcf):
    """Ten rounds of the real algorithm, ACE included, raise a known reward (brightness)
    well above the anchor's."""
    pipe, anchor = small_pipeline(), small_pipeline(0)
    config = RLConfig(gradient, rollout_steps=6, reports=2, group=8, kl=0.0, w_diag=1.0, w_align=1.0,
                      updates=2, rlcf=rlcf)
    optimizer = optimizer_of(pipe, 2e-3)
    before = pipe.ace.c_s.detach().clone()
    reports = ["a"] * 8 + ["bb"] * 8
    means = [rl_round(pipe, anchor, anchor, Brightness(), reports, [r * 100 + i for i in range(16)],
                      sampling(), config, optimizer)[1].mean().item() for r in range(10)]
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.05
    assert (pipe.ace.c_s - before).abs().max() > 0


def test_stale_rollouts_are_refused():
    """If the policy that updates is not the one that sampled, the on-policy check stops the run."""
    numbers = {"loss": math.nan, "kl": 0.0, "clip_fraction": 0.0, "grad_norm": 1.0, "ratio_min": 1.0,
               "ratio_max": 1.0, "ratio_error": 0.0}
    history = [{name: torch.tensor(value) for name, value in numbers.items()}]
    with pytest.raises(FloatingPointError, match="not finite"):
        rl.summarise(history, {"align": torch.ones(2)}, torch.rand(2, 1, 4, 4))
    pipe, anchor = small_pipeline(), small_pipeline(0)
    honest = pipe.condition

    def changing(c_p, c_empty):
        # the policy moves between rollout and update, as with dropout or a cached embedding
        with torch.no_grad():
            pipe.unet.conv_out.bias += 1.0
        return honest(c_p, c_empty)

    pipe.condition = changing
    with pytest.raises(FloatingPointError, match="before the first update"):
        rl_round(pipe, anchor, anchor, Brightness(), ["a"] * 8, list(range(8)), sampling(),
                 RLConfig("score", rollout_steps=6), optimizer_of(pipe, 1e-4))


def test_all_noise_but_the_actions_is_shared_within_a_report():
    """x_T and the last step's noise belong to the report, actions to one image.

    An anchor that shared the actions too would cancel the reward of an untrained policy.
    """
    noise, anchor_noise = rl.round_noise(small_pipeline(0), list(range(8)), 6, 4)
    for report in (0, 1):
        group = noise[4 * report:4 * report + 4]
        for column in range(7):
            alike = [torch.equal(group[0, column], other[column])
                     for other in (*group[1:], anchor_noise[report])]
            assert all(alike) if column in (0, 6) else not any(alike)
    assert not torch.equal(noise[0, 0], noise[4, 0])


def test_within_a_group_the_difference_to_the_anchor_cancels():
    """One anchor image a report is a constant of its group: advantages are the same with and without it."""
    scores = {name: torch.rand(8) for name in rewards.NAMES}
    anchors = {name: torch.rand(2) for name in rewards.NAMES}
    ones = dict.fromkeys(rewards.NAMES, 1.0)
    found = [advantages(rewards.compare(scores, other), ones, ones, 4) for other in (anchors, None)]
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_networks_keep_the_ratio_at_one(monkeypatch, lora):
    """With bf16 around the networks, and a LoRA's frozen weights in bf16, rollout and update agree before the
    first update, for states, actions, log-probabilities and trained parameters stay float32."""
    monkeypatch.setattr(rl, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    pipe, anchor = small_pipeline(), small_pipeline(0)
    parameters = [*pipe.unet.parameters()]
    if lora:
        pipe.unet.to(torch.bfloat16)
        parameters = list(add_lora(pipe.unet, 2).parameters())
        torch.nn.init.normal_(parameters[1], std=0.1)
        anchor = dataclasses.replace(pipe, unet=LoRASnapshot(pipe.unet), ace=None)
    rolled = start(pipe)
    optimizer = torch.optim.AdamW([*parameters, pipe.ace.c_s], lr=1e-3)
    stats = score_update(pipe, anchor, rolled, torch.linspace(-1, 1, 40).view(8, 5), RLConfig(rl_micro=5),
                         optimizer)
    assert stats["ratio_error"] < 1e-5
    assert all(t.dtype == torch.float32 for t in (*rolled[0][:2], rolled[0].images, *parameters))
    assert stats["kl"] > 0 and stats["grad_norm"] > 0 and pipe.ace.c_s.grad.abs().sum() > 0
