"""benchmarks/: each script runs in smoke size and prints the table that it promises."""
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMOKE, command
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import evaluate
import rl
from sample import SampleConfig
from training import options

sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation
import decoding
import gpu
import index
import memory
import peers
import utility


@pytest.mark.parametrize("kind", ["ImportError", "ValueError"])
def test_a_signal_that_a_library_renames_is_still_one(kind):
    """numpy makes an ImportError of the interruption, safetensors an error of its own, which a
    reader takes for a damaged file: one line and 143 all the same."""
    code = ("import os, signal\nfrom storage import command\ncommand.begin('go on')\n"
            "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\n"
            f"except KeyboardInterrupt:\n    raise {kind}('no module') from None")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (143, "stopped: go on\n")


def test_a_signal_that_a_library_swallows_ends_the_command():
    """Whoever catches everything and goes on is not asked twice."""
    code = ("import os, signal, time\nfrom storage import command\ncommand.GRACE = 0.2\n"
            "command.begin('the same again')\n"
            "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\n"
            "except BaseException:\n    time.sleep(60)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (143, "stopped: the same again\n")


def test_a_signal_within_a_finaliser_is_not_lost():
    """What __del__ raises is ignored by Python; Ctrl-C and SIGTERM are not."""
    code = ("import os, signal, time\nfrom storage import command\ncommand.begin('go on')\nclass Bar:\n"
            "    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(0)\n"
            "Bar()\ntime.sleep(60)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert (done.returncode, done.stderr) == (143, "stopped: go on\n")


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_signal_ends_each_script_in_one_line(script):
    """From before its imports on SIGTERM ends a script in one line and 143, as Ctrl-C does in 130."""
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    caught, status = 0, Path(f"/proc/{process.pid}/status")
    while not caught >> (signal.SIGTERM - 1) & 1 and process.poll() is None:   # until it listens
        caught = int(dict(line.split(":") for line in status.read_text().splitlines())["SigCgt"], 16)
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and error.startswith("stopped: ") and error.count("\n") == 1, error


def test_gpu_benchmark_gives_one_row_a_case(tmp_path, capsys, monkeypatch):
    """Speeds, shares and the comparisons with diffusers and trl are positive numbers; --images must fill
    the groups."""
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)   # of other tests, too
    gpu.main(["--case", "tiny", "--images", "4", "--steps", "2", "--out", str(tmp_path)])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "tiny" and float(cells[1]) > 0 and float(cells[2]) > 0 and cells[3] == ""
    assert all(int(cell.removesuffix("%")) > 0 for cell in cells[4:6])
    assert cells[6] == "" or float(cells[6]) > 0
    assert cells[7] == "" or all(float(number) > 0 for number in cells[7].split(" / "))
    with pytest.raises(SystemExit):
        gpu.main(["--images", "3"])
    assert "--images 3" in capsys.readouterr().err


def test_peers_are_timed_at_the_same_work(capsys):
    """Every row has two times and their ratio; that both draw the same pictures the script asserts."""
    pytest.importorskip("diffusers", reason="the comparison needs diffusers: requirements-dev.txt")
    with warnings.catch_warnings():
        peers.main(["--size", "tiny", "--images", "2", "--steps", "3", "--repeats", "1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0].strip() for row in rows][:2] == ["sampling", "step"]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])


def test_the_road_at_real_size_in_short(tmp_path):
    """Build, load, fine-tune, one round, and the result in diffusers, which draws the same picture; each
    phase tells its seconds and its own peak of memory."""
    pytest.importorskip("diffusers", reason="the comparison needs diffusers: requirements-dev.txt")
    done = command("benchmarks/real_size.py", "--size", "tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[4:]]
    assert [row[0].split()[0] for row in rows[:4]] == ["build", "load", "finetune", "rl"]
    assert all(float(row[1]) > 0 and 0 < float(row[2]) < 20 for row in rows)
    assert all(float(row[3].split()[-1]) > 0 for row in rows if row[0].startswith("rl"))   # a gradient
    assert rows[-1][0].startswith("diffusers")
    assert all(float(row[3].split()[3]) < 1e-4 for row in rows if row[0].startswith("diffusers"))


def work() -> None:
    """Matrix products, norms, views, attention, checkpoints, a fused optimizer: what networks allocate.
    (No convolution: on a CPU it takes copies of its own, which no operation returns.)"""
    one, two = torch.nn.Linear(64, 512), torch.nn.Linear(512, 64)
    optimizer = torch.optim.AdamW([*one.parameters(), *two.parameters()], fused=True)
    for _ in range(2):
        x = torch.ones(2, 4, 256, 64, requires_grad=True)
        x = x + torch.nn.functional.scaled_dot_product_attention(x, x, x)
        x = checkpoint(lambda x: two(torch.nn.functional.gelu(one(x))), x, use_reentrant=False)
        torch.nn.functional.layer_norm(x, (64,)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_live_bytes_are_those_of_the_allocator(tmp_path):
    """The peak that the dispatch mode adds up is the allocator's own, as torch.profiler recorded it, to 5 %;
    fake tensors give the same bytes as real ones; and nothing is left in the end."""
    with memory.LiveBytes() as real:
        work()
    with FakeTensorMode(), memory.LiveBytes() as fake:
        work()
    assert fake.peak == real.peak > 8e6 and real.now == fake.now == 0
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memories = [e["args"] for e in events if e.get("name") == "[memory]"]
    start = memories[0]["Total Allocated"] - memories[0]["Bytes"]
    assert max(m["Total Allocated"] for m in memories) - start == pytest.approx(real.peak, rel=0.05)


@pytest.mark.parametrize("gradient", ["pathwise", "score"])
def test_memory_estimate_of_a_round(gradient):
    """At tiny size the estimate of every phase of a round is what the same code takes on real tensors; only
    the score's round has the anchor's."""
    sizes, sampling = options.preset("tiny"), SampleConfig(guidance=2.0)
    config = rl.RLConfig(gradient, rlcf=gradient == "score", rollout_steps=3, reports=2, group=4, rl_batch=4,
                         rl_micro=2, checkpointing=True, offload=True)
    found = memory.estimate(sizes, config, sampling)
    with memory.as_on_cuda(), memory.OneRank() as live:
        real = memory.peaks(sizes, config, sampling, live)
    assert (found["anchor's rollout"] > 0) == (gradient == "score")
    for phase in found:
        assert found[phase] == pytest.approx(real[phase], rel=0.05), phase


def test_ablation_writes_a_table_and_continues(smoke_run, same_phantoms, tmp_path, capsys, monkeypatch):
    """A row for each variant, each from the seed's anchor; results that are there are not computed again;
    cxrl is not compared with itself. What differs in the policy gradient alone (--rounds 0: none) begins with
    what the archive taught cxrl, and only that."""
    monkeypatch.setattr(evaluate, "FID_RESAMPLES", 20)   # each takes milliseconds
    base, tuned = tmp_path / "seed-0" / "base", ("cxrl", "rl.safetensors", "rwr.safetensors")
    shutil.copytree(smoke_run, base, ignore=shutil.ignore_patterns(*tuned))
    shutil.copytree(smoke_run, base.with_name("cxrl"))
    arguments = ["--seeds", "0", "--out", str(tmp_path), "--only", "archive alone", "supervised", *SMOKE]
    ablation.main(arguments)
    table = (tmp_path / "ablation.md").read_text().splitlines()
    names = [line.split(" | ")[0] for line in table[2:-2]]
    assert names == ["| real", "| anchor", "| supervised", "| cxrl", "| archive alone"]
    assert not any(f"]{sign} |" in table[5] for sign in (" +", " -"))
    log = (base.with_name("archive_alone") / "log.jsonl")
    assert not log.exists() or '"rwr"' not in log.read_text()
    kept, cxrl = (load_file(base.with_name(run) / "state" / "rwr.safetensors")
                  for run in ("archive_alone", "cxrl"))
    assert all(torch.equal(kept[key], cxrl[key]) for key in cxrl)
    ablation.begin_from_archive(base.with_name("cxrl"), tmp_path / "other", SMOKE, ["--no-ace"])
    assert not (tmp_path / "other").exists()
    capsys.readouterr()
    ablation.main(arguments)
    again = capsys.readouterr().out
    assert ", seed 0" not in again and table[3] in again
    with pytest.raises(ValueError, match="--eval-reports 21: .*was begun with '20'; choose another --out"):
        ablation.main([*arguments, "--eval-reports", "21"])
    with pytest.raises(SystemExit):
        ablation.main(["--only", "nonsense"])


def test_utility_compares_what_real_and_drawn_images_teach(smoke_run, same_phantoms, tmp_path, capsys,
                                                            monkeypatch):
    """One row a lesson with its interval, on the real test split; RUN/utility.json says the same, and the
    same seed repeats it. Numbers out of range and unfinished runs end with one line that names them."""
    run, load_sets = Path(shutil.copytree(smoke_run, tmp_path / "run")), evaluate.load_sets
    monkeypatch.setattr(evaluate, "load_sets", lambda *of_run: {   # few held-out images: they take long
        name: replace(chests, count=min(len(chests), 256)) for name, chests in load_sets(*of_run).items()})
    arguments = [str(run), "--images", "24", "--steps", "2"]
    utility.main(arguments)
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split(" | ")[0] for line in lines] == ["| real", "| anchor", "| cxrl", "| real + anchor",
                                                        "| real + cxrl"]
    result = json.loads((run / "utility.json").read_text())
    assert result["images"] == 24 and result["test_images"] == 256
    for name, images in (("real", 24), ("cxrl", 24), ("real + cxrl", 48)):
        system = result["systems"][name]
        low, high = system["auroc"]["ci95"]
        assert 0 < low <= system["auroc"]["value"] <= high < 1 and system["images"] == images
    assert result["systems"]["real"]["difference_to_real"] == {"value": 0, "ci95": [0, 0]}
    assert result["systems"]["cxrl"]["auroc"] != result["systems"]["anchor"]["auroc"]
    utility.main(arguments)
    assert capsys.readouterr().out.splitlines()[-5:] == lines
    for flag, value, words in (("--images", "97", f"--images 97: expected 20 to {SMOKE[1]}"),
                               ("--steps", "0", "--steps 0"), ("--seed", "-1", "--seed -1")):
        with pytest.raises(ValueError, match=words):
            utility.main([str(run), flag, value])
    done = command("benchmarks/utility.py", tmp_path)
    assert done.returncode == 2 and "not a finished run" in done.stderr and len(done.stderr.splitlines()) == 1


def test_index_benchmark_prints_what_a_start_costs():
    """One line for each of two starts, the second from what the first kept: same rows, no image opened."""
    done = command("benchmarks/index.py", "--images", 1000, "--reports", "zip")
    assert done.returncode == 0, done.stderr
    first, second = ([cell.strip() for cell in line.strip("|").split("|")]
                     for line in done.stdout.splitlines()[-2:])
    assert first[1:3] == second[1:3] == ["1,000", "640"] and 0 < float(first[4]) < float(first[3])
    assert float(first[5]) > 0 and float(first[6]) > 0 and first[7] == "640" and second[7] == "0"
    with pytest.raises(ValueError, match="--images 10: expected 1000 or more"):
        index.main(["--images", "10"])


def test_decoding_benchmark_prints_its_row(capsys):
    """Images a second and what one costs are positive."""
    decoding.main(["--images", "8", "--size", "32"])
    assert all(float(cell) > 0 for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|"))
    with pytest.raises(ValueError, match="--images 3: expected 8 or more"):
        decoding.main(["--images", "3"])
