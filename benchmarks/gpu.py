"""Speed and memory of sampling and of RL rounds with random weights: no checkpoint is needed.

    python benchmarks/gpu.py [--case tiny small sd15-lora sd15-full] [--images 16] [--steps 10] [--compile]

One Markdown row a case: images/s of sampling, seconds of an RL round, peak GPU memory, and the share of the
device's own bf16 matmul rate (float32 on a CPU), measured first, that the UNet reaches alone, forward and
forward + backward. Where diffusers is installed, its UNet of the same configuration and weights is timed
between two timings of ours, and the ratio given. Where trl 0.23.1 is (with peft and accelerate), a round of
its DDPOTrainer is timed beside an equal one of ours: a LoRA of rank 4, no anchor, KL or c_s; same rewards,
weights, sizes, steps and batches.
"""
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import UNet2DConditionModel
from rewards import ConsistencyNet, DiagnosisNet, PostureNet, Rewards
from rl import SCORE, RLConfig, rl_round, start_policy
from sample import Pipeline, SampleConfig, Schedule, autocast, generate
from storage.pictures import grey
from text_encoder import CLIPTextModel, Tokenizer
from training import loop, options
from training.plan import inputs
from vae import AutoencoderKL

CASES = {  # name -> preset, what differs from RLConfig's defaults
    "tiny": ("tiny", {}),
    "small": ("small", {"rl_batch": 16, "rl_micro": 16}),
    "sd15-lora": ("sd15", {"lora_rank": 4, "rl_batch": 8, "rl_micro": 2, "checkpointing": True,
                           "offload": True}),
    "sd15-full": ("sd15", {"rl_batch": 8, "rl_micro": 2, "checkpointing": True, "offload": True}),
}
REPORT = "Moderate left pleural effusion. Heart size is normal."


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median time of a call, after two that are not counted."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times += [time.perf_counter() - start] * (number > 1)
    return statistics.median(times)


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second of one large matrix product in the type that training uses."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds(lambda: a @ b, device, 10)


def random_pipeline(sizes: options.Preset, device: torch.device) -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([REPORT] * 4, sizes.text.vocab_size, sizes.text.max_position_embeddings)
    with device:
        unet, vae, text = (kind(config).eval() for kind, config in (
            (UNet2DConditionModel, sizes.unet), (AutoencoderKL, sizes.vae),
            (CLIPTextModel, sizes.text)))
    return Pipeline(unet, vae, text, tokenizer, Schedule(sizes.schedule, device))


def random_rewards(sizes: options.Preset, tokenizer: Tokenizer, device: torch.device) -> Rewards:
    posture, diagnosis, consistency = (kind(sizes.rewards).to(device).eval().requires_grad_(False)
                                       for kind in (PostureNet, DiagnosisNet, ConsistencyNet))
    consistency.tokenizer = Tokenizer.train([REPORT] * 4, sizes.rewards.vocab_size, sizes.rewards.positions)
    return Rewards(posture, diagnosis, consistency)


def unet_work(unet, sizes: options.Preset, images: int, device: torch.device, backward: bool) -> Callable:
    """-> one pass of the UNet over a batch, as training runs it; diffusers' output is unwrapped."""
    passed = inputs(sizes.unet, images, sizes.text.max_position_embeddings, device)

    def work() -> None:
        with torch.set_grad_enabled(backward), autocast(device):
            out = unet(*passed)
            out = out if torch.is_tensor(out) else out.sample
            if backward:
                out.float().square().mean().backward()

    return work


def diffusers_unet(pipe: Pipeline, device: torch.device):
    """diffusers' UNet with the same configuration and weights; None where diffusers is not installed."""
    try:
        import diffusers
    except ImportError:
        return None
    theirs = diffusers.UNet2DConditionModel(**dataclasses.asdict(pipe.unet.config)).to(device).eval()
    theirs.load_state_dict(pipe.unet.state_dict())
    return theirs


def ddpo_rounds(folder: Path, nets: Rewards, images: int, steps: int, config: RLConfig,
                device: torch.device) -> tuple[Callable, Callable] | None:
    """-> an equal DDPO round as ours and as trl's; None where trl's is not installed."""
    try:
        from accelerate import PartialState
        from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
    except ImportError:
        return None
    PartialState()   # trl writes to accelerate's log, which does not work before this
    updates, batch = SCORE["updates"], min(config.rl_batch, images)
    micro = min(config.rl_micro, images // updates)   # trl's passes hold images of one step, ours any pairs
    config = dataclasses.replace(config, gradient="score", credit="end", updates=updates, reports=images,
                                 group=1, lora_rank=4, rl_batch=batch, kl=0.0, ace=False,
                                 rollout_steps=steps, checkpointing=False, offload=False)
    pipe, anchor, _, groups = start_policy(folder, device, config)
    optimizer, sampling = loop.make_optimizer(groups, config.rl_lr), SampleConfig(guidance=5.0)

    def ours() -> None:
        rl_round(pipe, anchor, anchor, nets, [REPORT] * images, list(range(images)), sampling, config,
                 optimizer)

    def reward(pictures, prompts, metadata):
        return sum(nets.scores(grey(pictures.float()), list(prompts)).values()), {}

    theirs = DDPOTrainer(DDPOConfig(
        num_epochs=1, mixed_precision="bf16" if device.type == "cuda" else "no", sample_num_steps=steps,
        sample_guidance_scale=5.0, sample_batch_size=batch,   # eta = 1, as ours; trl needs guidance above 1
        sample_num_batches_per_epoch=images // batch, train_batch_size=micro,
        train_gradient_accumulation_steps=images // (updates * micro),
        train_learning_rate=config.rl_lr,
        train_timestep_fraction=(steps - 0.5) / steps, per_prompt_stat_tracking=False,
    ), reward, lambda: (REPORT, {}), DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=True))
    theirs.sd_pipeline.set_progress_bar_config(disable=True)
    return ours, lambda: theirs.step(0, 0)


def measure(name: str, images: int, steps: int, compiled: bool, rate: float, device: torch.device,
            folder: Path) -> list[str]:
    """-> the cells of one row"""
    preset, changes = CASES[name]
    sizes = options.preset(preset)
    config = RLConfig(**{"reports": images // 4, "group": 4, "rollout_steps": steps, **changes})
    # Full micro-batches, whose memory --dry-run foretells, however few the images.
    config = dataclasses.replace(config, updates=max(images // config.rl_micro, 1))
    sampling = SampleConfig(sample_steps=steps)
    random_pipeline(sizes, device).save(folder / name)
    pipe, anchor, _, groups = start_policy(folder / name, device, config)
    theirs = diffusers_unet(Pipeline.load(folder / name, device), device)
    flops = FlopCounterMode(display=False)
    with flops:   # before compiling, which does not happen under a counter, nor ever after
        unet_work(pipe.unet, sizes, images, device, False)()
    if compiled:
        pipe.unet.compile()
        if theirs is not None:
            theirs.compile()
    forward = unet_work(pipe.unet, sizes, images, device, False)
    ours, share = seconds(forward, device), flops.get_total_flops() / rate
    ratio = ""
    if theirs is not None:
        ratio = f"{seconds(unet_work(theirs, sizes, images, device, False), device) / ours:.2f}"
        ours = min(ours, seconds(forward, device))
    del theirs
    both = seconds(unet_work(pipe.unet, sizes, min(images, config.rl_micro), device, True), device)
    share_both = 3 * share * min(images, config.rl_micro) / images / both
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    nets, optimizer = random_rewards(sizes, pipe.tokenizer, device), loop.make_optimizer(groups, 1e-6)
    drawing = seconds(lambda: generate(pipe, [REPORT] * images, list(range(images)), steps), device, 1)
    seeds = list(range(images))
    a_round = seconds(lambda: rl_round(pipe, anchor, anchor, nets, [REPORT] * images, seeds, sampling, config,
                                       optimizer), device, 1)
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""
    rounds = ddpo_rounds(folder / name, nets, images, steps, config, device)
    equal = " / ".join(f"{seconds(work, device, 1):.2f}" for work in rounds or ())
    return [name, f"{images / drawing:.2f}", f"{a_round:.2f}", peak, f"{share / ours:.0%}",
            f"{share_both:.0%}", ratio, equal]


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=["tiny"])
    parser.add_argument("--images", type=int, default=16, help="a batch, and a round; a multiple of 4")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNets")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where random weights are kept")
    args = parser.parse_args(argv)
    if args.images < 4 or args.images % 4:
        parser.error(f"--images {args.images}: expected a multiple of 4")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    rate = matmul_rate(device)
    cpu = f"CPU, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu
    print(f"{name}: {rate / 1e12:.2f} Tflop/s in a matrix product; torch {torch.__version__}; "
          f"{args.images} images, {args.steps} steps{', compiled' * args.compile}\n")
    print("| case | sampling, images/s | RL round, s | peak memory | UNet forward, share of matmul rate "
          "| forward + backward | times faster than diffusers' UNet | DDPO round, s: ours / trl's |\n"
          + "|---" * 8 + "|")
    for case in args.case:
        cells = measure(case, args.images, args.steps, args.compile, rate, device, args.out)
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
