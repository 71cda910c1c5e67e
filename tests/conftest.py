"""Tests import the files of the repository root; on one thread, for more slow small networks down, and on
the CPU, which gives the same bits again. On a GPU: test_cuda.py."""
import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""   # of all that tests start, too

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")

SMOKE = ["--train-images", "32", "--vae-steps", "6", "--vae-batch", "8", "--text-steps", "6",
         "--text-batch", "8", "--diffusion-steps", "6", "--diffusion-batch", "8", "--reward-steps", "6",
         "--reward-batch", "8", "--rwr-steps", "4", "--rounds", "3", "--reports", "2", "--group", "2",
         "--updates", "2", "--sample-steps", "2", "--rollout-steps", "3", "--save-every", "0",
         "--eval-reports", "20"]


def command(script: str, *arguments: object, cwd: Path = ROOT, gpus: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpus}
    return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True,
                          text=True, cwd=cwd, env=environment)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at the smoke run comes first, and so to one of pytest's workers: the other need not wait
    until it is made."""
    items.sort(key=lambda item: "smoke_run" not in item.fixturenames)


load_phantom = functools.cache(data.load_phantom)


@pytest.fixture
def same_phantoms(monkeypatch):
    """Phantoms are a pure function of the options: a worker makes them once, for all tests that take this."""
    monkeypatch.setattr(data, "load_phantom", load_phantom)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Path:
    """One uninterrupted `python train.py` in smoke size, made once: pytest's other workers wait for it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "smoke"
    with open(shared / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)   # given back when the file is closed, even by a crash
        if not (folder / "evaluation.json").exists():
            done = command("train.py", "--out", folder, *SMOKE)
            assert done.returncode == 0, done.stderr
    return folder
