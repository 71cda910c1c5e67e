"""benchmarks/: each script runs in smoke size and prints the table that it promises."""
import shutil

from conftest import SMOKE, command
from PIL import Image


def test_gpu_benchmark_gives_one_row_a_case(tmp_path):
    """Speeds, shares and the ratio to diffusers are positive numbers; --images must fill the groups."""
    done = command("benchmarks/gpu.py", "--case", "tiny", "--images", 4, "--steps", 4, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "tiny" and float(cells[1]) > 0 and float(cells[2]) > 0 and cells[3] == ""
    assert all(int(cell.removesuffix("%")) > 0 for cell in cells[4:6])
    assert cells[6] == "" or float(cells[6]) > 0
    assert "--images 3" in command("benchmarks/gpu.py", "--images", 3).stderr


def test_ablation_writes_table_and_chart_and_continues(smoke_run, tmp_path):
    """Each variant starts from the seed's anchor; results that are there are not computed again."""
    left_out = shutil.ignore_patterns("cxrl", "rl.safetensors")
    shutil.copytree(smoke_run, tmp_path / "seed-0", ignore=left_out)
    arguments = ("--seeds", 1, "--out", tmp_path, "--only", "no ACE", "supervised", *SMOKE,
                 "--rounds", 2)
    done = command("benchmarks/ablation.py", *arguments)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| anchor", "| supervised", "| cxrl", "| no ACE"]
    assert Image.open(tmp_path / "ablation.png").size[0] > 1000
    again = command("benchmarks/ablation.py", *arguments)
    assert again.returncode == 0 and "seed 0:" not in again.stdout and table[3] in again.stdout
    assert command("benchmarks/ablation.py", "--only", "nonsense").returncode == 2
