"""CXRL's reinforcement learning: rollout -> rewards -> advantages -> clipped policy-gradient updates,
on one scroll.

Denoising is the decision process of DDPO (Black et al. 2024): state (c, t, x_t), action x_p, reward at the
end only. The policy denoises under [c_p ; c_s], the frozen anchor under c_p. Departures from DDPO
(docs/experiments.md has what was measured of them):

* advantages are relative to a group of images of one report, for reports hardly ever repeat and per-prompt
  running statistics would never fill; each reward is counted in the spread of real pairs, the same in every
  round: no scale dominates, and a reward that has become equal falls silent;
* RLCF: diagnosis and consistency are counted against the anchor's image of the same report;
* what is not an action, x_T and the noise of the untrained steps, is shared by a report's group and by the
  anchor's image: images of a group differ by actions only, and so do their rewards;
* a step's action is credited with what the state's promise gained by it, not with the end alone; the promise
  is x_0 as the network sees it from x_t, decoded and scored as the end is;
* the gradient of a late step is larger, not better, by |d mean / d output| / std: steps are weighted to act
  alike on the network. Late steps are trained too: left out, they drift with the weights they share;
* the log-probability is the mean over the latent's D numbers, so the clip range on the ratio is `clip` / D;
* an exact KL term per step keeps the policy near the anchor, and in the end it may go part of the way back.
"""
import copy
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange, reduce
from torch import Tensor, nn

from ace import ACE
from model import UNet2DConditionModel, WithoutLoRA, add_lora, load_lora, lora_layers, save_lora
from rewards import NAMES, Rewards, compare
from sample import (
    Pipeline,
    SampleConfig,
    Schedule,
    autocast,
    ddim_step,
    denoise,
    guided_noise,
    seeded_noise,
)
from storage.pictures import grey
from training.ranks import gather_from_ranks, rank, ranks, reduce_over_ranks


@dataclass(frozen=True)
class RLConfig:
    rounds: Annotated[int, "rollout + update rounds"] = 12
    reports: Annotated[int, "reports per round; images per round = reports * group"] = 32
    group: Annotated[int, "images per report; 1 is plain DDPO with batch statistics"] = 8
    inner_epochs: Annotated[int, "passes over each rollout"] = 1
    updates: Annotated[int, "optimizer steps per pass; from the second on the clip acts"] = 2
    skip_last: Annotated[int, "last denoising steps left out of the updates; the very last always is"] = 1
    values: Annotated[int, "states of an image, at most, whose promises are scored to credit single "
                           "steps; 0: the end alone, as DDPO"] = 6
    balance: Annotated[bool, "steps count as their noise is to what the network moves, not all alike"] = True
    fraction: Annotated[float, "share of the other steps trained for each image, drawn at random"] = 1.0
    rl_lr: Annotated[float, "peak learning rate of the denoiser in RL, decays to 0"] = 3e-4
    ace_lr: Annotated[float, "peak learning rate of the ACE vectors"] = 1e-3
    clip: Annotated[float, "ratio clip in nats of the whole latent; "
                           "the range on the mean log-prob is clip / D"] = 1.64
    kl: Annotated[float, "weight of the exact KL to the anchor"] = 0.01
    mix: Annotated[float, "how far the result goes from the anchor's weights to the tuned ones; "
                          "1: all the way"] = 1.0
    w_align: Annotated[float, "weight of the posture reward; 0 leaves it out"] = 0.05
    w_diag: Annotated[float, "weight of the diagnosis reward"] = 2.0
    w_consist: Annotated[float, "weight of the consistency reward"] = 0.2
    ceiling: Annotated[bool, "a score goes no higher than that of the median real film"] = False
    unit: Annotated[Literal["real", "round"], "what a reward is counted in: the spread of real pairs, or its "
                                              "own in each round, as DDPO"] = "real"
    rlcf: Annotated[bool, "comparative feedback: rewards against the anchor's images"] = True
    feedback: Annotated[Literal["difference", "sign"], "RLCF as a margin or as a verdict"] = "difference"
    same_noise: Annotated[bool, "a report's images and the anchor's share all noise that is no action "
                                "(else each image has its own)"] = True
    ace: Annotated[bool, "adaptive condition embeddings"] = True
    ace_tokens: Annotated[int, "K, the number of ACE vectors"] = 4
    lora_rank: Annotated[int, "train a LoRA of this rank on the attention layers; 0 trains every weight"] = 0
    checkpointing: Annotated[bool, "recompute activations in the update: less memory, more time"] = False
    offload: Annotated[bool, "text encoder, VAE and rewards leave the GPU while the UNet is updated"] = False
    rl_batch: Annotated[int, "images per forward pass in the rollout; halve if out of memory"] = 128
    rl_micro: Annotated[int, "(image, step) pairs per forward pass in the update; "
                             "halve if out of memory"] = 64


def start_policy(folder: Path, device: torch.device,
                 config: RLConfig) -> tuple[Pipeline, Pipeline, dict[str, nn.Module], list[dict]]:
    """A pipeline folder -> policy, frozen anchor, the modules that are trained, their optimizer groups.

    Text encoder and VAE are shared; with a LoRA so are the UNet's frozen weights (bf16 on CUDA).
    """
    pipe = Pipeline.load(folder, device)
    if pipe.ace is not None:   # the anchor denoises under c_p alone
        raise ValueError(f"{folder}: has the c_s of an earlier reinforcement learning (ace/); expected none")
    for part in (pipe.unet, pipe.vae, pipe.text):
        part.requires_grad_(False)
    if config.lora_rank:
        if device.type == "cuda":
            pipe.unet.to(torch.bfloat16)
        add_lora(pipe.unet, config.lora_rank, config.lora_rank)
        layers = lora_layers(pipe.unet).values()
        tuned = nn.ModuleList([half for layer in layers for half in (layer.lora_A, layer.lora_B)])
        anchor = replace(pipe, unet=WithoutLoRA(pipe.unet))
    else:
        anchor = replace(pipe, unet=copy.deepcopy(pipe.unet))
        tuned = pipe.unet.requires_grad_(True)
    pipe.unet.gradient_checkpointing = config.checkpointing
    modules = {"lora" if config.lora_rank else "unet": tuned}
    groups = [{"params": list(tuned.parameters()), "peak": config.rl_lr}]
    if config.ace:
        with torch.no_grad():
            pipe.ace = ACE.start(config.ace_tokens, pipe.embed([""])[0])
        modules["ace"] = pipe.ace
        groups.append({"params": list(pipe.ace.parameters()), "peak": config.ace_lr})
    return pipe, anchor, modules, groups


@torch.no_grad()
def step_back(pipe: Pipeline, anchor: Pipeline, mix: float) -> None:
    """The policy's denoiser <- anchor + mix * (policy - anchor), in place; of a LoRA, B <- mix * B.

    Interpolating fine-tuned weights towards where they began keeps most of what was learned and undoes more
    than its share of the damage (Wortsman et al. 2022; Rame et al. 2024 for rewards; docs/experiments.md,
    section 18). c_s stays as it is.
    """
    layers = lora_layers(pipe.unet).values()
    for layer in layers:
        layer.lora_B.weight.mul_(mix)
    if not layers:
        for tuned, begun in zip(pipe.unet.parameters(), anchor.unet.parameters(), strict=True):
            tuned.copy_(torch.lerp(begun, tuned, mix))


def save_policy(pipe: Pipeline, anchor_folder: Path, folder: Path) -> None:
    """A whole pipeline folder; beside it, of a LoRA, pytorch_lora_weights.safetensors.

    The LoRA is merged into the anchor's own float32 weights.
    """
    if lora_layers(pipe.unet):
        save_lora(pipe.unet, folder)
        pipe = replace(pipe, unet=UNet2DConditionModel.from_pretrained(anchor_folder / "unet"))
        load_lora(pipe.unet, folder)
        for layer in lora_layers(pipe.unet).values():
            layer.merge()
    pipe.save(folder)


class Rollout(NamedTuple):
    """Trajectories of the trained steps, all float32; b images, k trained steps, v valued states."""
    states: Tensor     # b k+1 c h w   the action of step i is the state of step i + 1
    logp: Tensor       # b k           mean log-probability of each action under the policy that took it
    t: Tensor          # k
    p: Tensor          # k
    promises: Tensor   # v b c h w     x_0 as seen from the valued states
    images: Tensor     # b 1 h w       in [0, 1]


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


def valued_states(trained: int, config: RLConfig) -> list[int]:
    """Which states' promises are scored: spread evenly between the first and the last trained step."""
    parts = config.values + 1
    return sorted({round(trained * j / parts) for j in range(1, parts)} - {0, trained})


def queries_per_round(steps: int, config: RLConfig) -> int:
    """How many pictures of the policy the reward networks score in a round: ends and promises."""
    return config.reports * config.group * (1 + len(valued_states(trained_steps(steps, config), config)))


@torch.no_grad()
def pictures(pipe: Pipeline, latents: Tensor, micro: int) -> Tensor:
    """b c h w -> b 1 h w in [0, 1], `micro` at a time"""
    with autocast(pipe.device):
        return torch.cat([grey(pipe.decode(part)) for part in latents.split(micro)])


@torch.no_grad()
def rollout(pipe: Pipeline, cond: Tensor, uncond: Tensor, noise: Tensor, sampling: SampleConfig,
            trained: int, valued: list[int], micro: int) -> Rollout:
    """Sample the policy, `micro` images at a time: (cond: b n d, uncond: n d, noise: b steps+1 c h w)
    -> trajectories, promises of the valued states, and images."""
    states = noise.new_empty(len(noise), trained + 1, *noise.shape[2:])
    logp, ends = noise.new_empty(len(noise), trained), torch.empty_like(noise[:, 0])
    promises = noise.new_empty(len(valued), *ends.shape)
    states[:, 0] = noise[:, 0]
    for first in range(0, len(noise), micro):
        mb = slice(first, first + micro)
        with autocast(pipe.device):
            steps = denoise(pipe.unet, pipe.schedule, cond[mb], uncond, noise[mb], sampling.guidance,
                            sampling.eta)
            for i, step in enumerate(steps):
                if i < trained:
                    states[mb, i + 1] = step.x_p
                    logp[mb, i] = log_prob(step.x_p, step.mean, step.std)
                if i in valued:
                    promises[valued.index(i), mb] = step.x_0
        ends[mb] = step.x_p
    t, p = pipe.schedule.timesteps(noise.shape[1] - 1)
    return Rollout(states, logp, t[:trained], p[:trained], promises, pictures(pipe, ends, micro))


def advantages(rewards: dict[str, Tensor], weights: dict[str, float],
               units: dict[str, Tensor | float] | None, group: int, limit: float = 5.0) -> Tensor:
    """Rewards (b,) each -> advantages (b,): each minus its group's mean, in its unit, weighted, summed.

    A unit is the spread of real pairs and stays the same: as the images of a report become equally good,
    advantages go to 0 and the KL term holds what is left. With units = None it is the spread that is left
    after the mean is taken off, as in DDPO: then a reward never rests. With group = 1 the batch is the group,
    as in DDPO without per-prompt statistics. The sum is divided by the norm of the weights, so that they set
    proportions only.
    """
    total = torch.zeros_like(next(iter(rewards.values())))
    norm = sum(w**2 for w in weights.values()) ** 0.5
    for name, reward in rewards.items():
        if not torch.isfinite(reward).all():
            raise FloatingPointError(f"reward {name} is not finite")
        r = rearrange(reward, "(p g) -> p g", g=group if group > 1 else len(reward))
        r = (r - r.mean(1, keepdim=True)).flatten()
        unit = units[name] if units is not None else r.square().mean().sqrt() + 1e-6
        total += weights[name] / norm / unit * r
    return total.clamp(-limit, limit)


def credit(advantage: Tensor, values: list[Tensor], valued: list[int], trained: int) -> Tensor:
    """(advantage of the end: b, values of the promises in the same unit: b each) -> of each step: b k

    The multiple of a promise's value that foretells the end best is what is known of the end at that state.
    The steps between two valued states are credited with its gain (the temporal difference of Sutton and
    Barto, section 6.1): from 0 at the start to the whole advantage at the end. What other steps did, most of
    the advantage's variance, stays out (docs/experiments.md, section 22). Values that hardly differ, by less
    than a hundredth of a unit, foretell nothing: what is left of them is rounding.
    """
    known = [v * (v @ advantage) / (v @ v + 1e-4 * len(v)) for v in values]
    known = torch.stack([torch.zeros_like(advantage), *known, advantage], 1)
    lengths = torch.tensor([0, *valued, trained]).diff().to(advantage.device)
    return known.diff(dim=1).repeat_interleave(lengths, 1, output_size=trained)


def step_weights(schedule: Schedule, t: Tensor, p: Tensor, eta: float) -> Tensor:
    """k steps -> k weights, mean 1: std / |d mean / d output|

    A log-probability's gradient on the network's output is (d mean / d output) / std times unit noise: late
    steps, where std is small, would drown the early ones.
    """
    one = torch.ones(len(t), 1, 1, 1, device=t.device)
    slope, std, _ = ddim_step(schedule, one, 0 * one, t, p, eta)   # the mean is linear in the output
    weights = (std / slope.abs()).flatten()
    return weights / weights.mean()


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
           pairs: Tensor, total: int, sampling: SampleConfig, config: RLConfig,
           optimizer) -> dict[str, Tensor]:
    """One clipped update on the (image, step) pairs of this rank, `total` on all ranks together; the gradient
    is the same whatever the micro-batch size and the number of ranks.

    advantage: b k. c_p: b n d and c_empty: n d are the prompt embeddings *without* c_s: ACE is applied here,
    under gradient, for it is part of the policy. Returns statistics as tensors on the device (no host sync).
    """
    k, d = len(ro.t), ro.states[0, 0].numel()
    clip, device = config.clip / d, ro.states.device
    names = ("pg_loss", "kl", "clip_fraction", "ratio_error")
    sums = {name: torch.zeros((), device=device) for name in names}
    low, high = torch.full((), torch.inf, device=device), torch.zeros((), device=device)   # of the ratio
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)   # of every rank, also one without a pair
    for mb in pairs.to(device).split(config.rl_micro):
        image, step = mb // k, mb % k
        mb_x, mb_t, mb_p, mb_c = ro.states[image, step], ro.t[step], ro.p[step], c_p[image]
        with autocast(pipe.device):
            cond, uncond = pipe.condition(mb_c, c_empty)
            out = guided_noise(pipe.unet, mb_x, mb_t, cond, uncond, sampling.guidance)
        mean, std, _ = ddim_step(pipe.schedule, out, mb_x, mb_t, mb_p, sampling.eta)
        logp, logp_old = log_prob(ro.states[image, step + 1], mean, std), ro.logp[image, step]
        loss, ratio = policy_loss(logp, logp_old, advantage[image, step], clip)
        kl = torch.zeros_like(loss)
        if config.kl > 0:
            with torch.no_grad(), autocast(pipe.device):
                anchor_out = guided_noise(anchor.unet, mb_x, mb_t, mb_c, c_empty, sampling.guidance)
            anchor_mean, *_ = ddim_step(pipe.schedule, anchor_out, mb_x, mb_t, mb_p, sampling.eta)
            kl = reduce((mean - anchor_mean) ** 2 / (2 * std**2), "b c h w -> b", "mean")
        ((loss + config.kl * kl).sum() / total).backward()
        with torch.no_grad():
            error = (ratio - 1).abs()
            for name, value in zip(names, (loss, kl, (error > clip).float(), error), strict=True):
                sums[name] += value.sum() / total
            low, high = torch.minimum(low, ratio.min()), torch.maximum(high, ratio.max())
    reduce_over_ranks([p.grad for p in parameters])
    reduce_over_ranks(list(sums.values()))
    reduce_over_ranks([low], dist.ReduceOp.MIN)
    reduce_over_ranks([high], dist.ReduceOp.MAX)
    grad_norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return {**sums, "ratio_min": low, "ratio_max": high, "grad_norm": grad_norm}


def round_noise(pipe: Pipeline, seeds: list[int], steps: int, trained: int,
                config: RLConfig) -> tuple[Tensor, Tensor]:
    """One seed for each image -> noise of the policy's: b steps+1 c h w, of the anchor's: p steps+1 c h w.

    The noise of a trained step is the policy's action: a baseline must not depend on it, so the anchor has
    its own. All else, x_T (column 0) and the untrained steps, belongs to the report with `same_noise`.
    """
    noise, spare = seeded_noise(seeds, 2 * steps + 1, pipe.latent_shape).chunk(2, dim=1)
    anchor_noise = spare[::config.group].clone()
    if config.same_noise:
        fixed = [0, *range(trained + 1, steps + 1)]
        anchor_noise[:, fixed] = noise[::config.group, fixed]
        noise[:, fixed] = anchor_noise[:, fixed].repeat_interleave(config.group, 0)
    return noise.to(pipe.device, copy=True), anchor_noise.to(pipe.device)   # a view would keep `spare`


@contextmanager
def offloaded(modules: list[nn.Module], device: torch.device):
    """The modules wait in CPU memory."""
    for module in modules:
        module.to("cpu")
    yield
    for module in modules:
        module.to(device)


def rl_round(pipe: Pipeline, anchor: Pipeline, nets: Rewards, reports: list[str], seeds: list[int],
             sampling: SampleConfig, config: RLConfig, optimizer) -> tuple[dict[str, float], Tensor]:
    """One round on `reports` (one entry for each image, groups adjacent, the same list on every rank)
    -> (statistics over all ranks, this rank's images: b 1 h w).

    Raises FloatingPointError if a reward or the loss is not finite, or if the policy that updates is not the
    policy that sampled (mean |ratio - 1| before the first update above a tenth of the clip range).
    """
    trained, group = trained_steps(sampling.sample_steps, config), config.group
    valued = valued_states(trained, config)
    b = len(reports) // ranks()
    mine = slice(rank() * b, (rank() + 1) * b)                # whole groups: train.py checks that
    noise, anchor_noise = round_noise(pipe, seeds[mine], sampling.sample_steps, trained, config)
    with torch.no_grad(), autocast(pipe.device):
        embedded = pipe.embed([*reports[mine][::group], ""]).float()
        c_report, c_empty = embedded[:-1], embedded[-1]       # c_report: one entry for each group
        c_p = c_report.repeat_interleave(group, 0)
        cond, uncond = pipe.condition(c_p, c_empty)
    ro = rollout(pipe, cond, uncond, noise, sampling, trained, valued, config.rl_batch)
    reference = None
    if config.rlcf:
        reference = nets.scores(rollout(anchor, c_report, c_empty, anchor_noise, sampling, 1, [],
                                        config.rl_batch).images, reports[mine][::group])
    weights = dict(zip(NAMES, (config.w_align, config.w_diag, config.w_consist), strict=True))
    units = nets.units(config.feedback) if config.unit == "real" else None

    def judged(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """This rank's images -> rewards and advantages of all ranks' images"""
        scores = compare(nets.scores(images, reports[mine]), reference, config.feedback)
        scores = {name: gather_from_ranks(score) for name, score in scores.items()}
        return scores, advantages(scores, weights, units, group)

    rewards, advantage = judged(ro.images)
    values = [judged(pictures(pipe, x_0, config.rl_batch))[1] for x_0 in ro.promises]
    advantage = credit(advantage, values, valued, trained)[mine]
    if config.balance:
        advantage = advantage * step_weights(pipe.schedule, ro.t, ro.p, sampling.eta)
    generator = torch.Generator().manual_seed(seeds[0])
    history = []
    with offloaded([pipe.text, pipe.vae, *vars(nets).values()] if config.offload else [], pipe.device):
        for _ in range(config.inner_epochs):
            for pairs in flat_pairs(len(reports), trained, config, generator):
                own = pairs[pairs // (b * trained) == rank()] - rank() * b * trained
                history.append(update(pipe, anchor, ro, advantage, c_p, c_empty, own, len(pairs), sampling,
                                      config, optimizer))
    stats = summarise(history, rewards, ro.images)
    d = ro.states[0, 0].numel()
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
    stats["pixel_std"] = images.std(0).mean()   # of this rank's images
    values = torch.stack([v.float() for v in stats.values()]).tolist()
    stats = dict(zip(stats, values, strict=True))
    if not all(torch.isfinite(torch.tensor(values))):
        raise FloatingPointError(f"a statistic of the round is not finite: {stats}")
    return stats
