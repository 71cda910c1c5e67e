"""The honest control: the anchor, trained supervised for as long again as reinforcement learning took.

    python benchmarks/supervised_control.py [RUN: newest under runs/]

Continues RUN/anchor (the UNet; same loss, all pairs, batch and peak learning rate, fresh warm-up and cosine)
for the seconds that RUN/log.jsonl gives for both parts of RL, at the pace of the diffusion stage,
saves RUN/control and writes RUN/evaluation.json anew with the key "control" beside "anchor" and "cxrl".
"""
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command goes on")

import evaluate
import train
from sample import Pipeline, newest_run
from storage.files import holding
from training import loop, options
from training.latents import latent_cache
from training.ranks import start_ranks


def last_log(run: Path, stage: str) -> dict:
    """The last line of a stage with its time; none: no step and no time."""
    lines = loop.read_log(run / "log.jsonl")
    return [{"step": 0, "time": 0.0}, *(x for x in lines if x["stage"] == stage and "time" in x)][-1]


def train_control(folder: Path, flags: list[str]) -> Path:
    """RUN/control of a run that these flags made -> its folder"""
    config, sampling, rl = options.parse([*flags, "--out", str(folder)])
    run = options.open_run(config, sampling, rl)
    archive, gradient = last_log(folder, "rwr"), last_log(folder, "rl")
    seconds, pace = archive["time"] + gradient["time"], last_log(folder, "diffusion")
    pace = pace if pace["step"] else archive   # whose seconds hold the search for its examples, too
    if not pace["step"]:
        raise ValueError(f"{folder / 'log.jsonl'}: no supervised steps; the control needs a finished run")
    steps = round(seconds * pace["step"] / pace["time"])
    print(f"control: RL took {seconds:.0f} s, which is {steps} supervised steps")
    pipe, train_set = Pipeline.load(folder / "anchor", run.device), train.load_sets(config)["train"]
    loss = train.diffusion_loss(run, config, pipe, latent_cache(run, pipe.vae, train_set), train_set.reports,
                                first=config.diffusion_steps)
    loop.fit(run, "control", {"unet": pipe.unet}, loss, steps, config.diffusion_lr, config.diffusion_batch,
             config.diffusion_micro, config.ema_decay, muon=config.init is None)
    pipe.unet.eval()
    pipe.save(folder / "control")
    return folder / "control"


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    folder = parser.parse_args(argv).run or newest_run()
    _, _, *flags = shlex.split(options.command_of(evaluate.read_config(folder)))   # "python train.py" ...
    with holding(folder):
        control, (config, *_) = train_control(folder, flags), options.parse(flags)
        evaluate.evaluate_run(folder, train.load_sets(config), config.eval_reports, config.seed,
                              start_ranks(), controls=(control,))


if __name__ == "__main__":
    main()
