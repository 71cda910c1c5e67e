"""The whole road at Stable Diffusion 1.5's own size, on the CPU, with random weights: does it run, in what
time and in how much memory?

    python benchmarks/real_size.py [--size sd15] [--out runs/real_size]   # 16 min on a core, 11 GiB
    python benchmarks/real_size.py --size tiny                            # seconds

Phases, each a fork of its own, whose peak is its own: `build` and save random weights; `load` them;
`finetune`, two steps of a LoRA on random latents; `rl`, one round on 2 images and 3 steps, for each estimator
that RLConfig has; `diffusers` opens what the round saved and draws a picture, which is compared with ours.
"""
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

import torch
from gpu import REPORT, random_pipeline, random_rewards

from model import add_lora
from rl import RLConfig, rl_round, save_policy, start_policy
from sample import Pipeline, SampleConfig, generate, seeded_noise
from training import loop, options

CPU = torch.device("cpu")


ESTIMATORS = (("pathwise",), ("score",))


def build(out: Path, size: str) -> str:
    pipe = random_pipeline(options.preset(size), CPU)
    with torch.no_grad():   # what a new UNet begins with at zero would let no gradient through
        for weight in (p for p in pipe.unet.parameters() if p.dim() > 1 and not p.any()):
            weight.normal_(std=0.02)
    pipe.save(out / "anchor")
    return f"UNet of {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters"


def load(out: Path, size: str) -> str:
    pipe = Pipeline.load(out / "anchor")
    return f"sample_size {pipe.unet.config.sample_size}"


def finetune(out: Path, size: str) -> str:
    unet = Pipeline.load(out / "anchor").unet
    unet.gradient_checkpointing = True
    parameters = list(add_lora(unet, 4).parameters())
    optimizer, losses = loop.make_optimizer(parameters, 1e-4), []
    shape = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    for step in range(2):
        g = torch.Generator().manual_seed(step)
        x, noise = torch.randn(2, *shape, generator=g)
        context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=g)
        loss = (unet(x, torch.tensor([500]), context) - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(f"{loss.item():.4f}")
    return "loss " + ", ".join(losses)


def reinforce(out: Path, size: str, estimator: str) -> str:
    config = RLConfig(estimator, reports=1, group=2, lora_rank=4, rl_batch=1, rl_micro=1, updates=1,
                      rollout_steps=3, checkpointing=True, rlcf=estimator == "score")
    pipe, anchor, _, groups = start_policy(out / "anchor", CPU, config)
    nets = random_rewards(options.preset(size), pipe.tokenizer, CPU)
    stats, _ = rl_round(pipe, anchor, anchor, nets, [REPORT] * 2, [0, 1], SampleConfig(),
                        config, loop.make_optimizer(groups, 1e-4))
    save_policy(pipe, out / "anchor", out / f"cxrl_{estimator}")
    return f"gradient norm {stats['grad_norm']:.2e}"


def in_diffusers(out: Path, size: str, estimator: str) -> str:
    import diffusers
    from safetensors.torch import load_file
    folder = out / f"cxrl_{estimator}"
    pipe = Pipeline.load(folder)
    ours = generate(pipe, [REPORT], [5], 3, 1.0, 0.0)
    start = seeded_noise([5], 3, pipe.latent_shape)[:, 0]
    del pipe
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    c_p, _ = theirs.encode_prompt([REPORT], "cpu", 1, False)
    c_s = load_file(folder / "ace" / "ace.safetensors")["c_s"][None]
    image = theirs(prompt_embeds=torch.cat([c_p, c_s], 1), latents=start, num_inference_steps=3, eta=0.0,
                   guidance_scale=1.0, output_type="pt").images
    assert ours.std() > 0.01, "a picture without contents proves nothing"
    return f"pictures differ by {(ours - image).abs().max().item():.1e} at most"


def phase(name: str, out: Path, size: str, *estimator: str) -> None:
    """Run a phase and print its row of the table."""
    os.setsid()   # Ctrl-C is for the process that waits, and ends this one with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    start = time.perf_counter()
    said = PHASES[name](out, size, *estimator)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20   # KiB, on Linux
    print(f"| {' '.join([name, *estimator])} | {seconds:.1f} | {peak:.2f} | {said} |", flush=True)


PHASES = {"build": build, "load": load, "finetune": finetune, "rl": reinforce, "diffusers": in_diffusers}


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--size", choices=("sd15", "sd21", "small", "tiny"), default="sd15")
    parser.add_argument("--out", type=Path, default=Path("runs/real_size"))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")   # diffusers'
    torch.optim.AdamW([torch.zeros(1)])   # imports for seconds, for all phases
    print(f"{args.size}, torch {torch.__version__}, CPU, {torch.get_num_threads()} threads\n\n"
          "| phase | seconds | peak GiB | |\n" + "|---" * 4 + "|", flush=True)
    for name in PHASES:
        for estimator in ESTIMATORS if name in ("rl", "diffusers") else [()]:
            process = multiprocessing.get_context("fork").Process(   # this one has computed nothing: safe
                target=phase, args=(name, args.out, args.size, *estimator), daemon=True)
            process.start()
            process.join()
            if process.exitcode:   # it said why
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
