"""Tests import the files of the repository root, on one thread: small networks lose time to more of them."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

import data  # noqa: E402
from judge import load_judge  # noqa: E402

SMOKE = ["--train-images", "96", "--vae-steps", "6", "--vae-batch", "8", "--text-steps", "6",
         "--diffusion-steps", "6", "--diffusion-batch", "8", "--reward-steps", "6", "--reward-batch", "8",
         "--rounds", "3", "--reports", "2", "--group", "2", "--sample-steps", "5", "--skip-last", "2",
         "--save-every", "0", "--eval-reports", "24"]


def command(script: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True,
                          text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """One uninterrupted run of every training stage in smoke size, and its judge, which takes longest."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    for stage in ("vae", "diffusion", "rewards", "rl"):
        done = command("train.py", "--out", folder, "--stage", stage, *SMOKE)
        assert done.returncode == 0, done.stderr
    judged = data.load("phantom", train_images=int(SMOKE[1]))["judge"]
    load_judge(folder / "state" / "judge.safetensors", judged, torch.device("cpu"))
    return folder
