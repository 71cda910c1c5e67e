"""Estimate, without a GPU, of the GPU memory that an RL round needs at Stable Diffusion's sizes.

    python benchmarks/memory.py [--case lora lora-plain full full-plain]   # a minute of CPU time a case

The round's own code (rl.py) runs on fake tensors, which have shapes and types but no numbers. Every operation
passes a dispatch mode that adds up the bytes of the storages alive; the largest sum of each phase is printed.
Counted are weights, gradients, optimizer state, autocast's copies, activations and trajectories. As on CUDA,
networks run under bf16 autocast, norms compute in float32, attention keeps no matrix of scores and AdamW is
fused. Not counted: the CUDA context, workspaces of cuDNN and cuBLAS, fragmentation: leave 1 to 2 GiB to them.
"""
import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from gpu import REPORT, random_pipeline, random_rewards  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import rl  # noqa: E402
import sample  # noqa: E402
from training import loop, options  # noqa: E402
from training.plan import LiveBytes  # noqa: E402

CPU, GIB = torch.device("cpu"), 2**30
README = {"rl_batch": 8, "rl_micro": 2}      # with 256 images a round, 50 steps, guidance 4, as in README
CASES = {
    "lora": README | {"lora_rank": 4, "checkpointing": True, "offload": True},
    "lora-plain": README | {"lora_rank": 4},
    "full": README | {"checkpointing": True, "offload": True},
    "full-plain": README,
}


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """bf16 autocast on the CPU, with CUDA's rule that norms cast their input to float32."""
    def autocast(device: torch.device):
        return torch.autocast("cpu", torch.bfloat16)

    def in_float32(norm: Callable) -> Callable:
        def wide(x, size, weight=None, bias=None, eps=1e-5):
            if torch.is_autocast_enabled("cpu"):
                x, weight, bias = x.float(), weight.float(), bias.float()
            return norm(x, size, weight, bias, eps)
        return wide

    def to(module: nn.Module, target: torch.device | torch.dtype | str = CPU,
           memory_format: torch.memory_format | None = None) -> nn.Module:   # which changes no size
        for part in module.modules():        # Module.to swaps tensors, which fake ones do not survive
            for name, p in part.named_parameters(recurse=False) if target != CPU else ():
                part.register_parameter(name, nn.Parameter(p.detach().to(target), p.requires_grad))
            for name, b in part.named_buffers(recurse=False) if target != CPU else ():
                part.register_buffer(name, b.to(target))
        return module

    with ExitStack() as stack:
        one_mode = patch.object(FakeTensorMode, "__deepcopy__", lambda self, memo: self, create=True)
        stack.enter_context(one_mode)
        for target, name, value in [(nn.Module, "to", to), (sample, "autocast", autocast),
                                    (rl, "autocast", autocast),
                                    (F, "group_norm", in_float32(F.group_norm)),
                                    (F, "layer_norm", in_float32(F.layer_norm))]:
            stack.enter_context(patch.object(target, name, value))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def only_last(module: object, name: str, calls: int, result: Callable) -> Iterator[None]:
    """Of `calls` equal calls of a method only the last, when most else is alive, is computed: saves time."""
    method, count = getattr(module, name), iter(range(1, calls + 1))

    def call(x, *args):
        return method(x, *args) if next(count) == calls else result(x)

    setattr(module, name, call)
    yield
    delattr(module, name)
    assert next(count, None) is None, f"{name} was called less than {calls} times"


def rollout(pipe: sample.Pipeline, cond: torch.Tensor, uncond: torch.Tensor, noise: torch.Tensor,
            sampling: sample.SampleConfig, trained: int, valued: list[int], batch: int) -> rl.Rollout:
    """rl.rollout with most of its equal network calls left out."""
    calls = -(-len(noise) // batch) * (noise.shape[1] - 1)
    unet = getattr(pipe.unet, "unet", pipe.unet)                       # of an anchor without its LoRA

    def noise_like(x):
        return torch.empty_like(x, dtype=torch.bfloat16)

    pictures = rl.pictures
    with (only_last(unet, "forward", calls, noise_like),
          patch.object(rl, "pictures", lambda *args: last_picture(pictures, *args))):
        return rl.rollout(pipe, cond, uncond, noise, sampling, trained, valued, batch)


def last_picture(pictures: Callable, pipe: sample.Pipeline, latents: torch.Tensor,
                 batch: int) -> torch.Tensor:
    """rl.pictures with all but the last decoding left out."""
    def picture(z):
        vae = pipe.vae.config
        return torch.empty(len(z), vae.out_channels, *(vae.factor * n for n in z.shape[2:]))

    with only_last(pipe, "decode", -(-len(latents) // batch), picture):
        return pictures(pipe, latents, batch)


def peaks(sizes: options.Preset, config: rl.RLConfig, sampling: sample.SampleConfig,
          live: LiveBytes) -> dict[str, int]:
    """Peak bytes of each phase of a round of `config.reports * config.group` images, in rl_round's order."""
    b, steps, group = config.reports * config.group, sampling.sample_steps, config.group
    pipe = random_pipeline(sizes, CPU)
    if config.lora_rank:
        pipe.unet.to(torch.bfloat16)                                   # as start_policy does on CUDA
    with patch.object(rl.Pipeline, "load", lambda folder, device: pipe):
        pipe, anchor, _, groups = rl.start_policy(Path(), CPU, config)
    nets = random_rewards(sizes, pipe.tokenizer, CPU)
    optimizer = loop.adamw(groups, 1e-6)
    found, trained = {"weights": live.now}, rl.trained_steps(steps, config)
    with patch.object(rl, "seeded_noise", lambda s, n, shape: torch.empty(len(s), n + 1, *shape)):
        noise, anchor_noise = rl.round_noise(pipe, list(range(b)), steps, trained, config)
    with torch.no_grad(), rl.autocast(CPU):
        *c_report, c_empty = pipe.embed([REPORT] * config.reports + [""]).float()
        c_report = torch.stack(c_report)
        c_p = c_report.repeat_interleave(group, 0)
        cond, uncond = pipe.condition(c_p, c_empty)
    ro, found["rollout"] = live.phase(lambda: rollout(
        pipe, cond, uncond, noise, sampling, trained, rl.valued_states(trained, config), config.rl_batch))
    _, found["anchor's rollout"] = live.phase(lambda: rollout(
        anchor, c_report, c_empty, anchor_noise, sampling, 1, [], config.rl_batch).images)
    _, found["rewards"] = live.phase(lambda: nets.scores(                  # of a promise, beside the ends
        last_picture(rl.pictures, pipe, ro.promises[0], config.rl_batch), [REPORT] * b))
    if config.offload:
        for module in (pipe.text, pipe.vae, *vars(nets).values()):
            module.to("meta")                                          # not on the GPU: not counted
    pairs, advantage = torch.arange(2 * config.rl_micro), torch.zeros(b, trained)

    for parameter in (p for g in groups for p in g["params"]):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()                                                   # AdamW's state exists from now on
    _, found["update"] = live.phase(lambda: rl.update(
        pipe, anchor, ro, advantage, c_p, c_empty, pairs, len(pairs), sampling, config, optimizer))
    return found


def estimate(sizes: options.Preset, config: rl.RLConfig, sampling: sample.SampleConfig) -> dict[str, int]:
    """Peak bytes of each phase, without allocating any."""
    with as_on_cuda(), FakeTensorMode(), LiveBytes() as live:
        return peaks(sizes, config, sampling, live)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args(argv)
    sampling = sample.SampleConfig(sample_steps=50, guidance=4.0)
    print("Estimate, not measured: GiB of live tensors on the GPU in each phase of an RL round; sd15, "
          f"512 px, 256 images, 50 steps, guidance 4; torch {torch.__version__}\n")
    for number, case in enumerate(args.case):
        found = estimate(options.preset("sd15"), rl.RLConfig(**CASES[case]), sampling)
        found["peak"] = max(found.values())
        if number == 0:
            print(f"| case | {' | '.join(found)} |\n" + "|---" * (len(found) + 1) + "|")
        print(f"| {case} | " + " | ".join(f"{v / GIB:.1f}" for v in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
