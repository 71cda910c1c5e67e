"""train.py: options, resuming, and the whole system in smoke size through the command line."""
import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMOKE, command
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import evaluate
import sample
import train
from model import UNet2DConditionModel
from pretrained.vit import CLIPPair, Preprocessing, VisionConfig
from rl import SCORE, RLConfig
from sample import SampleConfig
from text_encoder import EOS, TextConfig, Tokenizer
from training import loop, options
from training.loop import batch_index, learning_rate
from training.options import TrainConfig, parse
from training.ranks import start_ranks

sys.path.insert(0, str(ROOT / "benchmarks"))

import supervised_control


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {f"{p.relative_to(run)}:{k}": v for p in sorted(run.glob("*/**/*.safetensors"))
            if p.parent.name != "state" for k, v in load_file(p).items()}


def test_run_folder_holds_what_the_contract_says(smoke_run):
    """After `python train.py`: pipelines before and after RL, reward networks, log, labelled pictures,
    evaluation; nothing half-written."""
    for name in ("anchor/model_index.json", "anchor/unet/config.json", "anchor/vae/config.json",
                 "cxrl/ace/config.json", "cxrl/model_index.json", "rewards/posture/config.json",
                 "rewards/diagnosis/model.safetensors", "rewards/consistency/tokenizer/vocab.json",
                 "config.json", "evaluation.json", "samples/vae.png", "samples/anchor.png"):
        assert (smoke_run / name).exists(), name
    assert not list(smoke_run.rglob("*.tmp"))
    assert Image.open(smoke_run / "samples" / "anchor_vs_cxrl.png").text["synthetic"] == "true"
    log = [json.loads(line) for line in (smoke_run / "log.jsonl").read_text().splitlines()]
    rl = [line for line in log if line["stage"] == "rl"]
    assert [line["step"] for line in rl] == [1, 2, 3]
    for key in ("time", "reward_align", "reward_diag", "reward_consist", "loss", "kl", "grad_norm",
                "images_per_second", "queries"):
        assert math.isfinite(rl[0][key]), key


def test_control_and_evaluation_of_a_run(smoke_run, same_phantoms, tmp_path):
    """The supervised control continues the anchor and is scored beside it; `evaluate.py RUN` scores anew, in
    another process than `python train.py`, to its numbers. Every metric of the contract is there, with an
    interval."""
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    metrics = ("posture_deviation", "auroc", "label_accuracy", "all_labels_right", "consistency", "fid",
               "kid", "ms_ssim", "precision", "recall", "density", "coverage", "nearest_train_distance")
    three = ("real", "anchor", "cxrl")
    config = json.loads((run / "config.json").read_text())
    del config["mix"]   # of a run older than that option
    (run / "config.json").write_text(json.dumps(config))
    for systems in [(*three, "control"), three]:
        if "control" in systems:
            supervised_control.main([str(run)])
        else:
            evaluate.main([str(run), "--reports", "20"])
        result = json.loads((run / "evaluation.json").read_text())
        for system in systems:
            for metric in metrics:
                entry = result[system][metric]
                assert math.isfinite(entry["value"]) and len(entry["ci95"]) == 2, (system, metric)
        assert "train_seed" in result["judge"] and "accuracy_on_real" in result["judge"]
        own = json.loads((smoke_run / "evaluation.json").read_text())
        assert all(result[system] == own[system] for system in three)


def test_sampling_from_a_run(smoke_run, tmp_path, capsys, monkeypatch):
    """`python sample.py "REPORT"` makes the same PNG again from the same seed, another one with --anchor; it
    does not wait for the import of torch's compiler."""
    report = "Moderate left pleural effusion. Heart size is normal."
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")   # what is imported is said on stderr
    done = command("sample.py", report, "--run", smoke_run, "--n", 2, "--out", tmp_path / "a.png")
    assert done.returncode == 0 and "| torch" in done.stderr and "torch._dynamo" not in done.stderr
    for name, more in [("b", []), ("c", ["--anchor"])]:
        sample.main([report, "--run", str(smoke_run), "--n", "2", "--out", f"{tmp_path}/{name}.png", *more])
    a, b, c = (Image.open(tmp_path / f"{name}.png") for name in "abc")
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert a.text["report"] == report and a.text["seed"] == "0" and c.text["model"] == "anchor"
    (tmp_path / "reports.txt").write_text("No acute disease.\n\nLarge right pneumothorax.\n")
    sample.main(["--reports", f"{tmp_path}/reports.txt", "--run", str(smoke_run), "--n", "1",
                 "--out", f"{tmp_path}/d.png"])
    assert "2 synthetic X-rays" in capsys.readouterr().out


@pytest.mark.parametrize("argv, words", [
    (["--preset", "sd15"], "--preset sd15: needs --init"), (["--init", "absent"], "--init absent"),
    (["--reports", "0"], "--reports 0"), (["--kl", "-1"], "--kl -1"),
    (["--rollout-steps", "1"], "--rollout-steps 1"), (["--rl-lr", "nan"], "--rl-lr nan"),
    (["--w-align", "0", "--w-diag", "0", "--w-consist", "0"], "at least one reward"),
    (["--seed", "-1"], "--seed -1")])
def test_bad_options_stop_before_anything_slow(argv, words):
    """Each names the flag, the value and what was expected."""
    with pytest.raises(ValueError, match=words):
        parse(argv)


@pytest.mark.parametrize("argv, words", [
    (["--preset", "huge"], "--preset"), (["--gradient", "steep"], "--gradient"),
    (["--rounds", "many"], "--rounds"), (["--nonsense"], "--nonsense")])
def test_unknown_values_exit_with_one_clear_line(argv, words, capsys):
    """An unknown flag or value ends with a non-zero status and its name on stderr."""
    with pytest.raises(SystemExit) as end:
        parse(argv)
    assert end.value.code != 0 and words in capsys.readouterr().err


def test_command_line_errors_are_one_line(tmp_path):
    """What a user sees of a bad data folder: one line, non-zero status, no traceback,
    no run folder left behind."""
    done = command("train.py", "--data", tmp_path / "absent", "--out", tmp_path / "run")
    assert done.returncode != 0 and done.stderr.startswith("error: ")
    assert "absent" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_other_origin_is_refused(smoke_run, same_phantoms):
    """Another data set, preset or seed in the same --out: the flag, both values, and what to do."""
    with pytest.raises(ValueError, match="--seed 5: .* was begun with 0; choose another --out"):
        train.main(["--out", str(smoke_run), *SMOKE, "--seed", "5"])


def test_stages_need_those_before_them(tmp_path):
    """--stage rl in an empty folder says which result is missing, before the data are looked at."""
    with pytest.raises(ValueError, match="--stage rl: .* no result of stage vae"):
        train.main(["--out", str(tmp_path / "run"), "--stage", "rl", *SMOKE, "--data", "absent"])


def test_damaged_state_and_changed_options_are_named(smoke_run, tmp_path):
    """A truncated checkpoint, or one begun with other options, is refused by name; nothing is overwritten."""
    run = options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE]))
    net = torch.nn.Linear(2, 2)
    optimizer = loop.make_optimizer(net.parameters(), 1e-3)
    loop.save_state(run, "vae", 3, 1.0, {"net": net}, optimizer, None)
    assert loop.load_state(run, "vae", {"net": net}, optimizer, None)[0] == 3
    run.options["vae_lr"] = 7.0
    with pytest.raises(ValueError, match="--vae-lr 7.0: .* was begun with 0.00"):
        loop.load_state(run, "vae", {"net": net}, optimizer, None)
    path = tmp_path / "run" / "state" / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="vae.safetensors: damaged"):
        loop.load_state(run, "vae", {"net": net}, optimizer, None)


@pytest.mark.parametrize("muon", [False, True])
def test_moments_come_back_in_the_layout_of_their_parameters(tmp_path, muon):
    """A file keeps no strides, and fused AdamW does not look at them: a network in channels_last would go its
    own way after a resume if its moments were not laid out like its weights."""
    run = options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE]))
    net = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    group = {"params": list(net.parameters()), "muon": muon}
    optimizer = loop.make_optimizer([group], 1e-3)
    net(torch.randn(2, 4, 5, 5)).square().mean().backward()
    optimizer.step()
    loop.save_state(run, "vae", 1, 1.0, {"net": net}, optimizer, None)
    moments, begun = optimizer.state[net.weight], loop.make_optimizer([group], 1e-3)
    loop.load_state(run, "vae", {"net": net}, begun, None)
    for name in ("exp_avg",) if muon else ("exp_avg", "exp_avg_sq"):
        back = begun.state[net.weight][name]
        assert back.stride() == net.weight.stride() and torch.equal(back, moments[name])


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (8, 3, 3, 3)])
def test_muon_moves_as_torchs_own(shape):
    """Where torch's Muon knows the shape, matrices, ours moves as far and the same way as it (bf16 there); a
    convolution moves as the matrix of its kernels, whatever its layout. Biases are AdamW's; what
    no loss reaches stays."""
    begun = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(begun.clone())
    if begun.ndim == 4:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    bias, other = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    matrix = torch.nn.Parameter(begun.flatten(1).clone())
    idle = torch.nn.Parameter(torch.ones(2, 2))
    ours = loop.make_optimizer([{"params": [weight, bias, idle], "muon": True}], 1e-2)
    theirs = torch.optim.Muon([matrix], lr=1e-2 * loop.STRIDE, weight_decay=1e-2 / loop.STRIDE,
                              adjust_lr_fn="match_rms_adamw")
    plain = loop.make_optimizer([other], 1e-2)
    for step in range(3):
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1 + step)).to(weight)
        matrix.grad = weight.grad.flatten(1).clone()
        bias.grad, other.grad = (torch.arange(4.0) for _ in range(2))
        for optimizer in (ours, theirs, plain):
            optimizer.step()
    assert (matrix - weight.flatten(1)).norm() < 0.02 * (matrix - begun.flatten(1)).norm()
    assert torch.equal(bias, other) and torch.equal(idle, torch.ones(2, 2))


@pytest.mark.parametrize("scratch", [True, False])
def test_muon_moves_what_knows_nothing_yet(tmp_path, scratch):
    """The matrices of what learns from scratch, but for c_s, which begins with the prompt's embeddings;
    AdamW, which keeps a second moment, the rest."""
    run = options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE]))
    modules = {name: torch.nn.Linear(3, 2) for name in ("net", "ace")}

    def loss(step: int, part: slice):
        return sum(module(torch.ones(1, 3)).square().mean() for module in modules.values()), {}

    (tmp_path / "run").mkdir()
    loop.fit(run, "rwr", modules, loss, 1, 1e-3, 1, muon=scratch)
    kept = load_file(tmp_path / "run" / "state" / "rwr.safetensors")
    second = [f"optimizer.{i}.exp_avg_sq" in kept for i in range(4)]   # weight, bias of either
    assert second == [not scratch, True, True, True]


def test_orthogonal_keeps_directions_and_equals_lengths():
    """What is made orthogonal has the singular vectors of what it was made of, and singular values near 1."""
    u, _, v = torch.linalg.svd(torch.randn(12, 40, generator=torch.Generator().manual_seed(0)), False)
    values = torch.logspace(0, -1.5, 12)
    back = u.T @ loop.orthogonal((u * values @ v)[None])[0] @ v.T
    assert torch.allclose(back, torch.diag(back.diagonal()), atol=1e-4)
    assert back.diagonal().min() > 0.6 and back.diagonal().max() < 1.25


def test_unwritable_folder_is_named(tmp_path):
    """--out below a file cannot be made: one line that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out .*file.*cannot be written"):
        train.main(["--out", str(tmp_path / "file" / "run"), *SMOKE])


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """If writing a checkpoint fails half-way, the one before is still there and whole."""
    run = options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE]))
    net = torch.nn.Linear(2, 2)
    optimizer = loop.make_optimizer(net.parameters(), 1e-3)
    loop.save_state(run, "vae", 3, 1.0, {"net": net}, optimizer, None)

    def full(tensors, path, header):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        loop.save_state(run, "vae", 4, 1.0, {"net": net}, optimizer, None)
    assert loop.load_state(run, "vae", {"net": net}, optimizer, None)[0] == 3


def test_a_disk_that_fills_up_is_one_clear_line(tmp_path):
    """When no file can grow beyond 300 kB the first stage ends with an error that names the file."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run([sys.executable, ROOT / "train.py", "--out", tmp_path, *SMOKE], preexec_fn=limit,
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "vae.safetensors: cannot be written" in done.stderr


def test_non_finite_loss_stops_with_stage_step_and_seed(tmp_path):
    """A loss that becomes nan ends the run loudly, and its checkpoint is not written."""
    run = options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE]))
    net = torch.nn.Linear(2, 1)

    def loss(step: int, part: slice):
        return (net.weight.sum() + net.bias).sum() * (math.nan if step == 2 else 1), {}

    with pytest.raises(FloatingPointError, match="vae: loss is nan at step 2, seed 0"):
        loop.fit(run, "vae", {"net": net}, loss, 6, 1e-3, 1)
    optimizer = loop.make_optimizer([{"params": list(net.parameters()), "muon": True}], 1e-3)
    assert loop.load_state(run, "vae", {"net": net}, optimizer, None)[0] == 2


def test_a_finished_evaluation_says_which_it_is(tmp_path, capsys):
    """evaluate.py may have made it with another seed than the run's own command would."""
    (tmp_path / "evaluation.json").write_text('{"n": 22, "seed": 7, "features": "judge"}')
    config, sampling, rl = parse(["--out", str(tmp_path)])
    train.do_stage("evaluate", options.open_run(config, sampling, rl), config, {}, sampling, rl)
    assert f"done already in {tmp_path}, n 22, seed 7, features judge" in capsys.readouterr().out


def test_order_visits_every_image_once_an_epoch_and_starts_anywhere():
    """batch_index is a pure function of (seed, step): epochs are permutations, whatever the batch size."""
    seen = torch.cat([batch_index(10, 4, 0, step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert torch.equal(batch_index(10, 4, 0, 3), seen[12:16])
    assert not torch.equal(batch_index(10, 4, 1, 3), seen[12:16])


def test_learning_rate_curve():
    """Warm-up over 5 %, the peak, half-way down in the middle, about 0 at the end."""
    assert learning_rate(0, 100, 1.0) == pytest.approx(0.2)
    assert learning_rate(5, 100, 1.0) == pytest.approx(1.0)
    assert learning_rate(52, 100, 1.0) == pytest.approx(0.5, abs=0.01) and learning_rate(99, 100, 1.0) < 0.01


def test_every_option_has_one_flag_with_its_default():
    """The parser's defaults are the dataclasses' defaults, and every field of all three has a help text."""
    configs = parse([])
    assert configs == (TrainConfig(), SampleConfig(), RLConfig())
    names = [f.name for c in configs for f in dataclasses.fields(c)]
    assert len(names) == len(set(names))
    small = parse(["--preset", "small", "--gradient", "score"])[2]   # the preset's, then the gradient's
    assert (small.rl_lr, small.rounds, small.kl) == (1e-4, 50, SCORE["kl"])


def test_networks_of_ones_own_are_read_before_anything_slow(tmp_path):
    """A folder that is no CLIP and a file that is no DenseNet are refused with the flag's name."""
    for flag in ("--consistency", "--diagnosis"):
        with pytest.raises(ValueError, match=f"^{flag} {tmp_path}"):
            parse([flag, str(tmp_path / "absent")])


def test_every_departure_from_ddpo_can_be_switched_off():
    """Plain DDPO is a set of flags, and the run accepts them."""
    flags = "--gradient score --rwr-steps 0 --credit end --group 1 --no-rlcf --no-ace --kl 0"
    configs = parse(flags.split())
    options.check(*configs)
    assert configs[2] == RLConfig("score", rwr_steps=0, credit="end", group=1, ace=False,
                                  **{**SCORE, "rlcf": False, "kl": 0.0})


# ---------------------------------------------------------------------------------------- RL and its variants

UNET_FILE = "anchor/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def before_rl(smoke_run, tmp_path) -> Path:
    """A run that has everything but the result of reinforcement learning."""
    left_out = shutil.ignore_patterns("cxrl", "rl.safetensors", "rwr.safetensors")
    return Path(shutil.copytree(smoke_run, tmp_path / "run", ignore=left_out))


def test_the_last_round_is_kept_though_checkpoints_are_slow(before_rl, same_phantoms, monkeypatch):
    """What comes after it, pictures and a merged LoRA, takes minutes at Stable Diffusion's size."""
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "quick", lambda modules: False)
    monkeypatch.setattr(train, "before_and_after", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--out", str(before_rl), *SMOKE, "--stage", "rl", "--save-every", "600"])
    with safe_open(before_rl / "state" / "rl.safetensors", "pt") as state:
        assert state.metadata()["step"] == str(parse(SMOKE)[2].rounds)


def torchrun(folder: Path, *more: object) -> list[str]:
    """The command line of two processes that share out the RL of a smoke run."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            *map(str, [ROOT / "train.py", "--out", folder, *SMOKE, "--stage", "rl", *more])]


def same_policy(ours: Path, theirs: Path) -> None:
    """Equal but for rounding, of which AdamW makes more where gradients are small: every tensor of the UNet
    differs by less than a hundredth of its way from the anchor, all together by less than a thousandth."""
    start = load_file(theirs / UNET_FILE)
    a, b = (load_file(run / UNET_FILE.replace("anchor", "cxrl")) for run in (ours, theirs))
    off = {key: ((a[key] - b[key]).norm().item(), (b[key] - start[key]).norm().item()) for key in start}
    assert all(difference < 0.01 * way for difference, way in off.values())
    assert math.hypot(*(d for d, _ in off.values())) < 1e-3 * math.hypot(*(way for _, way in off.values()))
    ace = [load_file(run / "cxrl" / "ace" / "ace.safetensors")["c_s"] for run in (ours, theirs)]
    assert torch.allclose(*ace, rtol=0, atol=1e-5)


def test_the_result_lies_part_of_the_way_that_the_gradient_went(smoke_run):
    """RUN/cxrl lies `mix` of the way from what the archive taught to the model after the last round."""
    first, last = (load_file(smoke_run / "state" / f"{name}.safetensors") for name in ("rwr", "rl"))
    result = load_file(smoke_run / UNET_FILE.replace("anchor", "cxrl"))
    for key, value in result.items():
        between = first[f"ema.unet.{key}"].lerp(last[f"unet.{key}"], RLConfig().mix)
        assert torch.allclose(value, between, atol=1e-6), key
    moved = [key for key, value in result.items() if not torch.equal(value, last[f"unet.{key}"])]
    assert len(moved) > len(result) / 2


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """A process of torchrun without a GPU of its own is refused in a line that says how many there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="process 1: this machine has 1 GPUs"):
        start_ranks()


def test_every_stage_that_trains_a_unet_compiles_it(smoke_run, same_phantoms, before_rl, monkeypatch):
    """--compile: the diffusion stage's UNet, then RL's policy, its anchor, and what the KL holds it to."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda work: work)           # the check that it works here
    monkeypatch.setattr(UNet2DConditionModel, "compile", lambda unet: compiled.append(unet))
    (before_rl / "anchor" / "model_index.json").unlink()
    for stage, many in (("diffusion", 1), ("rl", 4)):
        train.main(["--out", str(before_rl), *SMOKE, "--compile", "--stage", stage])
        assert len(compiled) == many


def test_no_result_stands_over_another_than_it_was_made_from(before_rl, smoke_run, same_phantoms):
    """Reward networks are not taught anew below a policy that they tuned; a policy that is made anew takes
    away what was said of the one before."""
    shutil.copytree(smoke_run / "cxrl", before_rl / "cxrl")
    shutil.rmtree(before_rl / "rewards" / "posture")
    with pytest.raises(ValueError, match="result of stage rl and none of rewards.* delete cxrl/model_index"):
        train.main(["--out", str(before_rl), *SMOKE])
    shutil.copytree(smoke_run / "rewards" / "posture", before_rl / "rewards" / "posture")
    shutil.rmtree(before_rl / "cxrl")
    train.main(["--out", str(before_rl), *SMOKE, "--stage", "rl"])
    assert not (before_rl / "evaluation.json").exists()


def test_a_dead_rank_ends_the_job_and_the_same_command_makes_the_updates_of_one_process(smoke_run, before_rl):
    """Under torchrun two ranks sample half of the reports each. SIGKILL of one after the first checkpoint:
    the job ends with an error and no result. After three rounds by the same command the policy is that of an
    uninterrupted single process, the statistics of every round agree, and the log is written once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # From what the archive taught: Muon makes more of rounding (in double precision: test_road.py).
    shutil.copy(smoke_run / "state" / "rwr.safetensors", before_rl / "state")
    job = subprocess.Popen(torchrun(before_rl), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    while not (before_rl / "state" / "rl.safetensors").exists() and job.poll() is None:
        time.sleep(0.005)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert job.wait(timeout=300) != 0
    assert not (before_rl / "cxrl" / "model_index.json").exists()
    done = subprocess.run(torchrun(before_rl), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reward queries") == 1   # rank 0 speaks for all
    assert weights(before_rl).keys() == weights(smoke_run).keys()
    same_policy(before_rl, smoke_run)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"rl"' in line]
            for run in (before_rl, smoke_run)]
    assert [line["step"] for line in logs[0]] == [1, 2, 3]
    for ours, theirs in zip(*logs, strict=True):
        for name in ("kl", "grad_norm", "reward_align", "reward_consist"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-5), name


def test_lora_run_ends_with_a_merged_unet_and_a_lora_file(before_rl, same_phantoms):
    """--lora-rank trains the LoRA and ACE alone; RUN/cxrl holds the anchor's weights plus B A. What a LoRA
    begins with is the run's own, whatever else the process has drawn."""
    flags = [*SMOKE, "--stage", "rl", "--lora-rank", "2", "--checkpointing", "--offload"]
    again = shutil.copytree(before_rl, before_rl.with_name("again"))
    train.main(["--out", str(before_rl), *flags])
    torch.manual_seed(99)
    train.main(["--out", str(again), *flags, "--rwr-steps", "0"])
    torch.manual_seed(7)
    shutil.rmtree(again / "cxrl")
    first = load_file(again / "state" / "rl.safetensors")
    (again / "state" / "rl.safetensors").unlink()
    train.main(["--out", str(again), *flags, "--rwr-steps", "0"])
    assert all(torch.equal(first[k], v) for k, v in load_file(again / "state" / "rl.safetensors").items())
    anchor = load_file(before_rl / UNET_FILE)
    tuned = load_file(before_rl / "cxrl" / "unet" / "diffusion_pytorch_model.safetensors")
    lora = load_file(before_rl / "cxrl" / "pytorch_lora_weights.safetensors")
    assert anchor.keys() == tuned.keys()
    for key, value in anchor.items():
        name = f"unet.{key.removesuffix('.weight')}"
        if f"{name}.lora_A.weight" in lora:
            value = value + lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
            assert not torch.equal(tuned[key], anchor[key]), key
        assert torch.allclose(tuned[key], value, atol=1e-6), key


def test_a_handful_of_images_is_enough_to_begin(tmp_path):
    """Nine films of nine patients go through to reward networks with a scale of their own: at least one
    training pair is kept back for it. A dry run of them leaves no decoded film behind."""
    lines = ["image,report,patient_id"]
    for i in range(9):
        Image.effect_noise((64, 64), 40 + i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'Large left pleural effusion.' if i % 2 else 'No acute disease.'},p{i}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    start = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), *SMOKE, "--stage"]
    train.main([*start, "vae", "--dry-run"])
    assert not (tmp_path / "run").exists()
    for stage in ("vae", "diffusion", "rewards"):
        train.main([*start, stage])
    for name in ("posture", "diagnosis", "consistency"):
        net = load_file(tmp_path / "run" / "rewards" / name / "model.safetensors")
        assert net["spread"] > 0 and math.isfinite(net["spread"]) and math.isfinite(net["median"])


def test_images_are_as_large_as_the_folder_of_init_draws_them(smoke_run, tmp_path):
    """A pipeline of another size (768 px: SD 2.1-v) gets its data in that size, whatever the preset says."""
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        config = json.loads((smoke_run / "anchor" / part / "config.json").read_text())
        config |= {"sample_size": 12} if part == "unet" else {}
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert options.sizes_of(TrainConfig()).size == 64
    assert options.sizes_of(TrainConfig(init=tmp_path)).size == 12 * options.preset("tiny").vae.factor


def small_clip(folder: Path) -> Path:
    """A CLIP of random weights for 32 px, in transformers' layout."""
    tokenizer = Tokenizer.train(["No pleural effusion."] * 3, vocab_size=520, max_length=16)
    text = {"vocab_size": 520, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.vocab[EOS]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}
    kept = {k: v for k, v in text.items() if k != "eos_token_id"}
    pair = CLIPPair(TextConfig(**kept), VisionConfig(**vision), 8)
    pair.config = {"model_type": "clip", "text_config": text, "vision_config": vision, "projection_dim": 8}
    pair.tokenizer, pair.prepare = tokenizer, Preprocessing(size=32, crop_size=32)
    pair.save_pretrained(folder)
    return folder


def test_init_takes_a_diffusers_folder_in_place_of_two_stages(smoke_run, same_phantoms, tmp_path):
    """--init DIR becomes RUN/anchor, tensor for tensor; rewards and RL go on from there. --consistency DIR is
    the consistency reward, in its own layout with its scale, and RL is paid by it."""
    clip = small_clip(tmp_path / "clip")
    for stage in ("rewards", "rl"):
        train.main(["--init", str(smoke_run / "anchor"), "--out", str(tmp_path), *SMOKE, "--consistency",
                    str(clip), "--stage", stage, "--lora-rank", "2"])
    kept = tmp_path / "rewards" / "consistency"
    assert json.loads((kept / "reward.json").read_text())["spread"] > 0
    before, after = load_file(clip / "model.safetensors"), load_file(kept / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not (tmp_path / "state" / "consistency.safetensors").exists()
    ours, theirs = load_file(tmp_path / UNET_FILE), load_file(smoke_run / UNET_FILE)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (tmp_path / "cxrl" / "pytorch_lora_weights.safetensors").exists()


def test_reports_must_split_evenly_over_processes(tmp_path, monkeypatch):
    """A number of reports that the processes cannot share is refused under its flag, and leaves nothing."""
    monkeypatch.setattr(options, "ranks", lambda: 3)
    with pytest.raises(ValueError, match="--reports 8: expected a multiple of the 3 processes"):
        train.main(["--out", str(tmp_path / "run"), "--reports", "8", "--vae-steps", "1"])
    assert not (tmp_path / "run").exists()
