"""From noise to X-ray: noise schedule, guidance, the DDIM step, the pipeline folder.

    python sample.py "Moderate left pleural effusion. Heart size is normal."     # newest run, 4 images
    python sample.py --reports reports.txt --run runs/phantom --anchor --seed 7  # a report a line, before RL
    torchrun --nproc-per-node 8 -- sample.py --reports test.csv --n 1 --best-of 4 --out drawn    # thousands

`guided_noise` and `ddim_step` are the only two functions that turn a network output into a latent: sampling,
rollouts and policy updates all call them, so what is scored is exactly what was sampled. All step maths is
float32.
"""
from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command draws what is missing")

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ace import ACE
from chests.drawn import check_own, draw, draw_best, plan, read_reports, write_table
from model import UNet2DConditionModel, layout, read_unet_config
from rewards import Rewards, run_weights
from storage.files import holding, naming, read_json, write_json
from storage.pictures import grey, picture_grid, read_png, save_png
from storage.weights import digest, require
from text_encoder import CLIPTextModel, Tokenizer
from training.ranks import rank, start_ranks, wait_for_ranks, whole_job
from vae import AutoencoderKL, at_once

# --------------------------------------------------------------------------------------------- noise schedule


@dataclass(frozen=True)
class ScheduleConfig:
    """Field names equal scheduler_config.json of diffusers; the defaults are Stable Diffusion's."""
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"       # or v_prediction
    timestep_spacing: str = "leading"      # or trailing, linspace
    steps_offset: int = 1                  # of "leading"; StableDiffusionPipeline knows no other
    set_alpha_to_one: bool = False         # a at timestep -1: 1 (the step there has std 0), or a_0

    @classmethod
    def tiny(cls):
        # Trailing steps begin at pure noise and v-prediction is well conditioned there: few suffice.
        return cls(prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True)

    def __post_init__(self):
        wanted = {"num_train_timesteps": (int, 1, 10**5), "beta_start": (float, 0, 1),
                  "beta_end": (float, 0, 1), "steps_offset": (int, 0, self.num_train_timesteps)}
        for name, (kind, low, high) in wanted.items():
            value = getattr(self, name)
            require(type(value) is kind and low <= value < high, name, value,
                    f"{kind.__name__} from {low} to below {high}")
        require(type(self.set_alpha_to_one) is bool, "set_alpha_to_one", self.set_alpha_to_one,
                "true or false")


# A folder may name any sampler of the same process: the process is read, the steps are always DDIM's.
SAMPLERS = [f"{name}Scheduler" for name in (
    "DDIM", "PNDM", "DDPM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep",
    "UniPCMultistep")]
REQUIRED = ("_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
ALLOWED = {"_class_name": SAMPLERS, "beta_schedule": ["scaled_linear", "linear"],
           "prediction_type": ["epsilon", "v_prediction"],
           "timestep_spacing": ["leading", "trailing", "linspace"], "trained_betas": [None], **dict.fromkeys(
               ("thresholding", "rescale_betas_zero_snr", "use_flow_sigmas"), [False])}


class Schedule:
    """The cumulative products a_t of a diffusion process and the timesteps of an n-step DDIM sampler."""

    def __init__(self, config: ScheduleConfig, device: torch.device | str = "cpu"):
        self.config = config
        power = 2 if config.beta_schedule == "scaled_linear" else 1
        first, last = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
        betas = torch.linspace(first, last, config.num_train_timesteps) ** power
        a = torch.cumprod(1 - betas, 0)
        final = torch.ones(1) if config.set_alpha_to_one else a[:1]
        self.a = torch.cat([a, final]).to(device)   # index -1, "before the first timestep", is the last entry

    def timesteps(self, n: int) -> tuple[Tensor, Tensor]:
        """(t: n, p: n), each step's timestep and the one it leads to, at last -1 (or 0 for some n that do not
        divide all timesteps, trailing)."""
        total, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        if not 1 <= n <= total:
            raise ValueError(f"{n} denoising steps: expected 1 to {total}")
        if spacing == "leading":
            if (first := (n - 1) * (total // n) + self.config.steps_offset) >= total:
                raise ValueError(f"{n} denoising steps: with steps_offset the first timestep would be "
                                 f"{first}, expected at most {total - 1}")
            t = torch.arange(n - 1, -1, -1) * (total // n) + self.config.steps_offset
        elif spacing == "trailing":   # numpy, as the reference: halves are then rounded to the same side
            t = torch.from_numpy(np.arange(total, 0, -total / n)[:n].round() - 1).long()
        else:
            t = torch.from_numpy(np.linspace(0, total - 1, n).round()).long().flip(0)
        p = t - total // n
        return t.to(self.a.device), p.clamp(min=-1).to(self.a.device)

    def alpha(self, t: Tensor) -> Tensor:
        """(t: b) -> b 1 1 1"""
        return rearrange(self.a[t], "b -> b 1 1 1")

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0): (x0: b c h w, noise: b c h w, t: b) -> b c h w"""
        a = self.alpha(t)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network predicts: the noise, or v = sqrt(a) noise - sqrt(1-a) x_0."""
        a = self.alpha(t)
        return noise if self.config.prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * x0

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu") -> "Schedule":
        """Read a diffusers scheduler/ folder; ValueError names file and key.

        It means what DDIMScheduler.from_config makes of it once StableDiffusionPipeline has set steps_offset
        to 1 and clip_sample to false: keys that the file lacks are DDIM's.
        """
        path = Path(folder) / "scheduler_config.json"
        raw = read_json(path)
        for key, allowed in ALLOWED.items():
            if key in raw and raw[key] not in allowed:
                raise ValueError(f"{path}: {key} is {str(raw[key])[:40]!r}, expected one of {allowed}")
        for key in REQUIRED:
            if key not in raw:
                raise ValueError(f"{path}: {key} is missing")
        raw = {"set_alpha_to_one": True} | raw | {"steps_offset": 1}
        names = ScheduleConfig.__dataclass_fields__
        with naming(f"{path}: ", ValueError):
            return cls(ScheduleConfig(**{k: v for k, v in raw.items() if k in names}), device)

    def save_pretrained(self, folder: Path) -> None:
        write_json(Path(folder) / "scheduler_config.json",
                   {"_class_name": "DDIMScheduler", "clip_sample": False, **asdict(self.config)})


# ------------------------------------------------------------------------------------------------ one step


@dataclass(frozen=True)
class SampleConfig:
    """Options of sampling: evaluation, `python sample.py`, and, with steps of their own, rollouts."""

    sample_steps: Annotated[int, "denoising steps of every image but a rollout's"] = 20
    guidance: Annotated[float, "classifier-free guidance scale w; 1 is none and halves the cost"] = 1.0
    eta: Annotated[float, "randomness of each step, which the policy gradient needs: 1 is DDPM's; "
                          "0.01 or more"] = 1.0

    def arguments(self) -> dict:
        """As keyword arguments of `generate`."""
        return {"steps": self.sample_steps, "guidance": self.guidance, "eta": self.eta}


def both_branches(unet, cond: Tensor, uncond: Tensor, guidance: float) -> Tensor | list:
    """(cond: b n d, uncond: n d) -> the context of both branches, 2b n d, already read by a UNet. At w = 1
    the unconditional branch has no weight and is not computed."""
    context = cond if guidance == 1 else torch.cat([uncond.expand_as(cond), cond])
    return unet.read(context) if hasattr(unet, "read") else context


def guided_noise(unet, x: Tensor, t: Tensor, context: Tensor | list, guidance: float) -> Tensor:
    """(x: b c h w, t: b, context: both_branches') -> b c h w; e_uncond + w (e_cond - e_uncond), float32"""
    if guidance == 1:
        return unet(x, t, context).float()
    if not hasattr(unet, "read"):   # a UNet doubles the batch itself, as late as it can
        x, t = torch.cat([x, x]), torch.cat([t, t])
    e_uncond, e_cond = unet(x, t, context).float().chunk(2)
    return e_uncond + guidance * (e_cond - e_uncond)


def ddim_step(schedule: Schedule, out: Tensor, x: Tensor, t: Tensor, p: Tensor,
              eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out: b c h w, x: b c h w, t: b, p: b) -> mean: b c h w and std: b 1 1 1 of x_p given x_t
    (Song et al. 2021, eq. 12), and x_0 as the network sees it: b c h w.

    eta = 0 is deterministic; at eta = 1 the mean is the DDPM posterior's. The std is 0 where a_p = 1.
    """
    a_t, a_p = schedule.alpha(t), schedule.alpha(p)
    if schedule.config.prediction_type == "epsilon":
        e, x_0 = out, (x - (1 - a_t).sqrt() * out) / a_t.sqrt()
    else:
        e, x_0 = a_t.sqrt() * out + (1 - a_t).sqrt() * x, a_t.sqrt() * x - (1 - a_t).sqrt() * out
    variance = eta**2 * (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    mean = a_p.sqrt() * x_0 + (1 - a_p - variance).clamp(min=0).sqrt() * e
    return mean, variance.clamp(min=0).sqrt(), x_0


class Step(NamedTuple):
    """One denoising step of a batch: state x = x_t, action x_p ~ N(mean, std^2)."""
    x: Tensor
    x_p: Tensor
    mean: Tensor
    std: Tensor
    x_0: Tensor      # what x_t promises: the network's guess of the end


def denoise(unet, schedule: Schedule, cond: Tensor, uncond: Tensor, noise: Tensor, guidance: float,
            eta: float) -> Iterator[Step]:
    """(cond: b n d, uncond: n d, noise: b steps+1 c h w) -> the steps in order;
    noise[:, 0] is x_T, noise[:, i+1] is step i's."""
    # Keys and values: once for all. x: contiguous, as all later ones are, or --compile compiles it apart.
    context, x = both_branches(unet, cond, uncond, guidance), noise[:, 0].contiguous()
    for i, (t, p) in enumerate(zip(*schedule.timesteps(noise.shape[1] - 1), strict=True)):
        t, p = t.expand(len(x)), p.expand(len(x))
        out = guided_noise(unet, x, t, context, guidance)
        mean, std, x_0 = ddim_step(schedule, out, x, t, p, eta)
        x_p = mean + std * noise[:, i + 1]
        yield Step(x, x_p, mean, std, x_0)
        x = x_p


def seeded_noise(seeds: list[int], steps: int, shape: tuple[int, int, int], device="cpu") -> Tensor:
    """-> b steps+1 c h w. Every image draws from its own CPU seed: independent of batch, order and device.

    torch's CPU generator keeps the low 32 bits of a seed; seeds that differ by 2^32 give the same noise.
    """
    rows = [torch.randn(steps + 1, *shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows).to(device)


# ------------------------------------------------------------------------------------------------ pipeline


@dataclass
class Pipeline:
    """A diffusers folder in memory: unet/, vae/, text_encoder/, tokenizer/, scheduler/,
    and ace/ where RL trained one."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    tokenizer: Tokenizer
    schedule: Schedule
    ace: ACE | None = None

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "Pipeline":
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder}: no model_index.json: not a (complete) diffusers pipeline folder")
        fast = layout(device)
        tuned = os.path.lexists(folder / "ace") or read_json(folder / "model_index.json").get("_ace") is True
        pipe = cls(
            UNet2DConditionModel.from_pretrained(folder / "unet").to(device, memory_format=fast).eval(),
            AutoencoderKL.from_pretrained(folder / "vae").to(device, memory_format=fast).eval(),
            CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval(),
            Tokenizer.from_pretrained(folder / "tokenizer"),
            Schedule.from_pretrained(folder / "scheduler", device),
            ACE.from_pretrained(folder / "ace").to(device).eval() if tuned else None,
        )
        pipe.unet.config = read_unet_config(folder / "unet")
        pipe.check(folder)
        return pipe

    def check(self, folder: Path) -> None:
        """Refuse parts that do not belong together, each of which is sound by itself."""
        unet, vae, text, tokens = self.unet.config, self.vae.config, self.text.config, self.tokenizer
        same = [("unet", "in_channels", unet.in_channels, "vae", "latent_channels", vae.latent_channels),
                ("unet", "out_channels", unet.out_channels, "vae", "latent_channels", vae.latent_channels),
                ("unet", "cross_attention_dim", unet.cross_attention_dim,
                 "text_encoder", "hidden_size", text.hidden_size)]
        if self.ace is not None:
            same.append(("ace", "dim", self.ace.config.dim, "text_encoder", "hidden_size", text.hidden_size))
        for part, key, value, other, other_key, wanted in same:
            if value != wanted:
                raise ValueError(f"{folder / part / 'config.json'}: {key} is {value}, but {other} has "
                                 f"{other_key} {wanted}")
        if unet.sample_size is None:
            raise ValueError(f"{folder / 'unet' / 'config.json'}: sample_size is missing")
        if tokens.max_length > text.max_position_embeddings:
            raise ValueError(f"{folder / 'tokenizer'}: model_max_length is {tokens.max_length}, but "
                             f"text_encoder has max_position_embeddings {text.max_position_embeddings}")
        if (last := max(tokens.vocab.values())) >= text.vocab_size:
            raise ValueError(f"{folder / 'tokenizer'}: has a token {last}, but text_encoder has vocab_size "
                             f"{text.vocab_size}")

    def save(self, folder: Path) -> None:
        """Write every part, model_index.json last: a folder that has it is complete."""
        for name, part in [("unet", self.unet), ("vae", self.vae), ("text_encoder", self.text),
                           ("tokenizer", self.tokenizer), ("scheduler", self.schedule), ("ace", self.ace)]:
            if part is not None:
                part.save_pretrained(folder / name)
        write_json(folder / "model_index.json", {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None],
            "_ace": self.ace is not None,   # diffusers passes over what begins with _
            "feature_extractor": [None, None], "requires_safety_checker": False})

    @property
    def device(self) -> torch.device:
        return self.schedule.a.device

    def digest(self) -> str:
        """Of what a picture depends on beside report, seed and settings"""
        parts = [part for part in (self.unet, self.vae, self.text, self.ace) if part is not None]
        tokens, configs = self.tokenizer, [asdict(part.config) for part in (*parts, self.schedule)]
        return digest(parts, [*configs, tokens.vocab, tokens.merges, tokens.max_length, tokens.pad])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    def embed(self, reports: list[str]) -> Tensor:
        """-> b n d, the prompt embeddings c_p (without c_s)."""
        return self.text(self.tokenizer(reports).to(self.device))

    def condition(self, c_p: Tensor, c_empty: Tensor) -> tuple[Tensor, Tensor]:
        """(c_p: b n d, c_empty: n d) -> both branches' contexts,
        with c_s appended to each if there is an ACE."""
        if self.ace is None:
            return c_p, c_empty
        return self.ace(c_p), self.ace(c_empty[None])[0]

    def decode(self, latents: Tensor) -> Tensor:
        """(latents: b c h w, scaled) -> b c h w images in [0, 1], float32

        As many at a time as vae.at_once allows.
        """
        side = latents.shape[-1] * self.vae.config.factor
        parts = (latents / self.vae.config.scaling_factor).split(at_once(side, self.device))
        return torch.cat([(self.vae.decode(z).float() / 2 + 0.5).clamp(0, 1) for z in parts])


def autocast(device: torch.device):
    """bf16 around networks on CUDA; elsewhere float32 as it is. Step maths inside
    stays float32, being elementwise."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@torch.no_grad()
def generate(pipe: Pipeline, reports: list[str], seeds: list[int], steps: int, guidance: float = 1.0,
             eta: float = 1.0) -> Tensor:
    """One image for each (report, seed) -> b c h w in [0, 1], float32.

    Whoever calls splits large sets into batches.
    """
    if not 0 < len(reports) == len(seeds):
        raise ValueError(f"{len(reports)} reports, {len(seeds)} seeds: expected one seed for each report")
    noise = seeded_noise(seeds, steps, pipe.latent_shape, pipe.device)
    with autocast(pipe.device):
        cond, uncond = pipe.condition(pipe.embed(reports), pipe.embed([""])[0])
        for step in denoise(pipe.unet, pipe.schedule, cond, uncond, noise, guidance, eta):
            latents = step.x_p
        return pipe.decode(latents)


# ----------------------------------------------------------------------------------------------- command line


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that was written to last and holds a pipeline."""
    runs = [p.parent.parent for p in root.glob("*/anchor/model_index.json")]
    if not runs:
        raise ValueError(f"--run: no run with a trained pipeline under {root}/; "
                         "train one with: python train.py")
    return max(runs, key=lambda run: log.stat().st_mtime if (log := run / "log.jsonl").exists() else 0)


def run_settings(run: Path) -> SampleConfig:
    """The sampling options in a run folder's config.json; defaults for those it lacks."""
    config, usual = read_json(run / "config.json", missing={}), asdict(SampleConfig())
    found = {name: config.get(name, value) for name, value in usual.items()}
    for name, value in found.items():
        if type(value) not in (int, type(usual[name])) or not 0 <= value < math.inf:
            raise ValueError(f"{run / 'config.json'}: {name} is {value!r}, expected a number >= 0")
    return SampleConfig(**found)


def liking(run: Path, device: torch.device) -> tuple[Callable[[Tensor, list[str]], Tensor], str]:
    """-> (images: b c h w, reports) -> b: RUN/rewards' scores summed with the weights of the run's
    reinforcement learning; and a digest of both"""
    nets, weights = Rewards.load(run / "rewards", device), run_weights(run)
    return (lambda images, reports: nets.total(grey(images), reports, weights),
            digest(nets.named().values(), weights))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Report text in, chest X-ray out. Not for clinical use.")
    parser.add_argument("report", nargs="?", help="the report, in quotes")
    parser.add_argument("--reports", type=Path,
                        help="instead of REPORT: a text file with one report a line, or a CSV with a column "
                             "report, prompt or annotated_prompt")
    parser.add_argument("--run", type=Path, help="run folder (default: the newest under runs/)")
    parser.add_argument("--n", type=int, default=4, help="images for each report [4]")
    parser.add_argument("--seed", type=int, default=0,
                        help="of the first image, or candidate [0]; in a grid every report has the same")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the run's)")
    parser.add_argument("--guidance", type=float, help="guidance scale w (default: the run's)")
    parser.add_argument("--anchor", action="store_true", help="the model before reinforcement learning")
    parser.add_argument("--best-of", type=int, default=1, metavar="N",
                        help="draw N candidates for each image, keep the one that RUN/rewards like best [1]")
    parser.add_argument("--batch", type=int, default=16, help="images at a time; halve if out of memory [16]")
    parser.add_argument("--out", type=Path, default=Path("sample.png"),
                        help="NAME.png: a grid, beside it the images as NAME_REPORT_SEED.png; or a folder: "
                             "REPORT_SEED.png and CheXGenBench's prompt_INFO.csv; missing ones are drawn")
    args = command.arguments(parser, argv)
    if (args.report is None) == (args.reports is None):
        raise ValueError("give either a report in quotes or --reports FILE")
    for name, value, most in (("--n", args.n, 64), ("--best-of", args.best_of, 1024), ("--batch", args.batch,
                              4096), ("--steps", 1 if args.steps is None else args.steps, 1000)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} {value}: expected 1 to {most}")
    if args.guidance is not None and not (math.isfinite(args.guidance) and args.guidance >= 0):
        raise ValueError(f"--guidance {args.guidance}: expected a finite number >= 0")
    args.grid = args.out.suffix.lower() == ".png" and not args.out.is_dir()
    args.reports = [args.report.strip()] if args.report is not None else read_reports(args.reports)
    if not args.reports or not all(args.reports):
        raise ValueError("the report is empty: expected radiology report text")
    if not args.grid and not args.out.is_dir() and (args.out.suffix[1:].isalpha() or args.out.exists()):
        raise ValueError(f"--out {args.out}: expected a name that ends in .png, or a folder")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    reports, jobs = args.reports, plan(args.out, args.grid, args.reports, args.n, args.seed, args.best_of)
    run, device = args.run or newest_run(), start_ranks()
    held = args.out.with_name(f".{args.out.name}") if args.grid else args.out
    hold = holding(held, f"--out {args.out}") if rank() == 0 else nullcontext()   # all ranks are one holder
    with hold, whole_job():
        if rank() == 0:
            check_own(args.out, args.grid, jobs)
        wait_for_ranks()
        model = "cxrl" if (run / "cxrl" / "model_index.json").exists() and not args.anchor else "anchor"
        pipe, settings = Pipeline.load(run / model, device), run_settings(run).arguments()
        revision = read_json(run / "config.json", missing={}).get("git", "unknown")
        steps = args.steps or settings["steps"]
        guidance = settings["guidance"] if args.guidance is None else args.guidance
        settings |= {"steps": steps, "guidance": float(guidance)}
        about = settings | {"model": model, "revision": revision, "weights": pipe.digest()}
        pipe.schedule.timesteps(steps)   # refuses more than the schedule has
        like, paint = None, partial(generate, pipe, **settings)
        if args.best_of > 1:
            like, rewards = liking(run, device)
            about |= {"best_of": args.best_of, "rewards": rewards}
        if cut := pipe.tokenizer.cut_count(reports):
            print(f"{cut} of {len(reports)} reports exceed {pipe.tokenizer.max_length} tokens, and are cut")
        draw(jobs, about, args.batch, partial(draw_best, paint, like), whole=not args.grid)
        wait_for_ranks()
        if rank() == 0 and args.grid:
            seeds = f"[seeds {jobs[0].seeds[0]}-{jobs[-1].seeds[-1]}]"
            pictures = torch.cat([read_png(job.path) for job in jobs]).split(args.n)
            rows = [(f"{report}  {seeds}", row) for report, row in zip(reports, pictures, strict=True)]
            save_png(picture_grid(rows), args.out, report="\n".join(reports), seed=args.seed, n=args.n,
                     **about)
        elif rank() == 0:
            write_table(args.out, jobs)
    print(f"{args.out}: {len(jobs)} synthetic X-rays by {run}/{model}, {steps} steps, guidance {guidance:g}; "
          "not for clinical use")


if __name__ == "__main__":
    main()
