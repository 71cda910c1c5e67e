"""CXRL's reinforcement learning: rollout -> rewards -> advantages -> clipped policy-gradient updates,
on one scroll.

Denoising is the decision process of DDPO (Black et al. 2024): state (c, t, x_t), action x_p, reward at the
end only. The policy denoises under [c_p ; c_s], the frozen anchor under c_p. Departures from DDPO
(docs/experiments.md has what was measured of them):

* advantages are relative to a group of images of one report, for reports hardly ever repeat and per-prompt
  running statistics would never fill; each reward is normalised before the weighted sum, so that no scale
  dominates;
* RLCF: diagnosis and consistency are counted against the anchor's image, by default from the same x_T;
* the last steps are not trained: there |d mean / d output| / std explodes and the gradient is mostly noise;
* the log-probability is the mean over the latent's D numbers, so the clip range on the ratio is `clip` / D;
* an exact KL term per step keeps the policy near the anchor.
"""
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from rewards import NAMES, Rewards
from sample import Pipeline, Step, autocast, ddim_step, denoise, grey, guided_noise, seeded_noise


@dataclass(frozen=True)
class RLConfig:
    rounds: Annotated[int, "rollout + update rounds"] = 18
    reports: Annotated[int, "reports per round; images per round = reports * group"] = 16
    group: Annotated[int, "images per report; 1 is plain DDPO with batch statistics"] = 8
    inner_epochs: Annotated[int, "passes over each rollout"] = 1
    updates: Annotated[int, "optimizer steps per pass; from the second on the clip acts"] = 2
    skip_last: Annotated[int, "last denoising steps left out of the updates (their gradient is noise)"] = 3
    fraction: Annotated[float, "share of the other steps trained for each image, drawn at random"] = 1.0
    rl_lr: Annotated[float, "peak learning rate of the denoiser in RL, decays to 0"] = 2e-4
    ace_lr: Annotated[float, "peak learning rate of the ACE vectors"] = 1e-3
    clip: Annotated[float, "ratio clip in nats of the whole latent; "
                           "the range on the mean log-prob is clip / D"] = 1.64
    kl: Annotated[float, "weight of the exact KL to the anchor"] = 0.1
    w_align: Annotated[float, "weight of the posture reward; 0 leaves it out"] = 0.05
    w_diag: Annotated[float, "weight of the diagnosis reward"] = 2.0
    w_consist: Annotated[float, "weight of the consistency reward"] = 1.0
    rlcf: Annotated[bool, "comparative feedback: rewards against the anchor's images"] = True
    feedback: Annotated[Literal["difference", "sign"], "RLCF as a margin or as a verdict"] = "difference"
    same_noise: Annotated[bool, "the anchor starts from the policy's x_T (else from its own)"] = True
    ace: Annotated[bool, "adaptive condition embeddings"] = True
    ace_tokens: Annotated[int, "K, the number of ACE vectors"] = 4
    rl_micro: Annotated[int, "(image, step) pairs per forward pass in the update; "
                             "halve if out of memory"] = 64


class Rollout(NamedTuple):
    """Trajectories of the trained steps, all float32; b images, k trained steps."""
    x: Tensor          # b k c h w   states
    x_p: Tensor        # b k c h w   actions
    logp: Tensor       # b k         mean log-probability of each action under the policy that took it
    t: Tensor          # k
    p: Tensor          # k
    images: Tensor     # b 1 h w     in [0, 1]


def log_prob(x_p: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x_p; mean, std^2), mean over c h w: (x_p, mean: b c h w, std: b 1 1 1) -> b"""
    logp = -((x_p - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return reduce(logp, "b c h w -> b", "mean")


def trained_steps(steps: int, config: RLConfig) -> int:
    """How many of the first denoising steps are trained."""
    if not 0 < config.skip_last < steps:
        raise ValueError(f"--skip-last {config.skip_last}: expected 1 to {steps - 1} of the {steps} "
                         "denoising steps; the very last has no randomness, hence no log-probability")
    return steps - config.skip_last


@torch.no_grad()
def rollout(pipe: Pipeline, cond: Tensor, uncond: Tensor, noise: Tensor, guidance: float, eta: float,
            trained: int) -> Rollout:
    """Sample the policy: (cond: b n d, uncond: n d, noise: b steps+1 c h w) -> trajectories and images."""
    steps: list[Step] = []
    with autocast(pipe.device):
        for step in denoise(pipe.unet, pipe.schedule, cond, uncond, noise, guidance, eta):
            steps.append(step)
        images = grey(pipe.decode(steps[-1].x_p))
    steps = steps[:trained]
    logp = torch.stack([log_prob(s.x_p, s.mean, s.std) for s in steps], 1)
    return Rollout(torch.stack([s.x for s in steps], 1), torch.stack([s.x_p for s in steps], 1), logp,
                   torch.stack([s.t[0] for s in steps]), torch.stack([s.p[0] for s in steps]), images)


def advantages(rewards: dict[str, Tensor], weights: dict[str, float], group: int,
               limit: float = 5.0) -> Tensor:
    """Rewards (b,) each -> advantages (b,): every reward minus its group's mean, over its own spread,
    weighted, summed.

    With group = 1 the batch is the group, as in DDPO without per-prompt statistics. A reward without spread
    (all images alike) says nothing and gives 0. The sum is divided by the norm of the weights, so that they
    set proportions only.
    """
    total = torch.zeros_like(next(iter(rewards.values())))
    norm = sum(w**2 for w in weights.values()) ** 0.5
    for name, reward in rewards.items():
        if not torch.isfinite(reward).all():
            raise FloatingPointError(f"reward {name} is not finite")
        r = rearrange(reward, "(p g) -> p g", g=group if group > 1 else len(reward))
        centred = r - r.mean(1, keepdim=True)
        spread = (centred**2).mean().sqrt()
        if spread > 1e-6:
            total += weights[name] / norm * (centred / spread).flatten()
    return total.clamp(-limit, limit)


def policy_loss(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(b,) each -> (loss: b, ratio: b); loss = max(-A r, -A clip(r, 1 - clip, 1 + clip)), r = p / p_old."""
    ratio = (logp - logp_old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)), ratio


def flat_pairs(b: int, k: int, config: RLConfig, generator: torch.Generator) -> list[Tensor]:
    """Shuffled indices of (image, step) pairs, b * k flattened, one tensor for each update of one pass."""
    chosen = torch.rand(b, k, generator=generator).argsort(1)[:, :max(round(config.fraction * k), 1)]
    pairs = (torch.arange(b)[:, None] * k + chosen).flatten()
    return list(pairs[torch.randperm(len(pairs), generator=generator)].chunk(config.updates))


def update(pipe: Pipeline, anchor: Pipeline, ro: Rollout, advantage: Tensor, c_p: Tensor, c_empty: Tensor,
           pairs: Tensor, guidance: float, eta: float, config: RLConfig, optimizer) -> dict[str, Tensor]:
    """One clipped update on the given (image, step) pairs; gradients are exact whatever the micro-batch size.

    c_p: b n d and c_empty: n d are the prompt embeddings *without* c_s: ACE is applied here, under gradient,
    for it is part of the policy. Returns statistics as tensors on the device (no host sync).
    """
    k, d = len(ro.t), ro.x[0, 0].numel()
    clip = config.clip / d
    sums: dict[str, Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for mb in pairs.to(ro.x.device).split(config.rl_micro):
        image, step = mb // k, mb % k
        mb_x, mb_t, mb_p, mb_c = ro.x[image, step], ro.t[step], ro.p[step], c_p[image]
        with autocast(pipe.device):
            cond, uncond = pipe.condition(mb_c, c_empty)
            out = guided_noise(pipe.unet, mb_x, mb_t, cond, uncond, guidance)
        mean, std = ddim_step(pipe.schedule, out, mb_x, mb_t, mb_p, eta)
        logp, logp_old = log_prob(ro.x_p[image, step], mean, std), ro.logp[image, step]
        loss, ratio = policy_loss(logp, logp_old, advantage[image], clip)
        kl = torch.zeros_like(loss)
        if config.kl > 0:
            with torch.no_grad(), autocast(pipe.device):
                anchor_out = guided_noise(anchor.unet, mb_x, mb_t, mb_c, c_empty, guidance)
            anchor_mean, _ = ddim_step(pipe.schedule, anchor_out, mb_x, mb_t, mb_p, eta)
            kl = reduce((mean - anchor_mean) ** 2 / (2 * std**2), "b c h w -> b", "mean")
        ((loss + config.kl * kl).sum() / len(pairs)).backward()
        with torch.no_grad():
            error = (ratio - 1).abs()
            for name, value in [("pg_loss", loss), ("kl", kl), ("clip_fraction", (error > clip).float()),
                                ("ratio_error", error)]:
                sums[name] = sums.get(name, 0) + value.detach().sum() / len(pairs)
            extremes = torch.stack([ratio.min(), ratio.max()]).detach()
            sums["ratio_min"] = torch.minimum(sums.get("ratio_min", extremes[0]), extremes[0])
            sums["ratio_max"] = torch.maximum(sums.get("ratio_max", extremes[1]), extremes[1])
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    sums["grad_norm"] = nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return sums


def rl_round(pipe: Pipeline, anchor: Pipeline, nets: Rewards, reports: list[str], seeds: list[int],
             steps: int, guidance: float, eta: float, config: RLConfig,
             optimizer) -> tuple[dict[str, float], Tensor]:
    """One round on `reports` (one entry for each image, groups adjacent) -> (statistics, images: b 1 h w).

    Raises FloatingPointError if a reward or the loss is not finite, or if the policy that updates is not the
    policy that sampled (mean |ratio - 1| before the first update above a tenth of the clip range).
    """
    trained = trained_steps(steps, config)
    with torch.no_grad(), autocast(pipe.device):
        unique = list(dict.fromkeys(reports))
        embedded = pipe.embed(unique + [""]).float()
        c_p, c_empty = embedded[[unique.index(r) for r in reports]], embedded[-1]
        both = seeded_noise(seeds, 2 * steps + 1, pipe.latent_shape, pipe.device)
        noise, anchor_noise = both.chunk(2, dim=1)       # b steps+1 c h w each
        cond, uncond = pipe.condition(c_p, c_empty)
    ro = rollout(pipe, cond, uncond, noise, guidance, eta, trained)
    anchor_images = None
    if config.rlcf:
        if config.same_noise:
            # x_T only. The noise of the steps is the policy's action: an anchor that shared it would be a
            # baseline that depends on the action, and at the start, policy = anchor, would cancel the whole
            # signal.
            anchor_noise = torch.cat([noise[:, :1], anchor_noise[:, 1:]], 1)
        anchor_images = rollout(anchor, c_p, c_empty, anchor_noise, guidance, eta, 1).images
    rewards = nets.compare(ro.images, anchor_images, reports, config.feedback)
    weights = dict(zip(NAMES, (config.w_align, config.w_diag, config.w_consist), strict=True))
    advantage = advantages(rewards, weights, config.group)
    generator = torch.Generator().manual_seed(seeds[0])
    history = [update(pipe, anchor, ro, advantage, c_p, c_empty, pairs, guidance, eta, config, optimizer)
               for _ in range(config.inner_epochs)
               for pairs in flat_pairs(len(reports), trained, config, generator)]
    stats = summarise(history, rewards, ro.images)
    d = ro.x[0, 0].numel()
    if stats["ratio_error_first"] > 0.1 * config.clip / d:
        raise FloatingPointError(
            f"mean |ratio - 1| is {stats['ratio_error_first']:.1e} before the first update, above a tenth "
            f"of the clip range {config.clip / d:.1e}: rollout and update disagree")
    return stats, ro.images


def summarise(history: list[dict[str, Tensor]], rewards: dict[str, Tensor],
              images: Tensor) -> dict[str, float]:
    """The numbers of one round; the only place where they leave the device."""
    stats = {name: torch.stack([h[name] for h in history]).mean() for name in
             ("pg_loss", "kl", "clip_fraction", "grad_norm")}
    stats["ratio_min"] = torch.stack([h["ratio_min"] for h in history]).min()
    stats["ratio_max"] = torch.stack([h["ratio_max"] for h in history]).max()
    stats["ratio_error_first"] = history[0]["ratio_error"]
    stats |= {f"reward_{name}": reward.mean() for name, reward in rewards.items()}
    stats["pixel_std"] = images.std(0).mean()
    values = torch.stack([v.float() for v in stats.values()]).tolist()
    stats = dict(zip(stats, values, strict=True))
    if not all(torch.isfinite(torch.tensor(values))):
        raise FloatingPointError(f"a statistic of the round is not finite: {stats}")
    return stats
