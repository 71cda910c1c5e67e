"""Pretrained folders, as diffusers and transformers write them: config.json beside safetensors.

Read strictly: every tensor must be there, with its shape, and finite; a key of config.json that would change
the computation and is not supported is refused; pickles are never opened.
"""
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from storage.files import keep_tensors, naming, read_json, write_json


def is_count(value: object) -> bool:
    """A width, a number of layers or tokens ...: above 0, and none that no network has."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**24


def require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def read_config(folder: Path | str, kind: type, fixed: dict):
    """FOLDER/config.json -> a dataclass of `kind`; `fixed`: keys that change the computation, with the only
    value that is supported. Keys that change nothing are ignored."""
    path = Path(folder) / "config.json"
    return parse_config(read_json(path), kind, fixed, path)


def parse_config(raw: dict, kind: type, fixed: dict, path: Path | str):
    """The same of an object that has been read, from `path`."""
    require(isinstance(raw, dict), str(path), raw, "a JSON object")
    for key, only in fixed.items():
        value = raw.get(key, only)
        values = value if isinstance(value, list) else [value]       # some keys may have one entry a level
        if not values or any((v or None) != (only or None) for v in values):   # null, false, 0: not used
            raise ValueError(f"{path}: {key} is {value!r}, but only {only!r} is supported")
    values = {f.name: raw[f.name] for f in fields(kind) if f.name in raw}
    with naming(f"{path}: ", ValueError, TypeError):
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def read_weights(folder: Path | str, stem: str) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a folder, from one file or from the shards of an index; full precision first."""
    folder = Path(folder)
    for variant in ("", ".fp16", ".bf16"):
        whole = folder / f"{stem}{variant}.safetensors"
        indices = [folder / f"{stem}.safetensors.index{variant}.json",
                   folder / f"{stem}{variant}.safetensors.index.json"]   # until diffusers 0.32
        for index in filter(Path.is_file, indices):
            if whole.is_file():   # diffusers reads one of them, transformers the other
                raise ValueError(f"{index}: {whole.name} is there as well; delete what is not meant")
            try:
                names = {Path(name).name for name in read_json(index)["weight_map"].values()}
            except (KeyError, AttributeError, TypeError) as error:
                raise ValueError(f"{index}: not an index of weight files: {error!r}") from error
            return {k: v for name in sorted(names) for k, v in read_kept(folder / name)[0].items()}, index
        if whole.is_file():
            return read_kept(whole)[0], whole
    for pickle in sorted(folder.glob("*.bin")):
        raise ValueError(f"{pickle}: a pickle, which may run any code when read; convert it to safetensors")
    raise ValueError(f"{folder}: no {stem}.safetensors in it")


def read_kept(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file -> its tensors and its header."""
    # Exceptions of every kind: safetensors raises its own, and torch others for types that it lacks.
    with naming(f"{path}: missing, truncated, damaged or not a safetensors file: ", Exception):
        if not path.is_file():
            raise FileNotFoundError("no such file" if not path.exists() else "not a regular file")
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def check_numbers(weights: dict[str, Tensor]) -> None:
    """Raise ValueError unless all are finite floating-point numbers (but for what batch norms count)."""
    for key, value in weights.items():
        sound = value.is_floating_point() and bool(value.isfinite().all())
        if not sound and not key.endswith("num_batches_tracked"):
            raise ValueError(f"{key} is {value.dtype} or has values that are not finite numbers")


def digest(modules: Iterable[nn.Module], facts: object) -> str:
    """16 hex characters of some numbers of every tensor, for training changes all, and of what else counts"""
    some = [t.flatten()[:64].float().cpu() for module in modules for t in module.state_dict().values()]
    key = hashlib.sha256(torch.cat(some).numpy().tobytes())
    key.update(json.dumps(facts, sort_keys=True).encode())
    return key.hexdigest()[:16]


class Undrawn(TorchFunctionMode):
    """Networks built inside are not initialised: drawing Gaussians on `meta` imports torch's compiler, which
    takes two seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def load_strict(build: Callable[[], nn.Module], weights: dict[str, Tensor], path: Path) -> nn.Module:
    """-> the model that build() makes, with these weights, as float32. Every tensor must be there, with its
    shape, and finite."""
    with torch.device("meta"), Undrawn():   # all of it is replaced at once
        model = build()
    expected = model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"{path}: {missing[0]} is missing ({len(missing)} tensors in all)")
    if extra := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{path}: {extra[0]} has no place in this model ({len(extra)} tensors in all)")
    for key, value in weights.items():
        shape, wanted = list(value.shape), list(expected[key].shape)
        if shape != wanted:
            raise ValueError(f"{path}: {key} has shape {shape}, but config.json says {wanted}")
        # A copy, not the mapped file: own memory is aligned the same in every run, and the file may go.
        weights[key] = value.to(torch.float32, copy=True)
        if not value.is_floating_point() or not weights[key].isfinite().all():
            raise ValueError(f"{path}: {key} is {value.dtype} or has values that are not finite numbers")
    model.load_state_dict(weights, assign=True)
    return model


def write_folder(folder: Path | str, weights: dict[str, Tensor], stem: str, config: dict) -> None:
    """Weights, then config.json."""
    keep_tensors(Path(folder) / f"{stem}.safetensors", weights, {"format": "pt"})
    write_json(Path(folder) / "config.json", config)
