"""Estimate, without a GPU, of the GPU memory that an RL round needs at Stable Diffusion's sizes.

    python benchmarks/memory.py [--case pathwise-lora pathwise-full score-lora score-full]   # a minute each

The round's own code (rl.py) runs on fake tensors, which have shapes and types but no numbers. Every operation
passes a dispatch mode that adds up the bytes of the storages alive; the largest sum of each phase is printed.
Counted are weights, gradients, optimizer state, autocast's copies, activations and trajectories. As on CUDA,
networks run under bf16 autocast, norms compute in float32, attention keeps no matrix of scores and AdamW is
fused. Not counted: the CUDA context, workspaces of cuDNN and cuBLAS, fragmentation: leave 1 to 2 GiB to them.
"""
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storage import command

if __name__ == "__main__":   # before the imports below, which take seconds
    command.begin("the same command begins anew")

import torch
import torch.nn.functional as F
from gpu import REPORT, random_pipeline, random_rewards
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import rl
import sample
from rewards import NAMES
from training import loop, options
from training.plan import LiveBytes, branches
from vae import at_once

CPU, GIB = torch.device("cpu"), 2**30
ROLLOUT, PICTURES = rl.rollout, rl.pictures
# 256 images a round, 50 steps, guidance 4, as with --preset sd15.
CASES = {f"{gradient}-{name}": {"gradient": gradient, "rlcf": gradient == "score", "lora_rank": rank,
                                "checkpointing": True, "offload": True, "rl_batch": 8, "rl_micro": 2,
                                "rollout_steps": 50}
         for gradient in ("pathwise", "score") for name, rank in (("lora", 4), ("full", 0))}


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """bf16 autocast on the CPU, with CUDA's rule that norms cast their input to float32, and as many images
    decoded at a time as there."""
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
                                    (sample, "at_once", lambda side, _: at_once(side, torch.device("cuda"))),
                                    (F, "group_norm", in_float32(F.group_norm)),
                                    (F, "layer_norm", in_float32(F.layer_norm))]:
            stack.enter_context(patch.object(target, name, value))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
        torch.backends.mha.set_fastpath_enabled(fast)


class OneRank(LiveBytes):
    """LiveBytes, and every pair of an update is this rank's: a mask that picks some has no numbers here, nor
    has the size of the longest report."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index.Tensor and getattr(args[1][0], "dtype", None) == torch.bool:
            return args[0]
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 64
        return super().__torch_dispatch__(func, types, args, kwargs)


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


def rollout(policy: sample.Pipeline, *args) -> rl.Rollout:
    """rl.rollout with most of its equal network calls left out."""
    *_, noise, sampling, _, micro = args
    unet = getattr(policy.unet, "unet", policy.unet)                   # of an anchor that is a LoRA's
    calls = -(-len(noise) // micro) * (noise.shape[1] - 1)
    with only_last(unet, "forward", calls,
                   lambda x: torch.zeros_like(x, dtype=torch.bfloat16).repeat(branches(sampling), 1, 1, 1)):
        return ROLLOUT(policy, *args)


def pictures(policy: sample.Pipeline, latents: torch.Tensor, micro: int) -> torch.Tensor:
    """rl.pictures with all but the last decoding left out."""
    def picture(z: torch.Tensor) -> torch.Tensor:
        vae = policy.vae.config
        return torch.zeros(len(z), vae.out_channels, *(vae.factor * n for n in z.shape[2:]))

    with only_last(policy, "decode", -(-len(latents) // micro), picture):
        return PICTURES(policy, latents, micro)


@contextmanager
def offloaded(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    for module in modules:
        if isinstance(module, nn.Module):                              # not a method that is patched here
            module.to("meta")                                          # not on the GPU: not counted
    yield


def peaks(sizes: options.Preset, config: rl.RLConfig, sampling: sample.SampleConfig,
          live: LiveBytes) -> dict[str, int]:
    """Peak bytes of each phase of rl_round on `config.reports * config.group` images, with two updates: from
    the second on there are AdamW's moments. 0: there is no such phase."""
    b = config.reports * config.group
    found = dict.fromkeys(("weights", "rollout", "anchor's rollout", "rewards", "update"), 0)

    def measured(phase: str, work: Callable) -> Callable:
        def call(first, *args):
            live.peak = live.now
            result = work(first, *args)
            name = "anchor's rollout" if first is anchor else phase
            found[name] = max(found[name], live.peak)
            return result
        return call

    pipe = random_pipeline(sizes, CPU)
    nets = random_rewards(sizes, pipe.tokenizer, CPU)
    if config.lora_rank:
        pipe.unet.to(torch.bfloat16)                                   # as start_policy does on CUDA
    with patch.object(rl.Pipeline, "load", lambda folder, device: pipe):
        pipe, anchor, _, groups = rl.start_policy(Path(), CPU, config)
    start, optimizer = rl.freeze(pipe), loop.make_optimizer(groups, 1e-6)
    found["weights"], nets.scores = live.now, measured("rewards", nets.scores)
    scorings = 1 + config.rlcf + len(rl.valued_states(config))
    with (only_last(nets, "scores", scorings, lambda x: dict.fromkeys(NAMES, torch.zeros(len(x)))),
          patch.multiple(rl, rollout=measured("rollout", rollout), pictures=pictures, offloaded=offloaded,
                         update=measured("update", rl.update), summarise=lambda *args: {},
                         seeded_noise=lambda seeds, n, shape: torch.zeros(len(seeds), n + 1, *shape),
                         flat_pairs=lambda *args: 2 * [torch.arange(config.rl_micro)])):
        rl.rl_round(pipe, anchor, start, nets, [REPORT] * b, list(range(b)), sampling, config, optimizer)
    return found


def estimate(sizes: options.Preset, config: rl.RLConfig, sampling: sample.SampleConfig) -> dict[str, int]:
    """Peak bytes of each phase, without allocating any."""
    zeros = patch.object(FakeTensor, "tolist", lambda x: [0] * len(x))     # which reports: any of equal ones
    with as_on_cuda(), zeros, FakeTensorMode(), OneRank() as live:
        return peaks(sizes, config, sampling, live)


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args(argv)
    sampling = sample.SampleConfig(guidance=4.0)
    print("Estimate, not measured: GiB of live tensors on the GPU in each phase of an RL round; sd15, "
          f"512 px, 256 images, 50 steps, guidance 4; torch {torch.__version__}\n")
    for number, case in enumerate(args.case):
        found = estimate(options.preset("sd15"), rl.RLConfig(**CASES[case]), sampling)
        found["peak"] = max(found.values())
        if number == 0:
            print(f"| case | {' | '.join(found)} |\n" + "|---" * (len(found) + 1) + "|")
        cells = (f"{v / GIB:.1f}" if v else "" for v in found.values())
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
