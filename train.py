"""Train CXRL, all stages:
python train.py [--out runs/phantom] [--preset tiny] [--data phantom] [--stage all] ...

    python train.py                                 the whole system on embedded phantoms, minutes on a laptop
    python train.py --data DIR --out runs/mine      on your own X-rays (images + metadata.csv)
    python train.py --stage rl --rounds 40          one stage, once those before it are done

Stages, in order: vae -> diffusion (with the text encoder) -> rewards -> rl -> evaluate. Each is skipped when
the run folder already holds its result, and continues bit for bit where it was killed: every random number is
a pure function of (seed, stage, step), and RUN/state holds weights, optimizer and step.
"""
import dataclasses
import math
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

import data
import evaluate
import rewards
from model import UNet2DConditionModel
from rewards import ConsistencyNet, DiagnosisNet, PostureNet, Rewards
from rl import RLConfig, queries_per_round, rl_round, save_policy, start_policy, step_back
from sample import Pipeline, SampleConfig, Schedule, generate
from storage.files import git_revision, keep_tensors
from storage.pictures import picture_grid, save_png
from text_encoder import CLIPTextModel, Contrast, Tokenizer
from training.loop import (
    Run,
    adamw,
    batch_index,
    fit,
    learning_rate,
    load_state,
    save_state,
    step_generator,
)
from training.options import Preset, TrainConfig, image_size, open_run, parse, preset
from training.ranks import rank, ranks, start_ranks, wait_for_ranks
from vae import AutoencoderKL

EMA_DECAY = 0.995         # of the diffusion stage; about 200 steps
KEPT_NUMBERS = 2**28      # of prompt embeddings, 1 GB
STAGES = ("vae", "diffusion", "rewards", "rl", "evaluate")


def load_sets(config: TrainConfig) -> dict:
    """The run's data; real images are decoded once and kept in RUN/state."""
    return data.load(config.data, size=image_size(config), seed=config.seed, fit=config.fit,
                     train_images=config.train_images, prompt=config.prompt, cache=config.out / "state")


def unit(images: Tensor, device: torch.device) -> Tensor:
    """b 1 h w uint8 -> float32 in [0, 1] on the device"""
    return images.to(device, non_blocking=True).float() / 255


# ------------------------------------------------------------------------------------------------ stages


def stage_vae(run: Run, config: TrainConfig, sets: dict, sizes: Preset) -> None:
    """Autoencoder: squared error of grey values and of their slopes (ribs, vessels, leads), and a light KL;
    its latent scale is measured once and kept in its config.json."""
    torch.manual_seed(run.seed)
    vae, train = AutoencoderKL(sizes.vae).to(run.device, memory_format=torch.channels_last), sets["train"]

    draw = train.stream(lambda step: batch_index(len(train), config.vae_batch, run.seed, step))

    def loss(step: int) -> tuple[Tensor, dict]:
        x = unit(draw(step), run.device) * 2 - 1
        x = x.expand(-1, vae.config.in_channels, -1, -1)
        mean, logvar = vae.encode(x)
        noise = torch.randn(mean.shape, generator=step_generator(run.seed, "vae", step)).to(run.device)
        error = vae.decode(mean + (0.5 * logvar).exp() * noise) - x
        mse = error.square().mean()
        slopes = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        return mse + slopes + 1e-6 * kl, {"psnr": 10 * torch.log10(4 / mse), "kl": kl}

    fit(run, "vae", {"vae": vae}, loss, config.vae_steps, config.vae_lr, config.vae_batch)
    vae.eval()
    with torch.no_grad():
        some = unit(train.images(torch.arange(min(512, len(train)))), run.device) * 2 - 1
        std = torch.cat([vae.encode(x.expand(-1, vae.config.in_channels, -1, -1))[0]
                         for x in some.split(32)]).std()
        vae.config = dataclasses.replace(vae.config, scaling_factor=round(1 / std.item(), 5))
        held_out = unit(sets["val"].images(torch.arange(min(256, len(sets["val"])))), run.device) * 2 - 1
        means = [vae.encode(x.expand(-1, vae.config.in_channels, -1, -1))[0] for x in held_out.split(32)]
        back = torch.cat([vae.decode(mean).mean(1, keepdim=True) for mean in means])
    psnr = 10 * torch.log10(4 / F.mse_loss(back, held_out)).item()
    run.log("vae", config.vae_steps, held_out_psnr=psnr)
    print(f"vae: {psnr:.1f} dB PSNR on held-out images")
    pairs = torch.cat([held_out[:6], back[:6]]) / 2 + 0.5
    rows = [("originals", pairs[:6]), ("reconstructions", pairs[6:])]
    save_png(picture_grid(rows), run.path("samples", "vae.png"))
    vae.save_pretrained(run.path("anchor", "vae"))


@torch.no_grad()
def latent_cache(run: Run, vae: AutoencoderKL, train) -> Tensor:
    """-> n c h w, scaled; every training image is encoded once and kept in RUN/state/latents.safetensors."""
    path = run.path("state", "latents.safetensors")
    if path.exists():
        try:
            latents = load_file(path)["latents"]
        except Exception as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to encode the images anew") from error
        if len(latents) == len(train):
            return latents
    parts, n = [], len(train)
    draw = train.stream(lambda k: torch.arange(min(64 * k, n), min(64 * (k + 1), n)))
    for k in tqdm(range(math.ceil(n / 64)), "latents", unit="batch"):
        x = unit(draw(k), run.device) * 2 - 1
        mean, _ = vae.encode(x.expand(-1, vae.config.in_channels, -1, -1))
        parts.append(mean.cpu() * vae.config.scaling_factor)
    latents = torch.cat(parts)
    keep_tensors(path, {"latents": latents})
    return latents


def stage_diffusion(run: Run, config: TrainConfig, sets: dict, sizes: Preset, sampling: SampleConfig) -> None:
    """Text encoder by contrast, then frozen, as in Stable Diffusion; UNet on cached latents
    -> RUN/anchor, the supervised pipeline."""
    train, schedule = sets["train"], Schedule(sizes.schedule, run.device)
    vae = AutoencoderKL.from_pretrained(run.path("anchor", "vae")).to(run.device).eval()
    latents = latent_cache(run, vae, train).to(run.device)
    tokenizer = Tokenizer.train(train.reports, sizes.text.vocab_size, sizes.text.max_position_embeddings)
    if cut := tokenizer.cut_count(train.reports):
        print(f"diffusion: {cut} of {len(train)} reports exceed {tokenizer.max_length} tokens "
              "and are cut there")
    torch.manual_seed(run.seed + 1)
    unet = UNet2DConditionModel(sizes.unet).to(run.device, memory_format=torch.channels_last)
    text = CLIPTextModel(sizes.text).to(run.device)
    contrast = Contrast(text, sizes.unet.in_channels, sizes.unet.cross_attention_dim).to(run.device)
    ids = tokenizer(train.reports).to(run.device)

    def contrastive_loss(step: int) -> tuple[Tensor, dict]:
        index = batch_index(len(ids), config.text_batch, run.seed + 3, step).to(run.device)
        return contrast(latents[index], ids[index])

    fit(run, "text", {"contrast": contrast}, contrastive_loss, config.text_steps, config.diffusion_lr,
        config.text_batch)
    fit(run, "diffusion", {"unet": unet},
        diffusion_loss(run, config, unet, text, schedule, latents, tokenizer, train.reports),
        config.diffusion_steps, config.diffusion_lr, config.diffusion_batch, ema_decay=EMA_DECAY)
    pipe = Pipeline(unet.eval(), vae, text.eval(), tokenizer, schedule)
    pipe.save(run.path("anchor"))
    reports = sets["val"].reports[:4]
    rows = [(r, generate(pipe, [r] * 6, list(range(6)), **sampling.arguments())) for r in reports]
    save_png(picture_grid(rows), run.path("samples", "anchor.png"), report="\n".join(reports), seed=0,
             revision=git_revision())


def diffusion_loss(run: Run, config: TrainConfig, unet, text, schedule: Schedule, latents: Tensor,
                   tokenizer: Tokenizer, reports: list[str],
                   first: int = 0) -> Callable[[int], tuple[Tensor, dict]]:
    """The supervised objective as a function of the step (from `first` on):
    mean squared error of the noise (or v)."""
    ids, empty = tokenizer(reports).to(run.device), tokenizer([""]).to(run.device)
    timesteps = schedule.config.num_train_timesteps
    with torch.no_grad():   # the text encoder is frozen: its answers are kept where they fit into memory
        kept = None
        if ids.numel() * text.config.hidden_size <= KEPT_NUMBERS:
            kept = torch.cat([text(part) for part in ids.split(256)])
        c_empty = text(empty)

    def loss(step: int) -> tuple[Tensor, dict]:
        step += first
        g = step_generator(run.seed, "diffusion", step)
        index = batch_index(len(ids), config.diffusion_batch, run.seed, step).to(run.device)
        noise = torch.randn(config.diffusion_batch, *latents.shape[1:], generator=g).to(run.device)
        t = torch.randint(timesteps, (config.diffusion_batch,), generator=g).to(run.device)
        drop = (torch.rand(config.diffusion_batch, 1, generator=g) < config.prompt_dropout).to(run.device)
        with torch.no_grad():
            context = torch.where(drop[..., None], c_empty, text(ids[index]) if kept is None else kept[index])
        x0 = latents[index]
        error = (unet(schedule.add_noise(x0, noise, t), t, context) - schedule.target(x0, noise, t)) ** 2
        by_image, quarter = error.mean((1, 2, 3)), t * 4 // timesteps
        within = [quarter == q for q in range(4)]
        return by_image.mean(), {f"loss_t{q}": (by_image.detach() * w).sum() / w.sum().clamp(min=1)
                                 for q, w in enumerate(within)}

    return loss


def blurred(images: Tensor, g: torch.Generator) -> Tensor:
    """Random blur and noise: rewards must not depend on grain,
    which the decoder of a latent model does not give back."""
    amount = torch.rand(len(images), 1, 1, 1, generator=g).to(images.device)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(images.shape, generator=g).to(images.device)
    return images + amount * (soft - images) + 0.03 * torch.rand(1, generator=g).item() * noise


def stage_rewards(run: Run, config: TrainConfig, sets: dict, sizes: Preset) -> None:
    """The three reward networks, each on the training pairs as they are, archive faults included.
    The last pairs are kept back: their scores set each network's scale."""
    train, steps, lr, batch = sets["train"], config.reward_steps, config.reward_lr, config.reward_batch
    scale = min(1000, max(len(train) // 8, 1))
    taught = max(len(train) - scale, 1)
    kept = unit(train.images(torch.arange(len(train))[-scale:]), run.device), train.reports[-scale:]

    def chosen(step: int) -> Tensor:
        return batch_index(taught, batch, run.seed + 1, step)

    def draw(name: str, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        g = step_generator(run.seed, name, step)
        return blurred(unit(images(step), run.device), g), chosen(step), g

    images = train.stream(chosen)

    def posture_loss(step: int):
        images, _, g = draw("posture", step)
        spread = torch.tensor([0.15, 0.15, 0.1, 0.1, 0.12])
        jitter = torch.randn(len(images), 5, generator=g).clamp(-2, 2) * spread
        jitter = (jitter + torch.tensor([1.0, 1, 0, 0, 0])).to(run.device)
        return posture.loss(F.interpolate(images, posture.canonical.shape[2:], mode="area"), jitter)

    def diagnosis_loss(step: int):
        images, index, _ = draw("diagnosis", step)
        return diagnosis.loss(images, train.labels[index].to(run.device))

    def consistency_loss(step: int):
        images, index, _ = draw("consistency", step)
        return consistency.loss(images, [train.reports[i] for i in index.tolist()])

    if not run.path("rewards", "posture", "config.json").exists():
        torch.manual_seed(run.seed + 2)
        posture = PostureNet(sizes.rewards).to(run.device)
        some = unit(train.images(torch.arange(min(1000, taught))), run.device)
        posture.canonical.copy_(rewards.canonical_chest(some))
        fit(run, "posture", {"net": posture}, posture_loss, steps, lr, batch)
        posture.eval().set_zero(some)
        posture.calibrate(*kept)
        posture.save_pretrained(run.path("rewards", "posture"))
    if not run.path("rewards", "diagnosis", "config.json").exists():
        torch.manual_seed(run.seed + 3)
        if config.diagnosis is not None:
            diagnosis = DiagnosisNet.from_densenet(config.diagnosis).to(run.device)
        else:
            diagnosis = DiagnosisNet(sizes.rewards).to(run.device)
            fit(run, "diagnosis", {"net": diagnosis}, diagnosis_loss, steps, lr, batch)
        diagnosis.eval().calibrate(*kept)
        diagnosis.save_pretrained(run.path("rewards", "diagnosis"))
    if not run.path("rewards", "consistency", "config.json").exists():
        torch.manual_seed(run.seed + 4)
        consistency = ConsistencyNet(sizes.rewards).to(run.device)
        consistency.tokenizer = Tokenizer.train(train.reports, sizes.rewards.vocab_size,
                                                sizes.rewards.positions)
        fit(run, "consistency", {"net": consistency}, consistency_loss, steps, lr, batch)
        consistency.eval().calibrate(*kept)
        consistency.save_pretrained(run.path("rewards", "consistency"))


def begin_round(r: int, reports: list[str], seed: int, rl: RLConfig,
                optimizer) -> tuple[list[str], list[int]]:
    """Set the learning rate of round r -> a report and a seed for each of its images, groups adjacent;
    all three are pure functions of (seed, r)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(r, rl.rounds, group["peak"])
    chosen = batch_index(len(reports), rl.reports, seed + 2, r).repeat_interleave(rl.group)
    first = zlib.crc32(f"{seed} rollout {r}".encode())
    return [reports[i] for i in chosen.tolist()], [first + i for i in range(len(chosen))]


def stage_rl(run: Run, config: TrainConfig, sets: dict, sampling: SampleConfig, rl: RLConfig) -> None:
    """Policy gradient from RUN/anchor -> RUN/cxrl."""
    pipe, anchor, modules, groups = start_policy(run.path("anchor"), run.device, rl)
    nets = Rewards.load(run.path("rewards"), run.device, rl.ceiling)
    reports = sets["train"].reports
    if config.compile:
        for unet in (pipe.unet, anchor.unet):
            if isinstance(unet, UNet2DConditionModel):   # else the anchor is the policy without its LoRA
                unet.compile()
    optimizer = adamw(groups, rl.rl_lr, weight_decay=1e-4)
    begin, before = load_state(run, "rl", modules, optimizer, None)
    run.forget("rl", begin)
    start = saved = time.monotonic()
    images, queries = rl.reports * rl.group, queries_per_round(sampling.sample_steps, rl)
    print(f"rl: {images} images a round, {rl.inner_epochs * rl.updates} updates a round, "
          f"{rl.rounds * queries} reward queries")
    bar = tqdm(range(begin, rl.rounds), "rl", rl.rounds, initial=begin, unit="round", disable=rank() > 0)
    for r in bar:
        chosen, seeds = begin_round(r, reports, run.seed, rl, optimizer)
        numbers, pictures = rl_round(pipe, anchor, nets, chosen, seeds, sampling, rl, optimizer)
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
        if now - saved > run.save_every:
            saved = now
            save_state(run, "rl", r + 1, before + now - start, modules, optimizer, None)
    if rank() == 0:
        step_back(pipe, anchor, rl.mix)
        before_and_after(run, anchor, pipe, sets["test"].reports[:5], sampling)
        save_policy(pipe, run.path("anchor"), run.path("cxrl"))


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


def finished(folder: Path, stage: str) -> bool:
    """Whether the run folder holds the stage's result;
    each result's last file is renamed into place when all is written."""
    marks = {"vae": ["anchor/vae/config.json"], "diffusion": ["anchor/model_index.json"],
             "rewards": [f"rewards/{n}/config.json" for n in ("posture", "diagnosis", "consistency")],
             "rl": ["cxrl/model_index.json"], "evaluate": ["evaluation.json"]}[stage]
    return all((folder / mark).exists() for mark in marks)


def main(argv: list[str] | None = None) -> None:
    config, sampling, rl = parse(argv, __doc__)
    sizes = preset(config.preset)
    start_ranks()
    if rl.reports % ranks():
        raise ValueError(f"--reports {rl.reports}: expected a multiple of the {ranks()} processes")
    if rank() == 0:
        sets = load_sets(config)
        run = open_run(config, sampling, rl)
        if config.init is not None and not finished(run.folder, "diffusion"):
            Pipeline.load(config.init).save(run.path("anchor"))
    wait_for_ranks()
    if rank() > 0:   # finds the decoded images and the run folder ready
        sets = load_sets(config)
        run = open_run(config, sampling, rl)
    wanted = STAGES if config.stage == "all" else (config.stage,)
    for stage in wanted:
        for needed in STAGES[:STAGES.index(stage)]:
            if not finished(run.folder, needed):
                raise ValueError(f"--stage {stage}: {config.out} has no result of stage {needed} yet; "
                                 "run that first")
        if finished(run.folder, stage):
            print(f"{stage}: done already in {config.out}")
            continue
        wait_for_ranks()   # all have seen the same state of the folder
        start = time.monotonic()
        if stage == "rl":
            stage_rl(run, config, sets, sampling, rl)
        elif rank() > 0:
            pass           # reinforcement learning alone is shared out
        elif stage == "vae":
            stage_vae(run, config, sets, sizes)
        elif stage == "diffusion":
            stage_diffusion(run, config, sets, sizes, sampling)
        elif stage == "rewards":
            stage_rewards(run, config, sets, sizes)
        else:
            evaluate.evaluate_run(run.folder, sets, reports=config.eval_reports, seed=config.seed,
                                  device=run.device)
        wait_for_ranks()
        print(f"{stage}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
