"""The honest control: the anchor, trained supervised for as long again as reinforcement learning took.

    python benchmarks/supervised_control.py [RUN: newest under runs/]

Continues RUN/anchor (the UNet; same loss, data, batch and peak learning rate, fresh warm-up and
cosine) for the seconds that RUN/log.jsonl gives for RL, at the steps per second that it gives for the
diffusion stage, saves RUN/control and writes RUN/evaluation.json anew with the key "control" beside "anchor"
and "cxrl".
"""
import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate  # noqa: E402
import train  # noqa: E402
from sample import Pipeline, newest_run  # noqa: E402
from training import loop, options  # noqa: E402
from training.latents import latent_cache  # noqa: E402


def last_log(run: Path, stage: str) -> dict:
    lines = [line for line in loop.read_log(run / "log.jsonl") if line["stage"] == stage and "time" in line]
    if not lines:
        raise ValueError(f"{run / 'log.jsonl'}: no line of stage {stage}; the control needs a finished run")
    return lines[-1]


def saved_flags(run: Path) -> list[str]:
    """The flags of a run, from its config.json."""
    kept = json.loads((run / "config.json").read_text())
    kinds = (options.TrainConfig, options.SampleConfig, options.RLConfig)
    names = [f.name for kind in kinds for f in dataclasses.fields(kind)]
    flags = []
    for name in names:
        flag, value = name.replace("_", "-"), kept[name]
        if isinstance(value, bool):
            flags += [f"--{flag}" if value else f"--no-{flag}"]
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    folder = parser.parse_args().run or newest_run()
    config, sampling, rl = options.parse([*saved_flags(folder), "--out", str(folder)])
    run = options.open_run(config, sampling, rl)
    sets = train.load_sets(config)
    options.bind(run, sets)
    diffusion, rl_log = last_log(folder, "diffusion"), last_log(folder, "rl")
    steps = round(rl_log["time"] * diffusion["step"] / diffusion["time"])
    print(f"control: RL took {rl_log['time']:.0f} s, which is {steps} more supervised steps")
    pipe = Pipeline.load(folder / "anchor", run.device)
    latents = latent_cache(run, pipe.vae, sets["train"])
    loss = train.diffusion_loss(run, config, pipe, latents, sets["train"].reports, first=diffusion["step"])
    loop.fit(run, "control", {"unet": pipe.unet}, loss, steps, config.diffusion_lr,
             config.diffusion_batch, ema_decay=config.ema_decay)
    pipe.save(folder / "control")
    evaluate.evaluate_run(folder, sets, config.eval_reports, config.seed, run.device,
                          controls=(folder / "control",))


if __name__ == "__main__":
    main()
