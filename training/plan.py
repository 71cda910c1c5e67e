"""What a run would do and take, before it is done (--dry-run): work by stage; memory, by passes on fake
tensors, which have shapes but no numbers; time, by a few real passes of the UNet."""
import functools
import os
import shutil
import time
import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from model import UNet2DConditionModel, UNetConfig, add_lora
from rewards import NAMES
from rl import RLConfig, valued_states
from sample import SampleConfig, autocast
from text_encoder import CLIPTextModel
from training.loop import PARTS_OF, make_optimizer, read_log
from training.options import Preset, TrainConfig
from training.ranks import ranks
from vae import AutoencoderKL, at_once


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages alive that were made inside, now and at most; of real tensors or of fake ones."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                self.add(x.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def queries_per_round(config: RLConfig) -> int:
    """How many pictures of the policy the reward networks score in a round: ends, and promises."""
    promises = 1 if config.gradient == "pathwise" else len(valued_states(config))
    return config.reports * config.group * (1 + promises)


def inputs(config: UNetConfig, batch: int, tokens: int, device: torch.device | str = "cpu") -> tuple:
    side = config.sample_size
    return (torch.randn(batch, config.in_channels, side, side, device=device),
            torch.full((batch,), 500, device=device),
            torch.randn(batch, tokens, config.cross_attention_dim, device=device))


@functools.cache   # stages may ask for the same
def update_bytes(sizes: Preset, batch: int, lora: int, checkpointing: bool, half: bool, base: torch.dtype,
                 decoded: int = 0, twins: int = 2) -> int:
    """Peak of an update of the UNet, or of a LoRA on a UNet of type `base`, through the decoder for so many
    of the batch. Of what is trained there are `twins` besides: a moving average, the anchor, what the KL
    holds to. half: under bf16 autocast, as on CUDA."""
    with FakeTensorMode(), LiveBytes() as live:
        torch.set_default_dtype(base)
        unet = UNet2DConditionModel(sizes.unet)
        torch.set_default_dtype(torch.float32)
        unet.gradient_checkpointing = checkpointing
        tuned = list((add_lora(unet, lora) if lora else unet).parameters())
        vae = AutoencoderKL(sizes.vae).requires_grad_(False) if decoded else nn.Identity()
        for norm in (*unet.modules(), *vae.modules()) if half else ():   # CUDA's autocast; the CPU's does not
            if isinstance(norm, (nn.GroupNorm, nn.LayerNorm)):
                norm.register_forward_pre_hook(lambda _, args: (args[0].float(),))
        decode = vae.decode if decoded else None
        if checkpointing and decoded:
            decode = functools.partial(checkpoint, decode, use_reentrant=False)
        copies = [p.detach().clone() for p in tuned for _ in range(twins)]
        optimizer = make_optimizer(tuned, 1e-6)
        for _ in range(2):                   # from the second on with AdamW's moments
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = unet(*inputs(sizes.unet, batch, sizes.text.max_position_embeddings))
                out = decode(out[:decoded]) if decoded else out
            out.float().square().mean().backward()
            optimizer.step()
        del copies
        return live.peak


def needed_bytes(config: TrainConfig, sampling: SampleConfig, rl: RLConfig, sizes: Preset,
                 half: bool) -> dict[str, int]:
    """-> of the stages that train the UNet, bytes of tensors on the device at most, without the rewards"""
    side, channels, lora = sizes.unet.sample_size, sizes.unet.in_channels, config.finetune == "lora"
    with FakeTensorMode(), LiveBytes() as live, torch.no_grad():
        text, vae = CLIPTextModel(sizes.text), AutoencoderKL(sizes.vae)
        live.peak = idle = live.now
        device = torch.device("cuda" if half else "cpu")
        vae.decode(torch.empty(at_once(sizes.size, device), channels, side, side))   # as Pipeline.decode
        decoding = live.peak
        if config.finetune == "all":
            idle += 4 * sum(4 * p.numel() for p in text.parameters())
    states = 12 * rl.reports * rl.group // ranks() * (rl.rollout_steps + 1) * channels * side**2
    policy = (rl.lora_rank, rl.checkpointing, half,
              torch.bfloat16 if half and rl.lora_rank else torch.float32)         # as start_policy
    update = states + (not rl.offload) * idle + update_bytes(
        sizes, rl.rl_micro * branches(sampling), *policy,
        (1 if rl.checkpointing else rl.rl_micro) * (rl.gradient == "pathwise"))
    micro = min(config.diffusion_micro, config.diffusion_batch // ranks())
    replay = idle + update_bytes(sizes, micro, *policy) if rl.rwr_steps else 0
    return {"rl": max(update, states + decoding, replay),
            "diffusion": idle + update_bytes(sizes, micro, config.finetune_rank * lora, rl.checkpointing,
                                             half, torch.float32, twins=1)}


def seconds_a_pass(sizes: Preset, batch: int, device: torch.device) -> float:
    """Of one image through a UNet with random weights, forward, in a batch: the best of three"""
    with torch.no_grad(), autocast(device):
        unet, best = UNet2DConditionModel(sizes.unet).to(device), float("inf")
        for _ in range(3):
            start = time.perf_counter()
            unet(*inputs(sizes.unet, batch, sizes.text.max_position_embeddings, device)).sum().item()
            best = min(best, time.perf_counter() - start)
    return best / batch


def branches(sampling: SampleConfig) -> int:
    """Outputs of the UNet for each image and step: guidance takes two"""
    return 1 if sampling.guidance == 1 else 2


def work(config: TrainConfig, sampling: SampleConfig, rl: RLConfig, n: int,
         drawn: int) -> dict[str, tuple[str, float]]:
    """-> of each stage what it does, and how many forward passes of one image through the UNet that is worth:
    a backward pass counts as two, and as three where activations are computed again."""
    steps, update, images = rl.rollout_steps, 4 if rl.checkpointing else 3, rl.reports * rl.group
    score = rl.gradient == "score"
    trained = branches(sampling) * (steps - 1 if score else 1)
    free = branches(sampling) * steps * (1 + rl.rlcf / rl.group)
    free += trained * (rl.kl > 0) + trained * (score and torch.cuda.is_available())   # rl.py:recount
    replayed = rl.rwr_steps * config.diffusion_batch
    learned = config.diffusion_steps * config.diffusion_batch
    taught = len(NAMES) - (config.diagnosis is not None) - (config.consistency is not None)
    before = (f"{config.text_steps:,} updates of the text encoder, then " if config.init is None
              else f"--finetune {config.finetune}: ")
    return {
        "vae": (f"{config.vae_steps:,} updates of {config.vae_batch} images", 0),
        "diffusion": (f"{n:,} images to encode; {before}{config.diffusion_steps:,} updates of "
                      f"{config.diffusion_batch} images, {learned / n:.1f} epochs", learned * update),
        "rewards": (f"{taught} networks, {config.reward_steps:,} updates of {config.reward_batch} images "
                    "each", 0),
        "rl": (f"{n * (rl.rwr_steps > 0):,} pairs of the archive to score; "
               f"{rl.rwr_steps:,} updates of {config.diffusion_batch} images from it; "
               f"{rl.rounds} rounds of {images} images, {rl.updates} updates each; "
               f"{trained + free:,.0f} UNet forwards an image, {trained:,} of them with gradient; "
               f"{rl.rounds * queries_per_round(rl):,} reward queries",
               rl.rounds * images * (trained * update + free) + replayed * update),
        "evaluate": (f"{drawn:,} images, {branches(sampling) * sampling.sample_steps} UNet forwards each",
                     drawn * branches(sampling) * sampling.sample_steps)}


def dry_run(config: TrainConfig, sampling: SampleConfig, rl: RLConfig, sizes: Preset, n: int, drawn: int,
            stages: list[str], device: torch.device) -> None:
    """Print the plan of these stages. Raises ValueError where memory or disk cannot hold them."""
    cuda = device.type == "cuda"
    needs = needed_bytes(config, sampling, rl, sizes, cuda)
    there = (torch.cuda.get_device_properties(device).total_memory if cuda
             else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    hints = {"diffusion": "lower --diffusion-micro, or try --checkpointing or --finetune lora",
             "rl": "lower --rl-micro or --reports, or try --checkpointing, --offload or --lora-rank 4"}
    for stage in sorted(hints.keys() & set(stages)):
        if needs[stage] > there:
            raise ValueError(f"stage {stage}: needs {needs[stage] / 1e9:.1f} GB of memory, {device} has "
                             f"{there / 1e9:.1f}: {hints[stage]}")
    encoded = "diffusion" in stages or "rl" in stages and rl.rwr_steps and not any(
        config.out.glob("state/latents-*"))
    latents = 2 * n * sizes.unet.in_channels * sizes.unet.sample_size**2 if encoded else 0
    out = config.out.absolute()
    root = next(path for path in (out, *out.parents) if path.exists())
    if latents > (free := shutil.disk_usage(root).free):
        raise ValueError(f"--out {config.out}: latents need {latents / 1e9:.1f} GB, "
                         f"{free / 1e9:.1f} are free")
    second = seconds_a_pass(sizes, rl.rl_micro, device)
    print(f"{1 / second:.1f} forward passes of the UNet a second on {device}; times are of its passes alone")
    begun = {line["stage"]: line["step"] for line in read_log(config.out / "log.jsonl")}
    for stage, (what, passes) in work(config, sampling, rl, n, drawn).items():
        if stage in stages:
            took = f"; {passes * second / ranks() / 60:,.0f} min" if passes else ""
            held = f"; {needs[stage] / 1e9:.1f} GB of tensors" if stage in needs else ""
            done = [f"{part} {begun[part]:,}" for part in PARTS_OF.get(stage, ()) if part in begun]
            print(f"{stage}: {what}{held}{took}" + f"; done of it: {', '.join(done)}" * bool(done))
    print(f"{latents / 1e9:.1f} GB of latents on disk")
