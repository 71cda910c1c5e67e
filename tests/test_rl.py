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
from model import UNet2DConditionModel, UNetConfig, WithoutLoRA, add_lora, lora_layers
from rl import (
    RLConfig,
    advantages,
    flat_pairs,
    log_prob,
    policy_loss,
    rl_round,
    rollout,
    step_back,
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

    def scores(self, images, reports):
        value = images.mean((1, 2, 3))
        return {"align": value, "diag": value, "consist": torch.zeros_like(value)}

    def units(self, feedback):
        return dict.fromkeys(rewards.NAMES, 0.02)


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
    return SampleConfig(sample_steps=6, guidance=guidance)


def start(pipe: Pipeline, b: int = 8, guidance: float = 2.0) -> tuple[rl.Rollout, torch.Tensor, torch.Tensor]:
    c_p, c_empty = words(["a"] * (b // 2) + ["bb"] * (b // 2)), words([""])[0]
    noise = seeded_noise(list(range(b)), 6, (2, 4, 4))
    return rollout(pipe, *pipe.condition(c_p, c_empty), noise, sampling(guidance), 4, [2], 3), c_p, c_empty


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
    ro, c_p, c_empty = start(pipe, guidance=guidance)
    stats = update(pipe, pipe, ro, torch.ones(8, 4), c_p, c_empty, torch.arange(32), 32, sampling(guidance),
                   RLConfig(rl_micro=5), optimizer_of(pipe, 0.0))
    assert stats["ratio_error"] < 1e-5
    assert abs(stats["ratio_min"] - 1) < 1e-4 and abs(stats["ratio_max"] - 1) < 1e-4


def test_positive_advantage_raises_log_prob():
    """One update makes rewarded actions more probable and punished ones less."""
    for sign in (1.0, -1.0):
        pipe = small_pipeline()
        ro, c_p, c_empty = start(pipe)
        args = (ro, sign * torch.ones(8, 4), c_p, c_empty, torch.arange(32), 32, sampling(), RLConfig(kl=0.0))
        before = update(pipe, pipe, *args, optimizer_of(pipe, 1e-3))
        after = update(pipe, pipe, *args, optimizer_of(pipe, 0.0))
        assert before["pg_loss"] + sign == pytest.approx(0, abs=1e-6)   # -A r with r = 1
        assert after["pg_loss"] + sign < -1e-4   # r rose where A = 1, fell where A = -1


def test_gradient_does_not_depend_on_the_micro_batch():
    """Micro-batches only save memory: the accumulated gradient is that of the whole batch,
    for UNet and ACE."""
    gradients = []
    for micro in (3, 32):
        pipe = small_pipeline()
        ro, c_p, c_empty = start(pipe)
        update(pipe, small_pipeline(0), ro, torch.linspace(-1, 1, 32).view(8, 4), c_p, c_empty,
               torch.arange(32), 32, sampling(), RLConfig(rl_micro=micro), optimizer_of(pipe, 0.0))
        parameters = [*pipe.unet.parameters(), *pipe.ace.parameters()]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6) and gradients[0].abs().sum() > 0


@given(st.integers(1, 5), st.integers(2, 8), st.floats(0.1, 10), st.floats(-10, 10))
def test_advantages_are_relative_to_the_group_and_in_units(p, g, scale, offset):
    """An offset of a report's rewards changes nothing, nor does a reward measured in another unit;
    inside every group advantages sum to 0."""
    reward = torch.randn(p * g, generator=torch.Generator().manual_seed(p * 10 + g))
    a = advantages({"diag": reward}, {"diag": 2.0}, {"diag": 1.0}, g)
    b = advantages({"diag": scale * reward + offset}, {"diag": 2.0}, {"diag": scale}, g)
    assert torch.allclose(a, b, atol=1e-3)
    assert torch.allclose(a.view(p, g).sum(1), torch.zeros(p), atol=1e-3 * g)


def test_advantages_fade_as_images_become_equally_good():
    """A tenth of the spread is a tenth of the advantage, and none is none; weights set proportions only; a
    non-finite reward is named."""
    r, unit = torch.randn(8), {"align": 1.0, "diag": 1.0}
    alone = advantages({"align": r}, {"align": 1.0}, unit, 4)
    assert torch.allclose(advantages({"align": 0.1 * r}, {"align": 3.0}, unit, 4), 0.1 * alone, atol=1e-6)
    both = advantages({"align": r, "diag": torch.ones(8)}, {"align": 3.0, "diag": 0.0}, unit, 4)
    assert torch.allclose(both, alone)
    assert advantages({"diag": torch.ones(8)}, {"diag": 1.0}, unit, 4).abs().max() == 0
    with pytest.raises(FloatingPointError, match="reward diag is not finite"):
        advantages({"diag": torch.tensor([1.0, math.nan])}, {"diag": 1.0}, unit, 2)


def test_in_its_own_unit_a_reward_never_rests():
    """Without units, as in DDPO: a hundredth of the spread is the same advantage, and none still is none."""
    r = torch.randn(8)
    alone = advantages({"align": r}, {"align": 1.0}, None, 4)
    assert torch.allclose(advantages({"align": 0.01 * r}, {"align": 1.0}, None, 4), alone, atol=1e-2)
    assert advantages({"align": torch.ones(8)}, {"align": 1.0}, None, 4).abs().max() == 0


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
    """3 of 7 steps, none for DDPO, never the start or the end, however many are asked for."""
    assert rl.valued_states(7, RLConfig(values=3)) == [2, 4, 5]
    assert rl.valued_states(7, RLConfig(values=0)) == []
    assert rl.valued_states(7, RLConfig(values=6)) == [1, 2, 3, 4, 5, 6]
    assert rl.valued_states(7, RLConfig(values=50)) == [1, 2, 3, 4, 5, 6]
    assert rl.valued_states(1, RLConfig(values=3)) == []


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
    """A pass visits each (image, step) pair once;
    with a fraction, each image trains that share of its steps."""
    config = RLConfig(updates=3)
    pairs = torch.cat(flat_pairs(6, 5, config, torch.Generator().manual_seed(0)))
    assert sorted(pairs.tolist()) == list(range(30))
    config = dataclasses.replace(config, fraction=0.4)
    part = torch.cat(flat_pairs(6, 5, config, torch.Generator().manual_seed(0)))
    assert torch.bincount(part // 5).tolist() == [2] * 6


def test_last_step_is_always_left_out():
    """skip_last 0 would train the step that has no randomness: refused by flag and value."""
    with pytest.raises(ValueError, match="--skip-last 0"):
        rl.trained_steps(10, RLConfig(skip_last=0))
    with pytest.raises(ValueError, match="--skip-last 10"):
        rl.trained_steps(10, RLConfig(skip_last=10))


def test_kl_is_zero_on_the_anchor_and_holds_the_policy():
    """The KL to itself is 0; with no advantage at all, a strong KL term pulls a perturbed policy back."""
    pipe, anchor = small_pipeline(0), small_pipeline(0)
    ro, c_p, c_empty = start(pipe)
    zero = torch.zeros(8, 4)
    args = (ro, zero, c_p, c_empty, torch.arange(32), 32, sampling(), RLConfig(kl=1.0))
    assert update(pipe, anchor, *args, optimizer_of(pipe, 0.0))["kl"] < 1e-10
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.3
    optimizer = optimizer_of(pipe, 1e-2)
    kls = [update(pipe, anchor, *args, optimizer)["kl"].item() for _ in range(20)]
    assert kls[-1] < 0.2 * kls[0]


@pytest.mark.parametrize("lora", [False, True])
def test_stepping_back_goes_part_of_the_way_to_the_anchor(lora):
    """mix 1 changes nothing, 0 gives the anchor, and every weight (of a LoRA: every product B A) is linear
    in between; the anchor stays as it is."""
    pipe, anchor = small_pipeline(), small_pipeline(0)
    if lora:
        for parameter in add_lora(pipe.unet, 2, 2):
            torch.nn.init.normal_(parameter)
        anchor = dataclasses.replace(pipe, unet=WithoutLoRA(pipe.unet), ace=None)
    else:
        with torch.no_grad():
            pipe.unet.conv_out.weight += 1

    def change():
        if not lora:
            return pipe.unet.conv_out.weight - anchor.unet.conv_out.weight
        return torch.cat([(m.lora_B.weight @ m.lora_A.weight).flatten()
                          for m in lora_layers(pipe.unet).values()])

    x, t, c = torch.randn(2, 2, 4, 4), torch.tensor([1, 5]), torch.randn(2, 5, 8)
    whole, before = change().detach().clone(), anchor.unet(x, t, c).detach().clone()
    for mix, left in ((1.0, 1.0), (0.5, 0.5), (0.5, 0.25), (0.0, 0.0)):
        step_back(pipe, anchor, mix)
        assert torch.allclose(change(), left * whole, atol=1e-5)
    assert torch.allclose(pipe.unet(x, t, c), anchor.unet(x, t, c), atol=1e-5)
    assert torch.equal(anchor.unet(x, t, c), before)


@pytest.mark.parametrize("rlcf", [True, False])
def test_a_toy_reward_climbs(rlcf):
    """Ten rounds of the real algorithm, ACE included, raise a known reward (brightness)
    well above the anchor's."""
    pipe, anchor = small_pipeline(), small_pipeline(0)
    config = RLConfig(reports=2, group=8, skip_last=1, kl=0.0, w_diag=1.0, w_align=1.0, rlcf=rlcf)
    optimizer = optimizer_of(pipe, 2e-3)
    before = pipe.ace.c_s.detach().clone()
    means = [rl_round(pipe, anchor, Brightness(), ["a"] * 8 + ["bb"] * 8, [r * 100 + i for i in range(16)],
                      sampling(), config, optimizer)[1].mean().item() for r in range(10)]
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.05
    assert (pipe.ace.c_s - before).abs().max() > 0


def test_stale_rollouts_are_refused():
    """If the policy that updates is not the one that sampled, the on-policy check stops the run."""
    numbers = {"pg_loss": math.nan, "kl": 0.0, "clip_fraction": 0.0, "grad_norm": 1.0, "ratio_min": 1.0,
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
        rl_round(pipe, anchor, Brightness(), ["a"] * 8, list(range(8)), sampling(), RLConfig(skip_last=1),
                 optimizer_of(pipe, 1e-4))


def test_all_noise_but_the_actions_is_shared_within_a_report():
    """With the same noise, x_T and the untrained steps' noise belong to the report, actions to one image.

    An anchor that shared the actions too would cancel the reward of an untrained policy.
    """
    pipe, config = small_pipeline(0), RLConfig(group=4, skip_last=2)
    noise, anchor_noise = rl.round_noise(pipe, list(range(8)), 6, 4, config)
    for report in (0, 1):
        group = noise[4 * report:4 * report + 4]
        for column in range(7):
            alike = [torch.equal(group[0, column], other[column])
                     for other in (*group[1:], anchor_noise[report])]
            assert all(alike) if column in (0, 5, 6) else not any(alike)
    assert not torch.equal(noise[0, 0], noise[4, 0])
    own = dataclasses.replace(config, same_noise=False)
    noise, anchor_noise = rl.round_noise(pipe, list(range(8)), 6, 4, own)
    assert len(torch.cat([noise, anchor_noise]).flatten().unique()) == (8 + 2) * 7 * 2 * 4 * 4


def test_within_a_group_the_difference_to_the_anchor_cancels():
    """One anchor image a report is a constant of its group: advantages are the same with it and without it.
    As a verdict (sign), and in groups of one, it is not."""
    scores = {name: torch.rand(8) for name in rewards.NAMES}
    anchors = {name: torch.rand(2) for name in rewards.NAMES}

    def a(reference, feedback="difference"):
        return advantages(rewards.compare(scores, reference, feedback),
                          dict.fromkeys(rewards.NAMES, 1.0), dict.fromkeys(rewards.NAMES, 1.0), 4)

    assert torch.allclose(a(anchors), a(None), atol=1e-5)
    assert not torch.allclose(a(anchors, "sign"), a(None), atol=1e-2)


@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_networks_keep_the_ratio_at_one(monkeypatch, lora):
    """With bf16 around the networks, and a LoRA's frozen weights in bf16, rollout and update agree before the
    first update, for states, actions, log-probabilities and trained parameters stay float32."""
    monkeypatch.setattr(rl, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    pipe, anchor = small_pipeline(), small_pipeline(0)
    parameters = [*pipe.unet.parameters()]
    if lora:
        pipe.unet.to(torch.bfloat16)
        parameters = add_lora(pipe.unet, 2, 2)
        torch.nn.init.normal_(parameters[1], std=0.1)
        anchor = dataclasses.replace(pipe, unet=WithoutLoRA(pipe.unet), ace=None)
    ro, c_p, c_empty = start(pipe)
    optimizer = torch.optim.AdamW([*parameters, pipe.ace.c_s], lr=1e-3)
    stats = update(pipe, anchor, ro, torch.linspace(-1, 1, 32).view(8, 4), c_p, c_empty, torch.arange(32), 32,
                   sampling(), RLConfig(rl_micro=5), optimizer)
    assert stats["ratio_error"] < 1e-5
    assert all(t.dtype == torch.float32 for t in (ro.states, ro.logp, ro.images, *parameters))
    assert stats["kl"] > 0 and stats["grad_norm"] > 0 and pipe.ace.c_s.grad.abs().sum() > 0
