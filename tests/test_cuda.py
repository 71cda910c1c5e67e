"""On a GPU, where there is one: all stages in bf16, RL in each way; what it draws is what the CPU draws."""
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMOKE, command

from storage.pictures import read_png

pytestmark = pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no GPU here")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "run"
    done = command("train.py", "--out", folder, *SMOKE, gpus="0")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_whole_run(run):
    """Every stage ends on the GPU, and every figure of the evaluation is a number."""
    result = json.loads((run / "evaluation.json").read_text())
    assert "cpu" not in result["device"]
    assert all(math.isfinite(result[row]["fid"]["value"]) for row in ("real", "anchor", "cxrl"))


@pytest.mark.parametrize("flags", [("--compile",), ("--compile", "--gradient", "score"),
                                   ("--gradient", "score", "--guidance", "4", "--rl-micro", "3"),
                                   ("--lora-rank", "4", "--checkpointing", "--offload", "--guidance", "2")])
def test_reinforcement_learning_in_each_way(run, tmp_path, flags):
    """RL from the run's anchor, the UNets compiled, with the paper's estimator, or as at Stable Diffusion's
    size: each ends. (That rollout and update agree is shown on the CPU, where nothing is counted anew.)"""
    left_out = shutil.ignore_patterns("cxrl", "rl.safetensors", "rwr.safetensors")
    folder = shutil.copytree(run, tmp_path / "again", ignore=left_out)
    done = command("train.py", "--out", folder, "--stage", "rl", *SMOKE, *flags, gpus="0")
    assert done.returncode == 0, done.stderr
    assert (folder / "cxrl" / "model_index.json").exists()


def test_pictures_are_the_cpus(run, tmp_path):
    """Noise is drawn on the CPU, for each image from its seed: the GPU's differ by bf16's rounding."""
    for name, gpus in (("cpu", ""), ("gpu", "0")):
        done = command("sample.py", "Moderate left pleural effusion.", "--run", run, "--out",
                       tmp_path / f"{name}.png", gpus=gpus)
        assert done.returncode == 0, done.stderr
    cpu, gpu = (torch.cat([read_png(p) for p in sorted(tmp_path.glob(f"{name}_*.png"))])
                for name in ("cpu", "gpu"))
    assert (cpu - gpu).abs().mean() < 0.01 < cpu.std()
