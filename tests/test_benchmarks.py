"""benchmarks/: each script runs in smoke size and prints the table that it promises."""
import json
import shutil
from pathlib import Path

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
    arguments = ("--seeds", 1, "--out", tmp_path, "--only", "no ACE", "supervised", *SMOKE)
    done = command("benchmarks/ablation.py", *arguments)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| anchor", "| supervised", "| cxrl", "| no ACE"]
    assert Image.open(tmp_path / "ablation.png").size[0] > 1000
    again = command("benchmarks/ablation.py", *arguments)
    assert again.returncode == 0 and "seed 0:" not in again.stdout and table[3] in again.stdout
    assert command("benchmarks/ablation.py", "--only", "nonsense").returncode == 2


def test_utility_compares_what_real_and_drawn_images_teach(smoke_run, tmp_path):
    """One row a lesson with its interval, on the real test split; RUN/utility.json says the same, and the
    same seed repeats it. Numbers out of range and unfinished runs end with one line that names them."""
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    arguments = ("benchmarks/utility.py", run, "--images", 24, "--steps", 2)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-5:]
    assert [line.split(" | ")[0] for line in lines] == ["| real", "| anchor", "| cxrl", "| real + anchor",
                                                        "| real + cxrl"]
    result = json.loads((run / "utility.json").read_text())
    assert result["images"] == 24 and result["test_images"] == 2048
    for name, images in (("real", 24), ("cxrl", 24), ("real + cxrl", 48)):
        system = result["systems"][name]
        low, high = system["auroc"]["ci95"]
        assert 0 < low <= system["auroc"]["value"] <= high < 1 and system["images"] == images
    assert result["systems"]["real"]["difference_to_real"] == {"value": 0, "ci95": [0, 0]}
    assert result["systems"]["cxrl"]["auroc"] != result["systems"]["anchor"]["auroc"]
    assert command(*arguments).stdout.splitlines()[-5:] == lines
    for more, words in ((("--images", 97), "--images 97: expected 20 to 96"), (("--steps", 0), "--steps 0"),
                        (("--seed", -1), "--seed -1")):
        done = command("benchmarks/utility.py", run, *more)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {words}")
    done = command("benchmarks/utility.py", tmp_path)
    assert done.returncode == 2 and "not a finished run" in done.stderr and len(done.stderr.splitlines()) == 1


def test_index_benchmark_prints_what_a_start_costs():
    """One line for each of two starts, the second from what the first kept: same rows, no image opened."""
    done = command("benchmarks/index.py", "--images", 1000, "--reports", "zip")
    assert done.returncode == 0, done.stderr
    first, second = ([cell.strip() for cell in line.strip("|").split("|")]
                     for line in done.stdout.splitlines()[-2:])
    assert first[1:3] == second[1:3] == ["1,000", "640"] and float(first[4]) > 0 and float(first[5]) > 0
    assert first[6] == "640" and second[6] == "0"
    assert "--images 10: expected 1000 or more" in command("benchmarks/index.py", "--images", 10).stderr
