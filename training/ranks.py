"""Processes that share the work, under torchrun; alone, a process is rank 0 of 1 and nothing is sent.

Every rank takes its share of a batch, and gradients are averaged (training/loop.py): where a loss is a mean
over images, that is the gradient of the whole batch. What mixes the images of a batch, batch norms and
contrastive losses, reaches over all ranks by share_batch_norms and gather_from_ranks.
"""
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

MESSAGE = 2**26   # numbers in one message, 256 MB


def start_ranks() -> torch.device:
    """Join the other processes of torchrun, if it started this one -> this rank's device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(f"torchrun's process {local}: this machine has {torch.cuda.device_count()} GPUs, "
                         "one for each process; CUDA_VISIBLE_DEVICES= hides them, for the CPU")
    if "RANK" in os.environ and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(local)
        # Long, for the others wait while rank 0 works alone: data, calibration, evaluation.
        hook = sys.excepthook   # torch wraps it, and loses what a hook says that then exits (command.begin)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=2))
        sys.excepthook = hook
        if rank():   # rank 0 speaks for all
            sys.stdout = open(os.devnull, "w")
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def whole_job() -> Iterator[None]:
    """OSError where another of the processes has ended."""
    try:
        yield
    except RuntimeError as error:   # gloo's and NCCL's; the first has no class of its own
        if not isinstance(error, dist.DistError) and "Connection" not in str(error):
            raise
        raise OSError(f"another process of this job has ended ({str(error).splitlines()[0]})") from error


def wait_for_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()


def share(batch: int) -> slice:
    """This rank's part of a batch, which is a multiple of the ranks (options.check_shares)."""
    return slice(rank() * batch // ranks(), (rank() + 1) * batch // ranks())


def reduce_over_ranks(tensors: list[Tensor], op=dist.ReduceOp.SUM) -> None:
    """Sum (or min, max) over all ranks, in place: tensors of one type, many in one message of MESSAGE numbers
    or little more."""
    if ranks() == 1:
        return
    while tensors:
        sizes = itertools.accumulate(t.numel() for t in tensors)
        many = sum(size <= MESSAGE for size in sizes) + 1
        part, tensors = tensors[:many], tensors[many:]
        flat = torch.cat([t.flatten() for t in part])
        dist.all_reduce(flat, op)
        for t, values in zip(part, flat.split([t.numel() for t in part]), strict=True):
            t.copy_(values.view_as(t))


def average_over_ranks(tensors: list[Tensor]) -> None:
    if ranks() > 1:
        reduce_over_ranks(tensors)
        torch._foreach_div_(tensors, ranks())


def gather_from_ranks(x: Tensor) -> Tensor:
    """b ... -> ranks*b ..., in the order of the ranks

    With gradient, if what follows is the same on all ranks: times their number, for gradients are averaged.
    """
    if ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    if x.requires_grad:
        parts[rank()] = x.view_as(x)
        parts[rank()].register_hook(lambda gradient: ranks() * gradient)
    return torch.cat(parts)


def share_batch_norms(net: nn.Module) -> None:
    """In training, the network's batch norms see the images of all ranks."""
    for norm in net.modules() if ranks() > 1 else ():
        if isinstance(norm, nn.BatchNorm2d):
            norm.forward = functools.partial(batch_norm, norm)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """b c h w -> b c h w, normalised by mean and variance over all ranks"""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x)
    mean = all_reduce(x.mean((0, 2, 3), keepdim=True)) / ranks()
    variance = all_reduce(((x - mean) ** 2).mean((0, 2, 3), keepdim=True)) / ranks()
    with torch.no_grad():
        n = ranks() * x.numel() // x.shape[1]
        norm.running_mean.lerp_(mean.flatten(), norm.momentum)
        norm.running_var.lerp_(variance.flatten() * n / (n - 1), norm.momentum)
        norm.num_batches_tracked += 1
    x = (x - mean) * (variance + norm.eps).rsqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]
