"""Processes that share the work, under torchrun; alone, a process is rank 0 of 1 and nothing is sent."""
import itertools
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

MESSAGE = 2**26   # numbers in one message, 256 MB


def start_ranks() -> torch.device:
    """Join the other processes of torchrun, if it started this one -> this rank's device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if "RANK" in os.environ and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(local)
        # Long, for the others wait while rank 0 works alone on the supervised stages.
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=2))
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()


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


def gather_from_ranks(x: Tensor) -> Tensor:
    """b ... -> ranks*b ..., in the order of the ranks"""
    if ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
