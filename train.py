"""Train CXRL, all stages:
python train.py [--out runs/phantom] [--preset tiny] [--data phantom] [--stage all] ...

    python train.py                                 the whole system on embedded phantoms, in some 10 minutes
    python train.py --data DIR --out runs/mine      on your own X-rays, or an archive's as published
    python train.py --stage rewards                 one stage, once those before it are done

Stages, in order: vae -> diffusion (with the text encoder) -> rewards -> rl -> evaluate. Each is skipped when
the run folder already holds its result, and continues bit for bit where it was killed: every random number is
a pure function of (seed, stage, step), and RUN/state holds weights, optimizer and step.
"""
from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command continues where it stopped")

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data
import evaluate
import rewards
from model import UNet2DConditionModel, add_lora, layout, merge_lora
from rewards import CLIPConsistency, ConsistencyNet, DiagnosisNet, PostureNet, Rewards, worthy
from rl import RLConfig, freeze, rl_round, save_policy, start_policy
from sample import Pipeline, SampleConfig, Schedule, autocast, generate
from storage.files import git_revision, holding, read_json
from storage.pictures import grey, picture_grid, save_png, unit
from text_encoder import CLIPTextModel, Contrast, Tokenizer
from training.latents import Latents, latent_cache
from training.loop import (
    Loss,
    Run,
    batch_index,
    fit,
    learning_rate,
    load_state,
    make_optimizer,
    quick,
    save_state,
    step_generator,
)
from training.options import Preset, TrainConfig, bind, finished, given_by_init, open_run, parse, sizes_of
from training.plan import dry_run, queries_per_round
from training.ranks import rank, ranks, share, start_ranks, wait_for_ranks, whole_job
from vae import AutoencoderKL

KEPT_NUMBERS = 2**27      # of prompt embeddings, 0.5 GB; of larger sets they are computed for each batch
MOST_PASSES = 4           # over pairs that reward networks see as they are: in more they would learn them
STAGES = ("vae", "diffusion", "rewards", "rl", "evaluate")


def load_sets(config: TrainConfig) -> dict:
    """The run's data; real images are decoded once and kept in RUN/state."""
    cache = None if config.dry_run and not config.out.exists() else config.out / "state"
    return data.load(config.data, size=sizes_of(config).size, seed=config.seed, fit=config.fit,
                     train_images=config.train_images, prompt=config.prompt, cache=cache)


# ------------------------------------------------------------------------------------------------ stages


def stage_vae(run: Run, config: TrainConfig, sets: dict, sizes: Preset) -> None:
    """Autoencoder: absolute error of grey values and of their slopes (ribs, vessels), and a light KL;
    its latent scale is measured once and kept in its config.json."""
    torch.manual_seed(run.seed)
    vae, train = AutoencoderKL(sizes.vae).to(run.device, memory_format=layout(run.device)), sets["train"]

    batch, mine = config.vae_batch, share(config.vae_batch)
    draw = train.stream(lambda step: batch_index(len(train), batch, run.seed, step)[mine])

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        x = unit(draw(step), run.device) * 2 - 1
        mean, logvar = vae.encode(x)
        noise = torch.randn(batch, *mean.shape[1:], generator=step_generator(run.seed, "vae", step))
        error = vae.decode(mean + (0.5 * logvar).exp() * noise[part].to(run.device)) - x
        slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        return error.abs().mean() + slopes + 1e-6 * kl, {
            "psnr": 10 * torch.log10(4 / error.square().mean()), "kl": kl}

    fit(run, "vae", {"vae": vae}, loss, config.vae_steps, config.vae_lr, batch)
    if rank() > 0:
        return
    with torch.no_grad():
        some = unit(train.images(torch.arange(min(512, len(train)))), run.device) * 2 - 1
        std = torch.cat([vae.encode(x)[0] for x in some.split(32)]).std()
        vae.config = dataclasses.replace(vae.config, scaling_factor=round(1 / std.item(), 5))
        held_out = unit(sets["val"].images(torch.arange(min(256, len(sets["val"])))), run.device) * 2 - 1
        back = torch.cat([grey(vae.decode(vae.encode(x)[0])) for x in held_out.split(32)])
    psnr = 10 * torch.log10(4 / F.mse_loss(back, held_out)).item()
    run.log("vae", config.vae_steps, held_out_psnr=psnr)
    print(f"vae: {psnr:.1f} dB PSNR on held-out images")
    rows = [("originals", held_out[:6] / 2 + 0.5), ("reconstructions", back[:6] / 2 + 0.5)]
    save_png(picture_grid(rows), run.path("samples", "vae.png"))
    vae.save_pretrained(run.path("anchor", "vae"))


def start_pipeline(run: Run, config: TrainConfig, sizes: Preset, vae: AutoencoderKL, latents: Latents,
                   reports: list[str]) -> Pipeline:
    """From scratch: text encoder by contrast, then frozen, as in Stable Diffusion; a new UNet."""
    tokenizer = Tokenizer.train(reports, sizes.text.vocab_size, sizes.text.max_position_embeddings)
    unet = UNet2DConditionModel(sizes.unet).to(run.device, memory_format=layout(run.device))
    text = CLIPTextModel(sizes.text).to(run.device)
    contrast = Contrast(text, sizes.unet.in_channels, sizes.unet.cross_attention_dim).to(run.device)

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        index = batch_index(len(reports), config.text_batch, run.seed + 3, step)[part]
        ids = tokenizer([reports[i] for i in index.tolist()])
        return contrast(latents[index].to(run.device), ids.to(run.device))

    fit(run, "text", {"contrast": contrast}, loss, config.text_steps, config.diffusion_lr, config.text_batch)
    return Pipeline(unet, vae, text, tokenizer, Schedule(sizes.schedule, run.device))


def tuned_modules(pipe: Pipeline, config: TrainConfig) -> dict[str, nn.Module]:
    """What the diffusion stage trains, by name; all else is frozen."""
    for part in (pipe.unet, pipe.vae, pipe.text):
        part.requires_grad_(False)
    if config.finetune == "lora":
        return {"lora": add_lora(pipe.unet, config.finetune_rank)}
    modules = {"unet": pipe.unet} | ({"text": pipe.text} if config.finetune == "all" else {})
    return {name: module.requires_grad_(True) for name, module in modules.items()}


def stage_diffusion(run: Run, config: TrainConfig, sets: dict, sizes: Preset, sampling: SampleConfig,
                    checkpointing: bool) -> None:
    """UNet on cached latents -> RUN/anchor, the supervised pipeline: from scratch, or from --init with its
    own schedule, at a small constant rate (as RoentGen, Chambon et al. 2022)."""
    train, scratch = sets["train"], config.init is None
    vae = AutoencoderKL.from_pretrained(run.path("anchor", "vae"))
    vae = vae.to(run.device, memory_format=layout(run.device))
    latents = latent_cache(run, vae, train)
    torch.manual_seed(run.seed + 1)
    pipe = (start_pipeline(run, config, sizes, vae, latents, train.reports) if scratch
            else Pipeline.load(config.init, run.device))
    if cut := pipe.tokenizer.cut_count(train.reports):
        print(f"diffusion: {cut} of {len(train)} reports exceed {pipe.tokenizer.max_length} tokens "
              "and are cut there")
    modules = tuned_modules(pipe, config)
    pipe.unet.gradient_checkpointing = checkpointing
    if config.compile:
        pipe.unet.compile()
    fit(run, "diffusion", modules, diffusion_loss(run, config, pipe, latents, train.reports),
        config.diffusion_steps, config.diffusion_lr, config.diffusion_batch, config.diffusion_micro,
        config.ema_decay, decay=scratch, muon=scratch)
    if rank() > 0:
        return
    if config.finetune == "lora":
        pipe.unet = merge_lora(pipe.unet, config.init / "unet").to(run.device)
    reports = sets["val"].reports[:4]
    rows = [(r, generate(pipe, [r] * 6, list(range(6)), **sampling.arguments())) for r in reports]
    save_png(picture_grid(rows), run.path("samples", "anchor.png"), report="\n".join(reports), seed=0,
             revision=git_revision())
    pipe.save(run.path("anchor"))   # the mark of the finished stage, hence last


def diffusion_loss(run: Run, config: TrainConfig, pipe: Pipeline, latents: Latents, reports: list[str],
                   first: int = 0, rows: Callable[[], Tensor] | None = None) -> Loss:
    """The supervised objective as a function of the step (from `first` on): mean squared error of the noise
    (or v). rows() -> the pairs to learn from, asked for once, at the first step; None: all."""
    rows = functools.cache(rows or (lambda: torch.arange(len(reports))))
    n, batch, schedule, kept = len(reports), config.diffusion_batch, pipe.schedule, None
    timesteps, tuned = schedule.config.num_train_timesteps, config.finetune == "all"
    if not tuned and n * pipe.tokenizer.max_length * pipe.text.config.hidden_size <= KEPT_NUMBERS:
        with torch.no_grad():
            kept = torch.cat([pipe.embed(reports[i:i + 256]) for i in range(0, n, 256)])
            c_empty = pipe.embed([""])

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        step += first
        g = step_generator(run.seed, "diffusion", step)
        index = rows()[batch_index(len(rows()), batch, run.seed, step)][part]
        x0 = latents[index].to(run.device)
        noise = torch.randn(batch, *x0.shape[1:], generator=g)[part].to(run.device)
        all_t = torch.randint(timesteps, (batch,), generator=g)
        drop = (torch.rand(batch, 1, generator=g) < config.prompt_dropout)[part]
        t = all_t[part].to(run.device)
        with autocast(run.device):
            with torch.set_grad_enabled(tuned):
                if kept is None:
                    chosen = zip(index.tolist(), drop, strict=True)
                    context = pipe.embed(["" if dropped else reports[i] for i, dropped in chosen])
                else:
                    drop, index = drop.to(run.device), index.to(run.device)
                    context = torch.where(drop[..., None], c_empty, kept[index])
            if pipe.ace is not None:
                context = pipe.ace(context)
            out = pipe.unet(schedule.add_noise(x0, noise, t), t, context).float()
        by_image = ((out - schedule.target(x0, noise, t)) ** 2).mean((1, 2, 3))
        numbers = {}
        for q in range(4):   # means over the whole batch's images of a quarter of the process
            count = (all_t * 4 // timesteps == q).sum().clamp(min=1) * (len(index) / batch)
            numbers[f"loss_t{q}"] = (by_image * (t * 4 // timesteps == q)).sum() / count
        return by_image.mean(), numbers

    return loss


def blurred(images: Tensor, g: torch.Generator, batch: int, part: slice) -> Tensor:
    """Random blur and noise for the images, a part of a batch: rewards must not depend on grain,
    which the decoder of a latent model does not give back."""
    amount = torch.rand(batch, 1, 1, 1, generator=g)[part].to(images.device)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(batch, *images.shape[1:], generator=g)[part].to(images.device)
    return images + amount * (soft - images) + 0.03 * torch.rand(1, generator=g).item() * noise


@dataclasses.dataclass
class Pairs:
    """The training pairs as reward networks see them, archive faults included; the last are kept back."""
    train: object
    taught: int       # the first pairs, so many
    batch: int
    steps: int
    seed: int
    device: torch.device

    def __post_init__(self):
        self.images = self.train.stream(lambda step: self.index(step)[share(self.batch)])

    def index(self, step: int) -> Tensor:
        return batch_index(self.taught, self.batch, self.seed + 1, step)

    def draw(self, name: str, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """-> this rank's share of a batch, softened; the rows of the whole batch; a generator"""
        g = step_generator(self.seed, name, step)
        images = blurred(unit(self.images(step), self.device), g, self.batch, share(self.batch))
        return images, self.index(step), g

    def warped(self, name: str, step: int) -> tuple[Tensor, Tensor]:
        """-> images and rows of `draw`; few pairs in ever new poses, or they would be learned by heart"""
        images, index, g = self.draw(name, step)
        if self.steps * self.batch > MOST_PASSES * self.taught:
            psi = rewards.random_pose(self.batch, g)[share(self.batch)]
            images = rewards.warp(images, rewards.affine(psi.to(self.device)))
        return images, index


def teach_posture(run: Run, config: TrainConfig, sizes: rewards.RewardConfig, pairs: Pairs) -> PostureNet:
    net = PostureNet(sizes).to(run.device)
    some = unit(pairs.train.images(torch.arange(min(1000, pairs.taught))), run.device)
    net.canonical.copy_(rewards.canonical_chest(some))

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        images, _, g = pairs.draw("posture", step)
        images = F.interpolate(images, net.canonical.shape[2:], mode="area")
        return net.loss(images, rewards.random_pose(pairs.batch, g)[part].to(run.device))

    fit(run, "posture", {"net": net}, loss, config.reward_steps, config.reward_lr, pairs.batch)
    net.eval().set_zero(some)
    return net


def teach_diagnosis(run: Run, config: TrainConfig, sizes: rewards.RewardConfig, pairs: Pairs) -> DiagnosisNet:
    if config.diagnosis is not None:
        return DiagnosisNet.from_densenet(config.diagnosis).to(run.device)
    net = DiagnosisNet(sizes).to(run.device)

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        images, index = pairs.warped("diagnosis", step)
        labels, known = pairs.train.labels[index], (pairs.train.labels[index] != -1).float()
        value, numbers = net.loss(images, labels[part].to(run.device))   # a mean over known labels
        return value * (known[part].mean() / known.mean().clamp(min=1e-9)).to(run.device), numbers

    fit(run, "diagnosis", {"net": net}, loss, config.reward_steps, config.reward_lr, pairs.batch)
    return net


def teach_consistency(run: Run, config: TrainConfig, sizes: rewards.RewardConfig,
                      pairs: Pairs) -> ConsistencyNet | CLIPConsistency:
    if config.consistency is not None:
        return CLIPConsistency.from_pretrained(config.consistency).to(run.device)
    net, reports = ConsistencyNet(sizes).to(run.device), pairs.train.reports
    net.tokenizer = Tokenizer.train(reports, sizes.vocab_size, sizes.positions)

    def loss(step: int, part: slice) -> tuple[Tensor, dict]:
        images, index = pairs.warped("consistency", step)
        return net.loss(images, [reports[i] for i in index[part].tolist()])

    fit(run, "consistency", {"net": net}, loss, config.reward_steps, config.reward_lr, pairs.batch)
    return net


def stage_rewards(run: Run, config: TrainConfig, sets: dict, sizes: Preset) -> None:
    """The three reward networks; the scores of the pairs kept back set each network's scale."""
    train, kept = sets["train"], min(1000, max(len(sets["train"]) // 8, 1))
    pairs = Pairs(train, max(len(train) - kept, 1), config.reward_batch, config.reward_steps, run.seed,
                  run.device)
    teachers = {"posture": teach_posture, "diagnosis": teach_diagnosis, "consistency": teach_consistency}
    for number, (name, teach) in enumerate(teachers.items(), start=2):
        if run.path("rewards", name, "config.json").exists():
            continue
        torch.manual_seed(run.seed + number)
        net = teach(run, config, sizes.rewards, pairs).eval()
        if rank() == 0:
            last = unit(train.images(torch.arange(len(train))[-kept:]), run.device)
            net.calibrate(last, train.reports[-kept:])
            net.save_pretrained(run.path("rewards", name))


def begin_round(r: int, reports: list[str], seed: int, rl: RLConfig,
                optimizer) -> tuple[list[str], list[int]]:
    """Set the learning rate of round r -> a report and a seed for each of its images, groups adjacent;
    all three are pure functions of (seed, r)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(r, rl.rounds, group["peak"])
    chosen = batch_index(len(reports), rl.reports, seed + 2, r).repeat_interleave(rl.group)
    first = zlib.crc32(f"{seed} rollout {r}".encode())
    return [reports[i] for i in chosen.tolist()], [first + i for i in range(len(chosen))]


def learn_from_archive(run: Run, config: TrainConfig, rl: RLConfig, train, pipe: Pipeline, nets: Rewards,
                       modules: dict[str, nn.Module]) -> None:
    """Reward-weighted regression: the supervised objective on the pairs that the rewards find right."""
    def rows() -> Tensor:
        kept = worthy(nets, train.images, train.reports, rl.weights, run.device)
        print(f"rl: {len(kept):,} of {len(train):,} training pairs are examples to learn from")
        if len(kept) == 0:
            raise ValueError("no training pair is one that all rewards find right; see --rwr-steps")
        return kept

    loss = diffusion_loss(run, config, pipe, latent_cache(run, pipe.vae, train), train.reports,
                          first=config.diffusion_steps, rows=rows)
    rates = {name: rl.ace_lr if name == "ace" else rl.rwr_lr for name in modules}
    fit(run, "rwr", modules, loss, rl.rwr_steps, rates, config.diffusion_batch, config.diffusion_micro,
        config.ema_decay, muon=config.init is None and not rl.lora_rank)


def stage_rl(run: Run, config: TrainConfig, sets: dict, sampling: SampleConfig, rl: RLConfig) -> None:
    """From RUN/anchor, by what the rewards find right in the archive, then by their gradient -> RUN/cxrl."""
    torch.manual_seed(run.seed + 5)   # of a LoRA
    pipe, anchor, modules, groups = start_policy(run.path("anchor"), run.device, rl)
    nets = Rewards.load(run.path("rewards"), run.device)
    reports, begun = sets["train"].reports, anchor
    if config.compile:
        pipe.unet.compile()
    if rl.rwr_steps:
        learn_from_archive(run, config, rl, sets["train"], pipe, nets, modules)
        begun = freeze(pipe)
    for unet in {anchor.unet, begun.unet} if config.compile else ():
        if isinstance(unet, UNet2DConditionModel):   # else it is the policy, with another LoRA
            unet.compile()
    origin = [p.detach().to("cpu", copy=True) for group in groups for p in group["params"]]
    optimizer = make_optimizer(groups, rl.rl_lr, weight_decay=1e-4)
    begin, before = load_state(run, "rl", modules, optimizer, None)
    run.forget("rl", begin)
    start = saved = time.monotonic()
    images, queries = rl.reports * rl.group, queries_per_round(rl)
    print(f"rl: {images} images a round, {rl.updates} updates a round, "
          f"{rl.rounds * queries} reward queries")
    bar = tqdm(range(begin, rl.rounds), "rl", rl.rounds, initial=begin, unit="round", disable=rank() > 0)
    for r in bar:
        chosen, seeds = begin_round(r, reports, run.seed, rl, optimizer)
        numbers, pictures = rl_round(pipe, anchor, begun, nets, chosen, seeds, sampling, rl, optimizer)
        now = time.monotonic()
        run.log("rl", r + 1, time=round(before + now - start, 2),
                images_per_second=round((r + 1 - begin) * images / (now - start), 1),
                queries=(r + 1) * queries, **numbers)
        bar.set_postfix(**{k.removeprefix("reward_"): f"{v:.3f}" for k, v in numbers.items()
                           if k.startswith("reward_")})
        if rank() == 0 and (r % 5 == 0 or r + 1 == rl.rounds):
            rows = [(chosen[i], pictures[i:i + rl.group][:8])
                    for i in range(0, min(3 * rl.group, len(pictures)), rl.group)]
            save_png(picture_grid(rows, 96), run.path("samples", f"rl_{r + 1:04d}.png"), round=r + 1)
        if now - saved > run.save_every or quick(modules) or r + 1 == rl.rounds:   # a round takes long
            saved = now
            save_state(run, "rl", r + 1, before + now - start, modules, optimizer, None)
    with torch.no_grad():   # part of the gradient's way
        for p, first in zip((p for group in groups for p in group["params"]), origin, strict=True):
            p.lerp_(first.to(p.device), 1 - rl.mix)
    if rank() == 0:
        before_and_after(run, anchor, pipe, sets["test"].reports[:5], sampling)
    wait_for_ranks()
    try:
        if rank() == 0:
            save_policy(pipe, run.path("anchor"), run.path("cxrl"))
        wait_for_ranks()
    except BaseException:   # a rank died meanwhile: no result
        if ranks() > 1:
            run.path("cxrl", "model_index.json").unlink(missing_ok=True)
        raise


def before_and_after(run: Run, anchor: Pipeline, pipe: Pipeline, reports: list[str],
                     sampling: SampleConfig) -> None:
    """RUN/samples/anchor_vs_cxrl.png: same reports, same noise."""
    rows = []
    for i, report in enumerate(reports):
        seeds = [1000 * i + j for j in range(4)]
        pairs = [generate(p, [report] * 4, seeds, **sampling.arguments()) for p in (anchor, pipe)]
        label = f"{report}  [left: anchor, right: CXRL; seeds {seeds[0]}-{seeds[-1]}]"
        rows.append((label, torch.cat(pairs)))
    save_png(picture_grid(rows, 128), run.path("samples", "anchor_vs_cxrl.png"), report="\n".join(reports),
             seed="1000 * row + column", steps=sampling.sample_steps, guidance=sampling.guidance,
             revision=git_revision())


def main(argv: list[str] | None = None) -> None:
    config, sampling, rl = parse(argv, __doc__)
    device, given = start_ranks(), given_by_init(config)
    wanted = STAGES if config.stage == "all" else (config.stage,)
    if config.dry_run:
        if rank() > 0:
            return
        open_run(config, sampling, rl)   # refuses other options than the run's, and what cannot be read
        if given:
            Pipeline.load(config.init)
        sets = load_sets(config)
        if config.stage in ("all", "evaluate"):
            evaluate.check_prompts("--eval-reports", config.eval_reports, sets["test"])
        todo = [stage for stage in wanted if stage not in given and not finished(config.out, stage)]
        drawn = min(config.eval_reports, len(sets["test"]))
        drawn = 2 * (drawn + (evaluate.COPIES - 1) * min(drawn, evaluate.SSIM_REPORTS))
        dry_run(config, sampling, rl, sizes_of(config), len(sets["train"]), drawn, todo, device)
        return
    for needed in STAGES[:STAGES.index(wanted[0])]:   # before the data, of which there may be much
        if needed not in given and not finished(config.out, needed):
            raise ValueError(f"--stage {config.stage}: {config.out} has no result of stage {needed} yet; "
                             "run that first")
    # All ranks are one holder.
    hold = holding(config.out, f"--out {config.out}") if rank() == 0 else nullcontext()
    with hold, whole_job():
        run = open_run(config, sampling, rl)
        if rank() == 0:
            sets = begin(run, config)
        wait_for_ranks()
        if rank() > 0:   # finds the decoded images and the run folder ready
            sets = begin(run, config)
        for stage in wanted:
            do_stage(stage, run, config, sets, sampling, rl)


def begin(run: Run, config: TrainConfig) -> dict:
    """Load the data and tie the run to them; refuse what they are too few for. --init becomes RUN/anchor."""
    given, pipe = given_by_init(config), None
    if rank() == 0 and given and not finished(run.folder, given[-1]):
        pipe = Pipeline.load(config.init)   # before the data, of which there may be much
    sets = load_sets(config)
    bind(run, sets)
    if config.stage in ("all", "evaluate"):
        evaluate.check_prompts("--eval-reports", config.eval_reports, sets["test"])
    if pipe is not None and "diffusion" in given:
        pipe.save(run.path("anchor"))
    elif pipe is not None:
        pipe.vae.save_pretrained(run.path("anchor", "vae"))
    return sets


def do_stage(stage: str, run: Run, config: TrainConfig, sets: dict, sampling: SampleConfig,
             rl: RLConfig) -> None:
    if finished(run.folder, stage):
        judged = read_json(run.path("evaluation.json")) if stage == "evaluate" else {}
        how = "".join(f", {name} {judged.get(name)}" for name in ("n", "seed", "features") if judged)
        print(f"{stage}: done already in {config.out}{how}")
        return
    wait_for_ranks()   # all have seen the same state of the folder
    start, sizes = time.monotonic(), sizes_of(config)
    if stage == "rl":
        if rank() == 0 and run.path("evaluation.json").exists():
            print("rl: evaluation.json judged an earlier result, and goes")
            run.path("evaluation.json").unlink()
        stage_rl(run, config, sets, sampling, rl)
    elif stage == "vae":
        stage_vae(run, config, sets, sizes)
    elif stage == "diffusion":
        stage_diffusion(run, config, sets, sizes, sampling, rl.checkpointing)
    elif stage == "rewards":
        stage_rewards(run, config, sets, sizes)
    elif rank() == 0:
        evaluate.evaluate_run(run.folder, sets, reports=config.eval_reports, seed=config.seed,
                              device=run.device)
    wait_for_ranks()
    print(f"{stage}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
