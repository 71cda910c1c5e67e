"""The loop that every supervised stage shares, and how a run survives being killed at any moment.

Every random number is a pure function of (seed, stage, step); RUN/state/STAGE.safetensors holds weights,
optimizer moments, moving average and step, and is replaced in one rename. The same command then continues
bit for bit (CPU, fp32).
"""
import functools
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from storage.files import keep_tensors, write_text
from training.ranks import average_over_ranks, rank, share, share_batch_norms

# ------------------------------------------------------------------------------------------------ run folder


@dataclass
class Run:
    """The run folder, and what every stage needs."""
    folder: Path
    options: dict        # every flag's value, as written to config.json
    device: torch.device
    seed: int
    save_every: float
    writer: object = None

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def log(self, stage: str, step: int, **numbers: float) -> None:
        if rank():
            return
        with open(self.path("log.jsonl"), "a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **numbers}) + "\n")
        if self.writer is not None:
            for name, value in numbers.items():
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def forget(self, stage: str, after: int) -> None:
        """Drop this stage's log lines beyond the step it resumes from
        (a killed run may have written half a line)."""
        path = self.path("log.jsonl")
        if path.exists() and rank() == 0:
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if (d := json.loads(line))["stage"] != stage or d["step"] <= after]
            write_text(path, "".join(line + "\n" for line in kept))


# Options that may change when a stage resumes: they do not touch its result.
NOT_RESULT = {"out", "stage", "dry_run", "save_every", "tensorboard", "compile", "eval_reports",
              "diffusion_micro", "rl_batch", "rl_micro", "checkpointing", "offload"}


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """A generator that depends on nothing but (seed, stage, step), so no generator state needs saving."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {stage} {step}".encode()))   # it keeps 32 bits


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=step_generator(seed, "order", epoch))


def batch_index(n: int, batch: int, seed: int, step: int) -> Tensor:
    """-> indices: b. The order is a pure function of (seed, epoch) and can be entered at any step."""
    positions = range(step * batch, (step + 1) * batch)
    return torch.stack([permutation(n, seed, p // n)[p % n] for p in positions])


def save_state(run: Run, stage: str, step: int, seconds: float, modules: dict[str, nn.Module], optimizer,
               ema: dict | None) -> None:
    """RUN/state/STAGE.safetensors: weights, AdamW moments, EMA; step and options in its header.
    Renamed when complete. Rank 0 writes for all."""
    if rank():
        return
    tensors = {f"{name}.{k}": v for name, m in modules.items() for k, v in m.state_dict().items()}
    moments = optimizer.state_dict()["state"]
    tensors |= {f"optimizer.{i}.{k}": v for i, s in moments.items() for k, v in s.items()}
    tensors |= {f"ema.{k}": v for k, v in (ema or {}).items()}
    header = {"step": str(step), "seconds": str(seconds), "options": json.dumps(run.options)}
    keep_tensors(run.path("state", f"{stage}.safetensors"), tensors, header)


def load_state(run: Run, stage: str, modules: dict[str, nn.Module], optimizer,
               ema: dict | None) -> tuple[int, float]:
    """-> (steps done, seconds spent), 0 when the stage is new."""
    path = run.path("state", f"{stage}.safetensors")
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
        tensors = load_file(path, device=str(run.device))
    except Exception as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to begin the stage anew") from error
    old = json.loads(header["options"])
    for name, value in run.options.items():
        if name not in NOT_RESULT and old.get(name) != value:
            raise ValueError(f"--{name.replace('_', '-')} {value}: {path} was begun with {old.get(name)!r}; "
                             "give that value, or delete the file to begin the stage anew")
    for name, module in modules.items():
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items()
                                if k.startswith(f"{name}.")})
    parameters, state = [p for group in optimizer.param_groups for p in group["params"]], {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            parameter = parameters[int(i)]
            if value.shape == parameter.shape:   # fused AdamW takes it for granted that the strides agree
                value = torch.empty_like(parameter).copy_(value)
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for key in ema or {}:
        ema[key].copy_(tensors[f"ema.{key}"])
    return int(header["step"]), float(header["seconds"])


# ------------------------------------------------------------------------------------------------ one loop


def learning_rate(step: int, steps: int, peak: float, decay: bool = True) -> float:
    """Linear warm-up over the first 5 % (at most 200 steps), then a cosine to 0, or the peak to the end."""
    warm = max(min(200, steps // 20), 1)
    progress = max(step - warm, 0) / max(steps - warm, 1) if decay else 0.0
    cosine = torch.cos(torch.tensor(torch.pi * progress)).item()
    return peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + cosine)


def adamw(groups: list[dict] | Iterator, lr: float, weight_decay: float = 1e-2):
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)


Loss = Callable[[int, slice], tuple[Tensor, dict[str, Tensor]]]   # of a step, on a part of its batch


def fit(run: Run, stage: str, modules: dict[str, nn.Module], loss: Loss, steps: int,
        lr: float | dict[str, float], batch: int, micro: int | None = None, ema_decay: float = 0.0,
        decay: bool = True) -> None:
    """Minimise loss(step, part) -> (mean over that part of the batch, numbers to report) over the modules'
    parameters; resumes, logs, checkpoints.

    Each rank takes its share of a batch, at most `micro` in one pass. With ema_decay the modules end with the
    moving average of their weights.
    """
    for module in modules.values():
        share_batch_norms(module)
    rates = lr if isinstance(lr, dict) else dict.fromkeys(modules, lr)
    groups = [{"params": [p for p in m.parameters() if p.requires_grad], "peak": rates[name]}
              for name, m in modules.items()]
    parameters, optimizer = [p for group in groups for p in group["params"]], adamw(groups, 0.0)
    ema = None
    if ema_decay:
        ema = {f"{n}.{k}": p.detach().clone() for n, m in modules.items() for k, p in m.named_parameters()}
    begin, before = load_state(run, stage, modules, optimizer, ema)
    run.forget(stage, begin)
    start = saved = time.monotonic()
    bar = tqdm(range(begin, steps), stage, steps, initial=begin, unit="step", mininterval=1.0,
               disable=rank() > 0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"], decay)
        optimizer.zero_grad(set_to_none=True)
        numbers = gradients(loss, step, share(batch), micro or batch)
        average_over_ranks([*(p.grad for p in parameters), *numbers.values()])
        grad_norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if ema is not None:
            keep = min(ema_decay, (step + 1) / (step + 10))
            live = [p.detach() for m in modules.values() for p in m.parameters()]
            torch._foreach_lerp_(list(ema.values()), live, 1 - keep)
        report, save = (step + 1) % 50 == 0 or step + 1 == steps, time.monotonic() - saved > run.save_every
        if report or save:   # the only host syncs of the loop
            if not torch.isfinite(numbers["loss"]):
                raise FloatingPointError(f"{stage}: loss is {numbers['loss'].item()} at step {step}, "
                                         f"seed {run.seed}")
        if report:
            seconds = before + time.monotonic() - start
            run.log(stage, step + 1, time=round(seconds, 2), grad_norm=grad_norm.item(),
                    images_per_second=round((step + 1 - begin) * batch / (time.monotonic() - start), 1),
                    **{k: v.item() for k, v in numbers.items()})
            bar.set_postfix(**{k: f"{v.item():.4f}" for k, v in list(numbers.items())[:3]})
        if save or step + 1 == steps:
            saved = time.monotonic()
            save_state(run, stage, step + 1, before + saved - start, modules, optimizer, ema)
    if ema is not None:
        with torch.no_grad():
            for name, module in modules.items():
                for key, parameter in module.named_parameters():
                    parameter.copy_(ema[f"{name}.{key}"])


def gradients(loss: Loss, step: int, mine: slice, micro: int) -> dict[str, Tensor]:
    """This rank's share of a batch: its gradient stays in the parameters -> loss and other numbers, means."""
    sums: dict[str, Tensor] = {}
    for first in range(mine.start, mine.stop, micro):
        part = slice(first, min(first + micro, mine.stop))
        value, numbers = loss(step, part)
        weight = (part.stop - part.start) / (mine.stop - mine.start)
        (weight * value).backward()
        for name, number in {"loss": value, **numbers}.items():
            sums[name] = sums.get(name, 0) + weight * number.detach()
    return sums
