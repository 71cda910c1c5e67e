"""CXRL's reinforcement learning: rollout -> rewards -> policy gradient, on one scroll.

Denoising is the decision process of DDPO (Black et al. 2024): state (c, t, x_t), action x_p, reward at the
end only. The policy denoises under [c_p ; c_s], the frozen anchor under c_p. Two estimators of the gradient
of the expected reward R share all else, rollout, rewards, ACE, LoRA, ranks, resuming:

score      DDPO's: the reward is a number, what has a gradient is the log-probability of the actions,
               r = exp(log p(x_p | x_t) - log p_old(x_p | x_t)),   loss = max(-A r, -A clip(r, 1 - c, 1 + c))
           with advantages A relative to a report's group of images. log p is the mean over the latent's D
           numbers, so the clip range c is `clip` / D.
pathwise   the reward is a network, which has a gradient of its own. A state x_t of the rollout is denoised
           once, and what it promises, x_0 as the network sees it from there, is decoded and scored:
               loss = -d^(tenths of the way left) R(decode(x_0(x_t)), y)
           (DRaFT, Clark et al. 2024; one step at a noisy state: SRPO, Shen et al. 2025). A reward counts up
           to the median real pair's score: a picture that is as right as that is left as it is.

Departures from CXRL and DDPO (docs/experiments.md has what was measured of them):

* before the policy gradient, the policy learns from those of the archive's own pairs that the rewards find
  right (`worthy`), which costs no diversity: reward-weighted regression (Peters & Schaal 2007), weights 0, 1;
* each reward is counted in the spread of real pairs: no scale dominates, and a reward that has become equal
  falls silent;
* RLCF: `score` counts diagnosis and consistency against the anchor's image of the same report, which cancels
  in a group: it acts with --group 1. The gradient of a difference does not see what is subtracted, so
  pathwise nothing is compared (experiments.md, 53);
* score, credit `steps`: a step is credited with what the state's promise gained by it, not with the end
  alone, and steps are weighted to act alike on the network;
* a KL term keeps the policy near the model that the gradient began with, and the result lies part of the way
  (`mix`) from there to where the gradient led, which keeps diversity (WiSE-FT, Wortsman et al. 2022).
"""
import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace import ACE
from model import LoRASnapshot, add_lora, lora_layers, merge_lora, save_lora
from rewards import NAMES, Rewards, compare
from sample import (
    Pipeline,
    SampleConfig,
    Schedule,
    autocast,
    both_branches,
    ddim_step,
    denoise,
    guided_noise,
    seeded_noise,
)
from storage.pictures import grey
from training.ranks import gather_from_ranks, rank, ranks, reduce_over_ranks

VALUED = 6       # states of an image, at most, whose promises are scored to credit single steps
LIMIT = 5.0      # of an advantage, as DDPO's
DISCOUNT = 0.7   # d of the pathwise gradient: late states see the end, early ones guess it


@dataclass(frozen=True)
class RLConfig:
    gradient: Annotated[Literal["pathwise", "score"],
                        "through the reward networks, or from the actions' log-probabilities, clipped, as "
                        "DDPO; --gradient score --help shows its defaults"] = "pathwise"
    rwr_steps: Annotated[int, "optimizer steps on the archive's pairs that the rewards find right, before "
                              "the policy gradient; 0: none"] = 1400
    rwr_lr: Annotated[float, "their peak learning rate; 0: the denoiser is frozen"] = 1e-3
    rounds: Annotated[int, "rollout + update rounds"] = 6
    rollout_steps: Annotated[int, "denoising steps of a rollout; fewer than of a picture serve"] = 10
    reports: Annotated[int, "reports per round; images per round = reports * group"] = 32
    group: Annotated[int, "images per report; score, 1: advantages against the whole batch, as in DDPO"] = 8
    updates: Annotated[int, "optimizer steps per round; score: from the second on the clip acts"] = 8
    rl_lr: Annotated[float, "peak learning rate of the denoiser in RL, decays to 0; 0: frozen"] = 2e-4
    kl: Annotated[float, "weight of the KL to the model that the policy gradient began with"] = 5.0
    mix: Annotated[float, "how far the result lies on the policy gradient's way; 1: at its end"] = 0.5
    credit: Annotated[Literal["steps", "end"], "score: a step is credited with what it gained, or with the "
                                               "image's whole advantage, as DDPO"] = "steps"
    clip: Annotated[float, "score: clip range of the whole latent's log-probability, in nats"] = 1.64
    w_align: Annotated[float, "weight of the posture reward; 0 leaves it out"] = 0.5
    w_diag: Annotated[float, "weight of the diagnosis reward"] = 2.0
    w_consist: Annotated[float, "weight of the consistency reward"] = 0.2
    rlcf: Annotated[bool, "score: comparative feedback, findings and report against the anchor's; cancels "
                         "within a group, so give --group 1"] = False
    ace: Annotated[bool, "adaptive condition embeddings"] = True
    ace_tokens: Annotated[int, "K, the number of ACE vectors"] = 4
    ace_lr: Annotated[float, "their peak learning rate"] = 1e-3
    lora_rank: Annotated[int, "train a LoRA of this rank on the attention layers; 0 trains every weight"] = 0
    checkpointing: Annotated[bool, "recompute activations in the update: less memory, more time"] = False
    offload: Annotated[bool, "text encoder (score: VAE and rewards, too) leaves the GPU in updates"] = False
    rl_batch: Annotated[int, "images per forward pass in the rollout; halve if out of memory"] = 128
    rl_micro: Annotated[int, "(image, step) pairs per pass of the update; halve if out of memory"] = 64

    @property
    def weights(self) -> dict[str, float]:
        """Proportions of the rewards: their norm is 1."""
        weights = {name: getattr(self, f"w_{name}") for name in NAMES}
        norm = sum(weight**2 for weight in weights.values()) ** 0.5
        return {name: weight / norm for name, weight in weights.items()}


# What differs by default with --gradient score.
SCORE = {"rounds": 12, "updates": 2, "rl_lr": 3e-4, "kl": 0.01, "rlcf": True}


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
        name, tuned = "lora", add_lora(pipe.unet, config.lora_rank)
    else:
        name, tuned = "unet", pipe.unet
    anchor = freeze(pipe)
    tuned.requires_grad_(True)
    pipe.unet.gradient_checkpointing = config.checkpointing
    modules = {name: tuned}
    groups = [{"params": list(tuned.parameters()), "peak": config.rl_lr}]
    if config.ace:
        with torch.no_grad():
            pipe.ace = ACE.start(config.ace_tokens, pipe.embed([""])[0])
        modules["ace"] = pipe.ace
        groups.append({"params": list(pipe.ace.parameters()), "peak": config.ace_lr})
    return pipe, anchor, modules, groups


def freeze(pipe: Pipeline) -> Pipeline:
    """The policy as it is now, to compare it with or to hold it to; what is not trained is shared with it."""
    lora = lora_layers(pipe.unet)
    unet = LoRASnapshot(pipe.unet) if lora else copy.deepcopy(pipe.unet).requires_grad_(False)
    return replace(pipe, unet=unet, ace=copy.deepcopy(pipe.ace))   # called without gradient only


def save_policy(pipe: Pipeline, anchor_folder: Path, folder: Path) -> None:
    """A whole pipeline folder, a LoRA merged into the anchor's own float32 weights; beside it
    pytorch_lora_weights.safetensors."""
    if lora_layers(pipe.unet):
        save_lora(pipe.unet, folder)
        pipe = replace(pipe, unet=merge_lora(pipe.unet, anchor_folder / "unet"))
    pipe.save(folder)


# ------------------------------------------------------------------------------------------------ rollout


class Rollout(NamedTuple):
    """Trajectories, all float32; b images, k actions with a log-probability (all but the last step's)."""
    states: Tensor     # b k+1 c h w   the action of step i is the state of step i + 1
    logp: Tensor       # b k           mean log-probability of each action under the policy that took it
    t: Tensor          # k+1           the states' timesteps
    p: Tensor          # k+1           and those that they lead to
    promises: Tensor   # v b c h w     x_0 as seen from the valued states
    images: Tensor     # b 1 h w       in [0, 1]


def log_prob(x_p: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x_p; mean, std^2), mean over c h w: (x_p, mean: b c h w, std: b 1 1 1) -> b"""
    logp = -((x_p - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return reduce(logp, "b c h w -> b", "mean")


def valued_states(config: RLConfig) -> list[int]:
    """Which states' promises are scored for credit: spread evenly over the steps with a log-probability."""
    if config.gradient == "pathwise" or config.credit == "end":
        return []
    last = config.rollout_steps - 1
    return sorted({round(last * j / (VALUED + 1)) for j in range(1, VALUED + 1)} - {0, last})


@torch.no_grad()
def pictures(pipe: Pipeline, latents: Tensor, micro: int) -> Tensor:
    """b c h w -> b 1 h w in [0, 1], `micro` at a time"""
    with autocast(pipe.device):
        return torch.cat([grey(pipe.decode(part)) for part in latents.split(micro)])


@torch.no_grad()
def rollout(pipe: Pipeline, cond: Tensor, uncond: Tensor, noise: Tensor, sampling: SampleConfig,
            valued: list[int], micro: int) -> Rollout:
    """Sample the policy, `micro` images at a time: (cond: b n d, uncond: n d, noise: b steps+1 c h w)
    -> trajectories, promises of the valued states, and images."""
    steps = noise.shape[1] - 1
    states = torch.empty_like(noise[:, 1:])
    logp, ends = noise.new_empty(len(noise), steps - 1), torch.empty_like(noise[:, 0])
    promises = noise.new_empty(len(valued), *ends.shape)
    for first in range(0, len(noise), micro):
        mb = slice(first, first + micro)
        with autocast(pipe.device):
            path = denoise(pipe.unet, pipe.schedule, cond[mb], uncond, noise[mb], sampling.guidance,
                           sampling.eta)
            for i, step in enumerate(path):
                states[mb, i] = step.x
                if i < steps - 1:
                    logp[mb, i] = log_prob(step.x_p, step.mean, step.std)
                if i in valued:
                    promises[valued.index(i), mb] = step.x_0
        ends[mb] = step.x_p
    return Rollout(states, logp, *pipe.schedule.timesteps(steps), promises, pictures(pipe, ends, micro))


def round_noise(pipe: Pipeline, seeds: list[int], steps: int, group: int) -> tuple[Tensor, Tensor]:
    """One seed for each image -> noise of the policy's: b steps+1 c h w, of the anchor's: p steps+1 c h w.

    The noise of a step with a log-probability is the policy's action: a baseline must not depend on it, so
    the anchor has its own. What is no action, x_T (column 0) and the last step's, belongs to the report.
    """
    noise, fixed = seeded_noise(seeds, steps, pipe.latent_shape), [0, steps]
    anchor_noise = seeded_noise(seeds[::group], 2 * steps + 1, pipe.latent_shape)[:, steps + 1:]
    anchor_noise[:, fixed] = noise[::group, fixed]
    noise[:, fixed] = anchor_noise[:, fixed].repeat_interleave(group, 0)
    return noise.to(pipe.device), anchor_noise.to(pipe.device)


# ---------------------------------------------------------------------------------- two gradients of a reward


def advantages(rewards: dict[str, Tensor], weights: dict[str, float], units: dict[str, Tensor | float],
               group: int) -> Tensor:
    """Rewards (b,) each -> advantages (b,): each minus its group's mean, in its unit, weighted, summed, and
    clamped to LIMIT.

    As the images of a report become equally good, advantages go to 0 and the KL term holds what is left. With
    group = 1 the batch is the group, as in DDPO without per-prompt statistics.
    """
    total = torch.zeros_like(next(iter(rewards.values())))
    for name, reward in rewards.items():
        if not torch.isfinite(reward).all():
            raise FloatingPointError(f"reward {name} is not finite")
        r = rearrange(reward, "(p g) -> p g", g=group if group > 1 else len(reward))
        total += weights[name] / units[name] * (r - r.mean(1, keepdim=True)).flatten()
    return total.clamp(-LIMIT, LIMIT)


def credit(advantage: Tensor, values: list[Tensor], valued: list[int], k: int) -> Tensor:
    """(advantage of the end: b, values of the promises in the same unit: b each) -> of each step: b k

    The multiple of a promise's value that foretells the end best is what is known of the end at that state.
    The steps between two valued states are credited with its gain (the temporal difference of Sutton and
    Barto, section 6.1): from 0 at the start to the whole advantage at the end (docs/experiments.md, 22).
    Values that differ by less than a hundredth of a unit foretell nothing: they are rounding.
    """
    known = [v * (v @ advantage) / (v @ v + 1e-4 * len(v)) for v in values]
    known = torch.stack([torch.zeros_like(advantage), *known, advantage], 1)
    lengths = torch.tensor([0, *valued, k]).diff().to(advantage.device)
    return known.diff(dim=1).repeat_interleave(lengths, 1, output_size=k)


def step_weights(schedule: Schedule, t: Tensor, p: Tensor, eta: float) -> Tensor:
    """k steps -> k weights, mean 1: std / |d mean / d output|

    A log-probability's gradient on the output is (d mean / d output) / std times unit noise: late steps,
    where std is small, would drown the early ones.
    """
    one = torch.ones(len(t), 1, 1, 1, device=t.device)
    slope, std, _ = ddim_step(schedule, one, 0 * one, t, p, eta)   # the mean is linear in the output
    weights = (std / slope.abs()).flatten()
    return weights / weights.mean()


def policy_loss(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(b,) each -> (loss: b, ratio: b); loss = max(-A r, -A clip(r, 1 - clip, 1 + clip)), r = p / p_old."""
    ratio = (logp - logp_old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)), ratio


@dataclass
class Objective:
    """What an update minimises on (image, step) pairs of one rollout; both estimators have this interface.

    c_p: b n d and c_empty: n d are the prompt embeddings *without* c_s: ACE is applied here, under gradient,
    for it is part of the policy. `start` is the model that the KL holds to, with its ACE.
    """
    pipe: Pipeline
    start: Pipeline
    ro: Rollout
    c_p: Tensor
    c_empty: Tensor
    sampling: SampleConfig
    config: RLConfig

    def outputs(self, image: Tensor, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """-> what the policy's and the start's denoiser say: b c h w each; None: nothing needs the second"""
        x, t, c_p = self.ro.states[image, step], self.ro.t[step], self.c_p[image]

        def says(model: Pipeline) -> Tensor:
            context = both_branches(model.unet, *model.condition(c_p, self.c_empty), self.sampling.guidance)
            return guided_noise(model.unet, x, t, context, self.sampling.guidance)

        with autocast(self.pipe.device):
            out = says(self.pipe)
            with torch.no_grad():
                return out, says(self.start) if self.config.kl else None

    def step(self, out: Tensor, image: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> mean, std and x_0 of ddim_step"""
        ro, eta = self.ro, self.sampling.eta
        return ddim_step(self.pipe.schedule, out, ro.states[image, step], ro.t[step], ro.p[step], eta)


@dataclass
class ScoreFunction(Objective):
    """DDPO's clipped policy gradient, on steps that have a log-probability; advantage: b k"""
    advantage: Tensor
    statistics = ("loss", "kl", "clip_fraction", "ratio_error")

    def __call__(self, image: Tensor, step: Tensor) -> dict[str, Tensor]:
        out, begun = self.outputs(image, step)
        mean, std, _ = self.step(out, image, step)
        logp, logp_old = log_prob(self.ro.states[image, step + 1], mean, std), self.ro.logp[image, step]
        clip = self.config.clip / mean[0].numel()
        loss, ratio = policy_loss(logp, logp_old, self.advantage[image, step], clip)
        kl = torch.zeros_like(loss)
        if begun is not None:   # exact, of the step's two normal distributions
            kl = reduce((mean - self.step(begun, image, step)[0]) ** 2 / (2 * std**2), "b c h w -> b", "mean")
        error = (ratio - 1).abs().detach()
        return {"loss": loss + self.config.kl * kl, "kl": kl, "clip_fraction": (error > clip).float(),
                "ratio_error": error, "ratio": ratio, "logp": logp.detach()}

    def recount(self, parts: list[Tensor], k: int) -> None:
        """log p_old anew, on the very batches that updates pass: on a GPU one of another size takes other
        kernels, whose rounding to bf16, times guidance, would be more than the clip range."""
        alone, logp = replace(self, config=replace(self.config, kl=0.0)), torch.empty_like(self.ro.logp)
        for mb in (mb for part in parts for mb in part.split(self.config.rl_micro) if len(mb)):
            logp[mb // k, mb % k] = alone(mb // k, mb % k)["logp"]
        self.ro = self.ro._replace(logp=logp)


def discount(step: Tensor, steps: int) -> Tensor:
    """How much the promise of a state counts: d for each tenth of the way that is left, whatever the steps"""
    return DISCOUNT ** (10 * (1 - (step + 1) / steps))


@dataclass
class Pathwise(Objective):
    """The rewards' own gradient through what a state promises, for one state of each image."""
    nets: Rewards
    reports: list[str]
    statistics = ("loss", "kl")

    def promise(self, out: Tensor, image: Tensor, step: Tensor) -> dict[str, Tensor]:
        """What the network says in a state -> rewards of the x_0 that it promises, in units of real pairs:
        what it lacks of the median pair's"""
        decode = self.pipe.decode
        if self.config.checkpointing:
            decode = partial(checkpoint, decode, use_reentrant=False)
        x_0 = self.step(out, image, step)[2].split(1 if self.config.checkpointing else len(image))
        with autocast(self.pipe.device):   # with checkpointing, one image's activations at a time
            pictures = grey(torch.cat([decode(x) for x in x_0]))
        scores = self.nets.raw_scores(pictures.float(), [self.reports[i] for i in image.tolist()])
        units, enough = self.nets.units(), self.nets.medians()
        return {name: (score.minimum(enough[name]) - enough[name]) / units[name]
                for name, score in scores.items()}

    def __call__(self, image: Tensor, step: Tensor) -> dict[str, Tensor]:
        out, begun = self.outputs(image, step)
        rewards = self.promise(out, image, step)
        reward = sum(self.config.weights[name] * value for name, value in rewards.items())
        kl = torch.zeros_like(reward) if begun is None else reduce((out - begun) ** 2, "b c h w -> b", "mean")
        if self.pipe.schedule.config.prediction_type == "epsilon":   # counted as v's: |dv|^2 = |de|^2 / a
            kl = kl / self.pipe.schedule.a[self.ro.t[step]]
        return {"loss": self.config.kl * kl - discount(step, len(self.ro.t)) * reward, "kl": kl}


def flat_pairs(b: int, k: int, each: int, updates: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled indices of (image, step) pairs, b * k flattened, one tensor for each update; of each image
    `each` of its k steps, drawn at random."""
    chosen = torch.rand(b, k, generator=generator).argsort(1)[:, :each]
    pairs = (torch.arange(b)[:, None] * k + chosen).flatten()
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    return list(pairs.tensor_split(min(updates, len(pairs))))


def update(objective: Objective, pairs: Tensor, total: int, k: int, optimizer) -> dict[str, Tensor]:
    """One update on the (image, step) pairs of this rank, of k steps an image, `total` on all ranks together;
    the gradient is the same whatever the micro-batch size and the number of ranks. -> statistics, left on
    the device: means over all pairs; of the ratio, its extremes."""
    device = objective.ro.states.device
    sums = {name: torch.zeros((), device=device) for name in objective.statistics}
    low, high = torch.full((), torch.inf, device=device), torch.zeros((), device=device)   # of the ratio
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)   # of every rank, also one without a pair
    for mb in pairs.split(objective.config.rl_micro) if len(pairs) else ():
        numbers = objective(mb // k, mb % k)
        (numbers["loss"].sum() / total).backward()
        with torch.no_grad():
            for name in sums:
                sums[name] += numbers[name].sum() / total
            ratio = numbers.get("ratio", low.new_ones(1))
            low, high = torch.minimum(low, ratio.min()), torch.maximum(high, ratio.max())
    reduce_over_ranks([p.grad for p in parameters])
    reduce_over_ranks(list(sums.values()))
    reduce_over_ranks([low], dist.ReduceOp.MIN)
    reduce_over_ranks([high], dist.ReduceOp.MAX)
    grad_norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    extremes = {"ratio_min": low, "ratio_max": high} if "ratio_error" in sums else {}
    return {**sums, **extremes, "grad_norm": grad_norm}


@contextmanager
def offloaded(modules: list[nn.Module], device: torch.device):
    """The modules wait in CPU memory."""
    for module in modules:
        module.to("cpu")
    yield
    for module in modules:
        module.to(device)


def rl_round(pipe: Pipeline, anchor: Pipeline, start: Pipeline, nets: Rewards, reports: list[str],
             seeds: list[int], sampling: SampleConfig, config: RLConfig,
             optimizer) -> tuple[dict[str, float], Tensor]:
    """One round on `reports` (one entry for each image, groups adjacent, the same list on every rank)
    -> (statistics over all ranks, but for pixel_std; this rank's images: b 1 h w).

    Raises FloatingPointError if a reward or the loss is not finite, or if update and rollout disagree
    (score: mean |ratio - 1| before the first update above a tenth of the clip range; not after `recount`).
    """
    steps, group, b = config.rollout_steps, config.group, len(reports) // ranks()
    mine = slice(rank() * b, (rank() + 1) * b)                # whole groups (options.check_shares)
    noise, anchor_noise = round_noise(pipe, seeds[mine], steps, group)
    with torch.no_grad(), autocast(pipe.device):
        embedded = pipe.embed([*reports[mine][::group], ""]).float()
        c_report, c_empty = embedded[:-1], embedded[-1]       # c_report: one entry for each group
        c_p = c_report.repeat_interleave(group, 0)
        cond, uncond = pipe.condition(c_p, c_empty)
    valued = valued_states(config)
    ro = rollout(pipe, cond, uncond, noise, sampling, valued, config.rl_batch)
    reference = None
    if config.rlcf:
        theirs = rollout(anchor, *anchor.condition(c_report, c_empty), anchor_noise, sampling, [],
                         config.rl_batch)
        reference = nets.scores(theirs.images, reports[mine][::group])

    def judged(images: Tensor) -> dict[str, Tensor]:
        """This rank's images -> rewards of all ranks' images"""
        scores = compare(nets.scores(images, reports[mine]), reference)
        return {name: gather_from_ranks(score) for name, score in scores.items()}

    rewards, shared = judged(ro.images), (pipe, start, ro, c_p, c_empty, sampling, config)
    if config.gradient == "pathwise":
        objective, k, each = Pathwise(*shared, nets, reports[mine]), steps, 1
    else:
        advantage = partial(advantages, weights=config.weights, units=nets.units(), group=group)
        values = [advantage(judged(pictures(pipe, x_0, config.rl_batch))) for x_0 in ro.promises]
        credited = credit(advantage(rewards), values, valued, steps - 1)[mine]
        if config.credit == "steps":
            credited = credited * step_weights(pipe.schedule, ro.t[:-1], ro.p[:-1], sampling.eta)
        objective, k, each = ScoreFunction(*shared, credited), steps - 1, steps - 1
    waiting = [pipe.text] if config.gradient == "pathwise" else [pipe.text, pipe.vae, *vars(nets).values()]
    history, generator = [], torch.Generator().manual_seed(seeds[0])
    with offloaded(waiting if config.offload else [], pipe.device):
        pairs = flat_pairs(len(reports), k, each, config.updates, generator)
        own = [(part[part // (b * k) == rank()] - rank() * b * k).to(pipe.device) for part in pairs]
        if config.gradient == "score" and pipe.device.type == "cuda":
            objective.recount(own, k)
        for part, whole in zip(own, pairs, strict=True):
            history.append(update(objective, part, len(whole), k, optimizer))
    stats = summarise(history, rewards, ro.images)
    clip = config.clip / ro.states[0, 0].numel()
    if stats.get("ratio_error_first", 0) > 0.1 * clip:
        raise FloatingPointError(
            f"mean |ratio - 1| is {stats['ratio_error_first']:.1e} before the first update, above a tenth "
            f"of the clip range {clip:.1e}: rollout and update disagree")
    return stats, ro.images


def summarise(history: list[dict[str, Tensor]], rewards: dict[str, Tensor],
              images: Tensor) -> dict[str, float]:
    """The numbers of one round; the only place where they leave the device."""
    def over(name: str) -> Tensor:
        return torch.stack([numbers[name] for numbers in history])

    stats = {name: over(name).mean() for name in history[0] if not name.startswith("ratio")}
    if "ratio_error" in history[0]:
        stats |= {"ratio_min": over("ratio_min").min(), "ratio_max": over("ratio_max").max(),
                  "ratio_error_first": over("ratio_error")[0]}
    stats |= {f"reward_{name}": reward.mean() for name, reward in rewards.items()}
    stats["pixel_std"] = images.std(0, correction=0).mean()   # of this rank's images
    values = torch.stack([v.float() for v in stats.values()]).tolist()
    stats = dict(zip(stats, values, strict=True))
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f"a statistic of the round is not finite: {stats}")
    return stats
