"""The options of train.py: what a run is made with, what a preset sets, what is refused before anything slow
begins, and the run folder that keeps them."""
import argparse
import dataclasses
import hashlib
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import torch

from evaluation.metrics import FEWEST
from model import UNetConfig, read_unet_config
from rewards import NAMES, CLIPConsistency, DiagnosisNet, RewardConfig, Rewards
from rl import SCORE, RLConfig
from sample import SampleConfig, Schedule, ScheduleConfig
from storage import command
from storage.files import git_revision, naming, read_json, write_json
from storage.weights import read_config
from text_encoder import FIXED as TEXT_FIXED
from text_encoder import TextConfig
from training.loop import ANEW, NOT_RESULT, ORIGIN, PARTS_OF, Run, read_log, refuse_another, stage_of
from training.ranks import rank, ranks, start_ranks
from vae import FIXED as VAE_FIXED
from vae import VAEConfig


@dataclass(frozen=True)
class TrainConfig:
    out: Annotated[Path, "run folder; the same command again continues it"] = Path("runs/phantom")
    preset: Annotated[Literal["tiny", "small", "sd15", "sd21"],
                      "sizes of all networks, and every default (--preset sd15 --help); sd15 and sd21 need "
                      "--init"] = "tiny"
    data: Annotated[str, "phantom, or a folder: images + metadata.csv, or a published archive"] = "phantom"
    dry_run: Annotated[bool, "print what would be done and what it takes, and stop"] = False
    stage: Annotated[Literal["all", "vae", "diffusion", "rewards", "rl", "evaluate"],
                     "all in order, or one"] = "all"
    init: Annotated[Path | None,
                    "diffusers folder (RoentGen, Stable Diffusion) taken as the anchor; with "
                    "--finetune only its autoencoder is taken as it is"] = None
    finetune: Annotated[Literal["none", "lora", "unet", "all"],
                        "what of --init learns from your data first, in the diffusion stage: nothing, "
                        "a LoRA on the UNet's attention, the UNet, or the text encoder too"] = "none"
    finetune_rank: Annotated[int, "of --finetune lora; give it ten times the UNet's --diffusion-lr"] = 32
    seed: Annotated[int, "of everything random"] = 0
    fit: Annotated[Literal["crop", "pad"], "how a picture that is not square becomes one"] = "crop"
    prompt: Annotated[Literal["report", "impression", "findings", "both"],
                      "which part of a real report is the prompt"] = "report"
    diagnosis: Annotated[Path | None, "your own DenseNet-121 as diagnosis reward: FILE.safetensors, and "
                                      "its labels in FILE.json"] = None
    consistency: Annotated[Path | None, "your own CLIP as consistency reward: a CLIPModel folder of "
                                        "transformers, tokenizer included"] = None
    train_images: Annotated[int, "phantoms in the training split; below 8192, fewer are held out"] = 8192
    vae_steps: Annotated[int, "optimizer steps of the autoencoder"] = 800
    vae_batch: Annotated[int, "images per step; halve if out of memory"] = 4
    vae_lr: Annotated[float, "peak learning rate"] = 1e-3
    text_steps: Annotated[int, "optimizer steps of the text encoder's contrastive pretraining"] = 500
    text_batch: Annotated[int, "pairs per step, each the others' wrong answers"] = 64
    diffusion_steps: Annotated[int, "optimizer steps of the UNet"] = 1400
    diffusion_batch: Annotated[int, "latents per step"] = 32
    diffusion_micro: Annotated[int, "latents in one pass of a process; halve if out of memory"] = 32
    diffusion_lr: Annotated[float, "peak learning rate"] = 1e-3
    ema_decay: Annotated[float, "of the moving average of weights that supervised training of the UNet "
                                "ends with"] = 0.995
    prompt_dropout: Annotated[float, "share of reports replaced by the empty one, for guidance"] = 0.1
    reward_steps: Annotated[int, "optimizer steps of each reward network"] = 250
    reward_batch: Annotated[int, "images per step"] = 64
    reward_lr: Annotated[float, "peak learning rate"] = 2e-3
    eval_reports: Annotated[int, "reports in the final evaluation"] = 512
    save_every: Annotated[float, "seconds between checkpoints"] = 30.0
    compile: Annotated[bool, "torch.compile the UNet in place"] = False


@dataclass(frozen=True)
class Preset:
    """What is behind --preset: sizes of the components, which are not flags, and defaults of the flags."""
    size: int            # image side in pixels
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    schedule: ScheduleConfig
    rewards: RewardConfig
    defaults: dict = dataclasses.field(default_factory=dict, hash=False)   # that differ from the dataclasses'


# One GPU of 24 GB. Reasoned from what others use at these sizes, not measured here.
SMALL = {"out": Path("runs/small"), "vae_steps": 20_000, "vae_batch": 16, "vae_lr": 5e-4, "text_steps": 5000,
         "text_batch": 256, "diffusion_steps": 100_000, "diffusion_batch": 128, "diffusion_micro": 64,
         "diffusion_lr": 3e-4, "ema_decay": 0.999, "reward_steps": 3000, "reward_lr": 1e-3,
         "save_every": 600.0, "rollout_steps": 20, "guidance": 2.0, "rwr_lr": 3e-4, "rounds": 50,
         "rl_lr": 1e-4, "rl_batch": 32, "rl_micro": 16, "checkpointing": True}
# RoentGen's recipe: 12,500 steps at a small rate; guidance 4. A LoRA in RL, as in ddpo-pytorch and DRaFT.
SD = {"diffusion_steps": 12_500, "diffusion_batch": 128, "diffusion_micro": 8, "diffusion_lr": 1e-5,
      "ema_decay": 0.999, "reward_steps": 3000, "reward_batch": 32, "reward_lr": 5e-4, "save_every": 1200.0,
      "sample_steps": 50, "guidance": 4.0, "rwr_lr": 1e-4, "rounds": 50, "rollout_steps": 50, "rl_lr": 1e-4,
      "lora_rank": 4, "checkpointing": True, "offload": True, "rl_batch": 8, "rl_micro": 2}


def preset(name: str) -> Preset:
    if name == "tiny":
        return Preset(64, UNetConfig.tiny(), VAEConfig.tiny(), TextConfig.tiny(), ScheduleConfig.tiny(),
                      RewardConfig.tiny())
    if name == "small":
        return Preset(256, UNetConfig.small(), VAEConfig.small(), TextConfig.small(), ScheduleConfig.tiny(),
                      RewardConfig(width=32), SMALL)
    family = "sd15" if name == "sd15" else "sd21"
    return Preset(512, getattr(UNetConfig, family)(), VAEConfig.sd15(), getattr(TextConfig, family)(),
                  ScheduleConfig(), RewardConfig(trunk="densenet121"), {"out": Path("runs", family), **SD})


KINDS = (TrainConfig, SampleConfig, RLConfig)


def defaults_of(name: str, gradient: str) -> dict[str, object]:
    """Of every flag: the dataclasses', but for what --gradient and, before it, the preset set"""
    special = (SCORE if gradient == "score" else {}) | preset(name).defaults
    return {f.name: special.get(f.name, f.default) for kind in KINDS for f in dataclasses.fields(kind)}


def command_of(config: dict) -> str:
    """config.json -> the command that makes such a run: what differs from the defaults"""
    words = ["python train.py"]
    for name, usual in defaults_of(config.get("preset", "tiny"), config.get("gradient", "pathwise")).items():
        value, flag = config.get(name, usual), name.replace("_", "-")
        if name in ("stage", "dry_run") or str(value) in (str(usual), os.path.abspath(str(usual))):
            continue
        words.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool)
                     else f"--{flag} {shlex.quote(str(value))}")
    return " ".join(words)


def add_flags(parser: argparse.ArgumentParser, config: type, defaults: dict[str, object]) -> None:
    """One flag for each field: its type and help exist once, in the dataclass."""
    group = parser.add_argument_group(config.__name__)
    for field in dataclasses.fields(config):
        hint, text = get_args(get_type_hints(config, include_extras=True)[field.name])[:2]
        default = defaults[field.name]
        how = {"default": default, "help": f"{text} [{default}]"}
        if hint is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif get_origin(hint) is Literal:
            how["choices"] = get_args(hint)
        else:
            how["type"] = Path if hint == (Path | None) else hint
        group.add_argument("--" + field.name.replace("_", "-"), **how)


def parse(argv: list[str] | None, text: str = "") -> tuple[TrainConfig, SampleConfig, RLConfig]:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default="tiny")
    first.add_argument("--gradient", default="pathwise")
    early = first.parse_known_args(argv)[0]   # wrong ones are refused below
    defaults = defaults_of(early.preset, early.gradient)
    parser = command.parser(text)
    for kind in KINDS:
        add_flags(parser, kind, defaults)
    values = vars(command.arguments(parser, argv))
    configs = tuple(kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for kind in KINDS)
    check(*configs)
    return configs


# The least and the most of an option's values: of others more than 0, and 10^9.
LEAST = {"eta": 0.01, "clip": 0.01, "rollout_steps": 2, "text_batch": 2, "reward_batch": 2,
         "eval_reports": FEWEST, **dict.fromkeys(
             ("seed", "prompt_dropout", "guidance", *(f"w_{name}" for name in NAMES), "kl", "ace_lr", "mix",
              "save_every", "lora_rank", "rwr_steps", "rwr_lr", "rl_lr", "rounds", "ema_decay"), 0)}
MOST = {"seed": 2**31 - 1, "train_images": 2**20, "prompt_dropout": 1, "ema_decay": 1, "mix": 1, "eta": 10,
        "guidance": 1000, "ace_tokens": 2**12, "lora_rank": 2**12, "finetune_rank": 2**12, **dict.fromkeys(
            ("vae_batch", "text_batch", "diffusion_batch", "reward_batch", "reports", "group"), 2**16)}
WHY = {"eta": "; with hardly any randomness in a step there is no log-probability for the policy gradient",
       "rollout_steps": "; the last step is no action of the policy",
       "clip": "; it is the whole latent's, DDPO's 1e-4 of a mean is 1.64"}
# The parts of a pipeline that are read, and those that a picture drawn for a text alone does not pass.
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PASSED_BY = ("safety_checker", "feature_extractor", "image_encoder")


def check_values(part: TrainConfig | SampleConfig | RLConfig) -> None:
    for name, value in dataclasses.asdict(part).items():
        least, most = LEAST.get(name, 0), MOST.get(name, 10**9)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not (
                least <= value <= most and (value or name in LEAST)):
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected "
                             f"{f'at least {least}' if name in LEAST else 'more than 0'}, at most {most:,}"
                             + WHY.get(name, ""))


def check_init(folder: Path) -> None:
    """Refuse a pipeline that is more than Stable Diffusion's parts, or already tuned."""
    with naming(f"--init {folder}: expected a diffusers folder: ", ValueError):
        index = read_json(folder / "model_index.json")
    for name in index.keys() - {*PARTS, *PASSED_BY}:
        if isinstance(index[name], list) and any(index[name]):   # a ControlNet, a second encoder
            raise ValueError(f"--init {folder}: model_index.json has the part {name}, which is not supported")
    if (folder / "ace").exists():
        raise ValueError(f"--init {folder}: has the c_s of an earlier reinforcement learning (ace/), which "
                         "an anchor cannot have; expected a folder without, such as that run's anchor/")


def check(config: TrainConfig, sampling: SampleConfig, rl: RLConfig) -> None:
    """Refuse what cannot work, or would do nothing, before anything slow begins."""
    for part in (config, sampling, rl):
        check_values(part)
    if rl.reports * rl.group < 2:
        raise ValueError("--reports 1 --group 1: expected more than one image a round")
    ace = rl.ace and rl.ace_lr > 0
    if not (rl.rwr_steps and (rl.rwr_lr or ace) or rl.rounds and rl.mix and (rl.rl_lr or ace)):
        raise ValueError(f"--rwr-steps {rl.rwr_steps} --rwr-lr {rl.rwr_lr:g} --rounds {rl.rounds} --mix "
                         f"{rl.mix:g} --rl-lr {rl.rl_lr:g} --ace-lr {rl.ace_lr if rl.ace else 0:g}: nothing "
                         "would be learned")
    if not sum(getattr(rl, f"w_{name}") ** 2 for name in NAMES):
        raise ValueError(f"--w-{' 0 --w-'.join(NAMES)} 0: at least one reward needs a weight above 0")
    score, lora = rl.gradient == "score", config.finetune == "lora"
    for part, name, needed, there in [(rl, "rlcf", "--gradient score", score),
                                      (rl, "clip", "--gradient score", score),
                                      (rl, "credit", "--gradient score", score),
                                      (rl, "ace_tokens", "--ace", rl.ace), (rl, "ace_lr", "--ace", rl.ace),
                                      (config, "finetune_rank", "--finetune lora", lora)]:
        if not there and (value := getattr(part, name)) != getattr(type(part), name):
            said = "" if value is True else f" {value}"
            raise ValueError(f"--{name.replace('_', '-')}{said}: needs {needed}")
    if config.init is None:
        for flag, needless in (("preset", ("tiny", "small")), ("finetune", ("none",))):
            if (value := getattr(config, flag)) not in needless:
                raise ValueError(f"--{flag} {value}: needs --init DIR, a diffusers folder to start from")
        schedule = Schedule(preset(config.preset).schedule)
    else:
        check_init(config.init)
        schedule = Schedule.from_pretrained(config.init / "scheduler")
    for flag, steps in (("sample", sampling.sample_steps), ("rollout", rl.rollout_steps)):
        with naming(f"--{flag}-steps {steps}: ", ValueError):
            schedule.timesteps(steps)
    for flag, read in (("diagnosis", DiagnosisNet.from_densenet),
                       ("consistency", CLIPConsistency.from_pretrained)):
        with naming(f"--{flag} ", ValueError):
            if getattr(config, flag) is not None:
                read(getattr(config, flag))
    if config.compile:
        try:   # a number that no kernel in a cache has
            nonce, device = time.time_ns(), "cuda" if torch.cuda.is_available() else "cpu"
            torch.compile(lambda x: x * 2 + nonce)(torch.ones(8, device=device))
        except Exception as error:   # of every kind, and pages long
            raise ValueError("--compile: torch.compile does not work here (it needs a C++ compiler): "
                             f"{str(error).strip().splitlines()[0]}") from error


def sizes_of(config: TrainConfig) -> Preset:
    """The preset's sizes; networks and images as the folder of --init has them (768 px for SD 2.1-v)."""
    sizes = preset(config.preset)
    if config.init is None:
        return sizes
    unet = read_unet_config(config.init / "unet")
    vae = read_config(config.init / "vae", VAEConfig, VAE_FIXED)
    return dataclasses.replace(sizes, size=unet.sample_size * vae.factor, unet=unet, vae=vae,
                               text=read_config(config.init / "text_encoder", TextConfig, TEXT_FIXED))


# ------------------------------------------------------------------------------------------------ run folder


# The files that mark a stage's result: renamed into place when all of it is written.
MARKS = {"vae": ["anchor/vae/config.json"], "diffusion": ["anchor/model_index.json"],
         "rewards": [f"rewards/{net.name}/config.json" for net in dataclasses.fields(Rewards)],
         "rl": ["cxrl/model_index.json"], "evaluate": ["evaluation.json"]}


def finished(folder: Path, stage: str) -> bool:
    """Whether the run folder holds the stage's result"""
    return all((folder / mark).exists() for mark in MARKS[stage])


def given_by_init(config: TrainConfig) -> tuple[str, ...]:
    """The stages whose result is taken from the folder of --init"""
    if config.init is None:
        return ()
    return ("vae", "diffusion") if config.finetune == "none" else ("vae",)


def check_shares(config: TrainConfig, rl: RLConfig, processes: int) -> None:
    """Refuse what so many processes cannot share alike."""
    for flag, value, stage in [("reports", rl.reports, "rl"), ("vae-batch", config.vae_batch, "vae"),
                               ("text-batch", config.text_batch, "vae"),   # given with it
                               ("diffusion-batch", config.diffusion_batch,
                                "rl" if rl.rwr_steps else "diffusion"),   # of the archive, too
                               ("reward-batch", config.reward_batch, "rewards")]:
        if stage not in given_by_init(config) and value % processes:
            raise ValueError(f"--{flag} {value}: expected a multiple of the {processes} processes")


def needless(config: TrainConfig) -> list[str]:
    """The given options that nothing here reads, and why; not refused, as scripts give all of them always."""
    reasons = {"--data phantom": ("fit", "prompt")} if config.data == "phantom" else {
        f"--data {config.data}": ("train_images",)}
    if config.init is not None:
        reasons["--init"] = ("vae_steps", "vae_batch", "vae_lr", "text_steps", "text_batch")
        reasons["--finetune none"] = ("diffusion_lr",) if config.finetune == "none" else ()
    usual = defaults_of(config.preset, "pathwise")
    return [f"--{name.replace('_', '-')} {value}: does nothing with {reason}"
            for reason, names in reasons.items() for name in names
            if (value := getattr(config, name)) != usual[name]]


def refuse_later_results(config: TrainConfig) -> None:
    """Raise ValueError where a stage would be made anew below the result of one that it feeds."""
    for stage, later in (("vae", "diffusion"), ("diffusion", "rl"), ("rewards", "rl")):
        anew = config.stage in ("all", stage) and not finished(config.out, stage)
        if anew and finished(config.out, later) and stage not in given_by_init(config):
            raise ValueError(f"--out {config.out}: has a result of stage {later} and none of {stage}, which "
                             f"would be made anew, and not be what {later} was made of; delete "
                             f"{', '.join(MARKS[later])}, or choose another --out")


def files_digest(root: Path) -> str:
    """16 hex characters for what one brings along: of every file of a pipeline folder's PARTS, of another
    folder, or of a .safetensors file and the .json beside it, name, size and, spread over it, 16 pieces of 64
    KiB"""
    key, folder = hashlib.sha256(), root if root.is_dir() else root.parent
    tops = [folder / part for part in PARTS] if (root / "model_index.json").exists() else [folder]
    files = ([root, root.with_suffix(".json")] if root.is_file()
             else [path for top in tops for path in top.rglob("*") if path.is_file()])
    for path in sorted(files):
        size = path.stat().st_size
        key.update(f"{path.relative_to(folder)} {size}".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(size // 16, 2**16)):
                file.seek(start)
                key.update(file.read(2**16))
    return key.hexdigest()[:16]


def open_run(config: TrainConfig, sampling: SampleConfig, rl: RLConfig) -> Run:
    """The run in the folder --out, made or continued. One of another preset, seed or init is refused."""
    options = {k: str(v.absolute()) if isinstance(v, Path) else v
               for part in (config, sampling, rl) for k, v in dataclasses.asdict(part).items()}
    if config.data != "phantom":
        options["data"] = str(Path(config.data).absolute())
    for name in ("init", "diagnosis", "consistency"):
        if (path := getattr(config, name)) is not None:
            options[f"{name}_digest"] = files_digest(path)
    run = Run(config.out, options, start_ranks(), config.seed, config.save_every)
    check_shares(config, rl, ranks())
    read_log(run.path("log.jsonl"))
    for line in needless(config):
        print(f"note: {line}")
    refuse_other_origin(run)
    refuse_later_results(config)
    torch.set_float32_matmul_precision("high")   # TF32 where there is one
    return run


def refuse_other_origin(run: Run) -> None:
    """Raise ValueError where RUN/config.json was made with another of ORIGIN, of those known now, or with
    another option of a stage that is done or begun: it would be said of a result that it did not make."""
    old = read_json(run.path("config.json"), missing={})
    taken = run.options["init"] is not None and run.options["finetune"] == "none"   # vae and diffusion
    for name in filter(old.__contains__, run.options):
        stage = stage_of(name)
        stage = "rl" if taken and stage != "rewards" else stage
        done = any(run.path(mark).exists() for mark in MARKS[stage])
        states = [run.path("state", f"{part}.safetensors") for part in PARTS_OF[stage]]
        states = [path for path in states if path.exists()]
        if name in ORIGIN or name not in NOT_RESULT and done:
            refuse_another(name, old, run.options, run.folder, "choose another --out")
        elif name not in NOT_RESULT and states:
            refuse_another(name, old, run.options, states[-1], ANEW)
        elif (name in ("sample_steps", "eval_reports") and old[name] != run.options[name]
              and finished(run.folder, "evaluate")):
            path = run.path("evaluation.json")   # evaluate.py may have made it with another number
            judged = {name: read_json(path).get("n") if name == "eval_reports" else old[name]}
            refuse_another(name, judged, run.options, path, "delete it to evaluate anew")


def bind(run: Run, sets: dict) -> None:
    """Tie the run to its data: their contents are part of its options from now on, and of config.json."""
    run.options["data_digest"] = {name: chests.digest for name, chests in sets.items()}
    refuse_other_origin(run)
    made = read_json(run.path("config.json"), missing={}) if finished(run.folder, "rl") else {}
    versions = {"torch": torch.__version__, "git": git_revision()}
    if rank() == 0:   # what made the result stays
        write_json(run.path("config.json"),
                   {**run.options, **{name: made.get(name, value) for name, value in versions.items()}})
