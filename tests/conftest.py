"""Tests import the files of the repository root, on one thread: small networks lose time to more of them."""
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
