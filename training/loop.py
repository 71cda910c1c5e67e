"""The loop that every supervised stage shares, and how a run survives being killed at any moment.

Every random number is a pure function of (seed, stage, step); RUN/state/STAGE.safetensors holds weights,
optimizer moments, moving average and step, and is replaced in one rename. The same command then continues
bit for bit (CPU, fp32).
"""
import dataclasses
import functools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rewards import Rewards
from storage.command import stoppable
from storage.files import append_line, keep_tensors, read_text, to_json, write_text
from storage.weights import read_kept
from training.ranks import average_over_ranks, rank, share, share_batch_norms

# ------------------------------------------------------------------------------------------------ run folder


@dataclasses.dataclass
class Run:
    """The run folder, and what every stage needs."""
    folder: Path
    options: dict        # every flag's value, as written to config.json
    device: torch.device
    seed: int
    save_every: float

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def log(self, stage: str, step: int, **numbers: float) -> None:
        if rank() == 0:
            append_line(self.path("log.jsonl"), to_json({"stage": stage, "step": step, **numbers}))

    def forget(self, stage: str, after: int) -> None:
        """Drop what this stage logged beyond the step it resumes from, and at its end (without a time)."""
        path = self.path("log.jsonl")
        if path.exists() and rank() == 0:
            kept = [line for line in read_log(path)
                    if line["stage"] != stage or (line["step"] <= after and "time" in line)]
            write_text(path, "".join(to_json(line) + "\n" for line in kept))


def read_log(path: Path) -> list[dict]:
    """The lines of a log.jsonl. A line that a kill cut short, the last, is left out; others that are none of
    a log's raise ValueError."""
    lines, found = (read_text(path) if os.path.lexists(path) else "").split("\n"), []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["stage"], str) or not isinstance(entry["step"], int):
                raise TypeError("no stage, or no step")
            found.append(entry)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            if number < len(lines) or not '{"stage": "'.startswith(line[:11]):
                raise ValueError(f"{path}: line {number} is none of a log, {line[:60]!r} ({error}); "
                                 "mend the file, or move it away") from error
    return found


# Options that may change when a stage resumes: they do not touch its result, or data_digest speaks for them.
NOT_RESULT = {"out", "stage", "dry_run", "save_every", "compile", "eval_reports", "data", "sample_steps",
              "diffusion_micro", "rl_batch", "rl_micro", "checkpointing", "offload"}
ORIGIN = ("preset", "data_digest", "seed", "fit", "prompt", "init", "init_digest", "finetune", "diagnosis",
          "diagnosis_digest", "consistency", "consistency_digest", "train_images")   # of all stages
# By the first word of an option's name, the stage whose result it shapes; all others shape RL's.
STAGE_OF = {"vae": "vae", "text": "diffusion", "diffusion": "diffusion", "ema": "diffusion",
            "prompt": "diffusion", "finetune": "diffusion", "reward": "rewards"}
# Stage -> its parts, each with a state file of its own; stages come in this order.
PARTS_OF = {"vae": ["vae"], "diffusion": ["text", "diffusion"],
            "rewards": [net.name for net in dataclasses.fields(Rewards)], "rl": ["rwr", "rl"]}
ANEW = "give that value, or delete it to begin the stage anew"
QUICK = 2**28   # bytes of a checkpoint that is written in well under a second


def stage_of(option: str) -> str:
    return STAGE_OF.get(option.split("_")[0], "rl")


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


def quick(modules: dict[str, nn.Module]) -> bool:
    """Whether a checkpoint (weights, their average, two moments) costs next to nothing."""
    return 4 * 4 * sum(p.numel() for m in modules.values() for p in m.parameters()) < QUICK


def save_state(run: Run, stage: str, step: int, seconds: float, modules: dict[str, nn.Module], optimizer,
               ema: dict | None) -> None:
    """RUN/state/STAGE.safetensors: weights, moments, EMA; step and options in its header.
    Renamed when complete. Rank 0 writes for all."""
    if rank():
        return
    header = {"stage": stage, "step": str(step), "seconds": str(seconds), "options": json.dumps(run.options)}
    keep_tensors(run.path("state", f"{stage}.safetensors"), live_state(modules, optimizer, ema), header)


def live_state(modules: dict[str, nn.Module], optimizer, ema: dict | None) -> dict[str, Tensor]:
    """What a stage changes, by the names of its state file: the tensors themselves, which loading fills"""
    tensors = {f"{name}.{k}": v for name, m in modules.items() for k, v in m.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in (ema or {}).items()}
    moments = optimizer.state_dict()["state"]
    return tensors | {f"optimizer.{i}.{k}": v for i, own in moments.items() for k, v in own.items()}


def refuse_another(name: str, old: dict, new: dict, path: Path, advice: str) -> None:
    """Raise ValueError where an option of `path` was another; a path may be spelled in many ways."""
    before, now = old.get(name), new[name]
    if (digest := old.get(f"{name}_digest")) and digest == new.get(f"{name}_digest"):
        return   # moved, but the same files
    spelled = isinstance(before, str) and isinstance(now, str)
    if before == now or spelled and os.path.realpath(before) == os.path.realpath(now):
        return
    if name == "data_digest":
        why = ("chests/phantom.py has changed, or what it draws" if new["data"] == "phantom" else
               "or are read otherwise now; images of a large set go by size and time: cp -p keeps them")
        raise ValueError(f"--data {new['data']}: its images, reports or labels are not those that {path} was "
                         f"begun with ({why}); {advice}")
    if name.endswith("_digest"):
        flag = name.removesuffix("_digest")
        raise ValueError(f"--{flag} {new[flag]}: its files are not those that {path} was begun with; "
                         f"{advice}")
    flag = name.replace("_", "-")
    if isinstance(now, bool):
        raise ValueError(f"--{flag if now else f'no-{flag}'}: {path} was begun with the other; {advice}")
    raise ValueError(f"--{flag} {now}: {path} was begun with {before!r}; {advice}")


def load_state(run: Run, stage: str, modules: dict[str, nn.Module], optimizer,
               ema: dict | None) -> tuple[int, float]:
    """-> (steps done, seconds spent), 0 when the stage is new."""
    path = run.path("state", f"{stage}.safetensors")
    if not os.path.lexists(path):
        return 0, 0.0
    try:
        tensors, header = read_kept(path)
        step, seconds, old = int(header["step"]), float(header["seconds"]), json.loads(header["options"])
        if header["stage"] != stage or step < 0 or not seconds >= 0 or not isinstance(old, dict):
            raise ValueError(f"its header is none of stage {stage}")
        live = live_state(modules, optimizer, ema)
        found, wanted = ({k: f"{v.dtype} {list(v.shape)}" for k, v in t.items()} for t in (tensors, live))
        for key, _ in sorted(found.items() ^ wanted.items()):
            raise ValueError(f"{key} is {found.get(key)}, expected {wanted.get(key)}")
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or of another kind ({error}); delete it to begin the stage "
                         "anew") from error
    own = next((i for i, parts in enumerate(PARTS_OF.values()) if stage in parts), len(PARTS_OF))
    earlier = [*PARTS_OF][:own + 1]   # what a later stage will be made with does not matter yet
    for name in run.options:
        if name in ORIGIN or name not in NOT_RESULT and stage_of(name) in earlier:
            refuse_another(name, old, run.options, path, ANEW)
    with torch.no_grad():
        for key, value in live.items():
            value.copy_(tensors[key])
    return step, seconds


# ------------------------------------------------------------------------------------------------ one loop


def learning_rate(step: int, steps: int, peak: float, decay: bool = True) -> float:
    """Linear warm-up over the first 5 % (at most 200 steps), then a cosine to 0, or the peak to the end."""
    warm = max(min(200, steps // 20), 1)
    progress = max(step - warm, 0) / max(steps - warm, 1) if decay else 0.0
    cosine = torch.cos(torch.tensor(torch.pi * progress)).item()
    return peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + cosine)


STRIDE = 4.0   # Muon's step, in AdamW's


def turned(p: Tensor, group: dict) -> bool:
    """Whether Muon moves this parameter: a weight matrix, or a convolution's, of a group marked so"""
    return group.get("muon", False) and p.ndim >= 2


class Muon(torch.optim.AdamW):
    """AdamW, but for the matrices of groups marked `muon`. They move by their momentum, made orthogonal, so
    that all directions are learned alike fast (Jordan et al. 2024), STRIDE times as far as AdamW would move
    them (Liu et al. 2025, arXiv 2502.16982)."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            sizes: dict[tuple[int, int], list[Tensor]] = {}
            for p in (p for p in group["params"] if turned(p, group) and p.grad is not None):
                sizes.setdefault((len(p), p.numel() // len(p)), []).append(p)
            for size, same in sizes.items():   # together, for many small products take long one by one
                gradients, momenta = [p.grad for p in same], [self.state[p]["exp_avg"] for p in same]
                torch._foreach_lerp_(momenta, gradients, 0.05)
                torch._foreach_lerp_(gradients, momenta, 0.95)   # Nesterov's momentum
                turns = orthogonal(torch.stack([ahead.flatten(1) for ahead in gradients]))
                turns *= group["lr"] * STRIDE * 0.2 * max(size) ** 0.5
                torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(same, [turn.view(p.shape) for turn, p in zip(turns, same, strict=True)])
                for p in same:
                    p.grad = None   # nothing left for AdamW
        super().step()


def orthogonal(x: Tensor) -> Tensor:
    """b n m -> b n m: singular values from 0.7 to 1.2 in place of all that are not much smaller than a
    matrix's largest.

    Five steps of X <- (a + b X X^T + c (X X^T)^2) X. All factors are polynomials of the first X X^T: they are
    multiplied among themselves, which are small, and with X once.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram, factor = x.bmm(x.mT), None
    for _ in range(5):
        now = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        now.diagonal(dim1=1, dim2=2).add_(3.4445)
        factor = now if factor is None else now.bmm(factor)
        gram = now.bmm(gram).bmm(now)
    return factor.bmm(x)


def make_optimizer(groups: list[dict] | Iterator, lr: float, weight_decay: float = 1e-2) -> Muon:
    """Groups that are not marked `muon` get plain AdamW. Moments are there from the start, laid out as their
    parameters, so that those of a state file need only be copied."""
    optimizer = Muon(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            moments = ["exp_avg"] if turned(p, group) else ["exp_avg", "exp_avg_sq"]
            optimizer.state[p] = {"step": torch.zeros((), device=p.device),
                                  **{name: torch.zeros_like(p) for name in moments}}
    return optimizer


Loss = Callable[[int, slice], tuple[Tensor, dict[str, Tensor]]]   # of a step, on a part of its batch


def fit(run: Run, stage: str, modules: dict[str, nn.Module], loss: Loss, steps: int,
        lr: float | dict[str, float], batch: int, micro: int | None = None, ema_decay: float = 0.0,
        decay: bool = True, muon: bool = True) -> None:
    """Minimise loss(step, part) -> (mean over that part of the batch, numbers to report) over the modules'
    parameters; resumes, logs, checkpoints.

    Each rank takes its share of a batch, at most `micro` in one pass. With ema_decay the modules end with the
    moving average of their weights. muon: it moves their matrices, c_s apart.
    """
    for module in modules.values():
        share_batch_norms(module)
    rates = lr if isinstance(lr, dict) else dict.fromkeys(modules, lr)
    groups = [{"params": [p for p in m.parameters() if p.requires_grad], "peak": rates[name],
               "muon": muon and name != "ace"} for name, m in modules.items()]
    parameters, optimizer = [p for group in groups for p in group["params"]], make_optimizer(groups, 0.0)
    live = {f"{n}.{k}": p.detach() for n, m in modules.items() for k, p in m.named_parameters()}
    ema = {key: p.clone() for key, p in live.items()} if ema_decay else None
    begin, before = load_state(run, stage, modules, optimizer, ema)
    run.forget(stage, begin)
    start = saved = time.monotonic()
    bar = tqdm(range(begin, steps), stage, steps, initial=begin, unit="step", mininterval=1.0,
               disable=rank() > 0)
    with stoppable() as stopped:
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
                torch._foreach_lerp_([*ema.values()], [*live.values()], 1 - keep)
            stop, last = stopped(), step + 1 == steps
            report = (step + 1) % 50 == 0 or last
            save = last or time.monotonic() - saved > run.save_every or (stop and quick(modules))
            if (report or save) and not torch.isfinite(numbers["loss"]):   # the only host syncs of the loop
                raise FloatingPointError(f"{stage}: loss is {numbers['loss'].item()} at step {step}, "
                                         f"seed {run.seed}")
            if report:
                seconds = time.monotonic() - start
                run.log(stage, step + 1, time=round(before + seconds, 2), grad_norm=grad_norm.item(),
                        images_per_second=round((step + 1 - begin) * batch / seconds, 1),
                        **{k: v.item() for k, v in numbers.items()})
                bar.set_postfix(**{k: f"{v.item():.4f}" for k, v in list(numbers.items())[:3]})
            if save:
                saved = time.monotonic()
                save_state(run, stage, step + 1, before + saved - start, modules, optimizer, ema)
            if stop:
                break
    if ema is not None:
        torch._foreach_copy_([*live.values()], [*ema.values()])


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
