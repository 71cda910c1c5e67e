"""From a Stable Diffusion folder and an archive to CXRL: fine-tuning, presets, latents on disk, several
processes, and what --dry-run foretells."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMOKE, command
from PIL import Image
from safetensors.torch import load_file, save_file
from test_rl import Brightness, optimizer_of, small_pipeline

import train
from chests.phantom import describe, render
from model import UNet2DConditionModel, UNetConfig
from rl import RLConfig, rl_round
from sample import Pipeline, SampleConfig, Schedule, ScheduleConfig
from text_encoder import CLIPTextModel, TextConfig, Tokenizer
from training import latents, loop, options, plan
from training.options import parse, preset
from vae import AutoencoderKL, VAEConfig

UNET = UNetConfig(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
                  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=32,
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4)
VAE = VAEConfig(block_out_channels=(4, 8, 8, 8), norm_num_groups=4)
TEXT = TextConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4)
FEW = ["--diffusion-steps", "3", "--diffusion-batch", "4", "--diffusion-micro", "3", "--diffusion-lr", "1e-3",
       "--reward-steps", "1", "--reward-batch", "2", "--rounds", "1", "--reports", "2", "--group", "2",
       "--updates", "2", "--rwr-steps", "1", "--sample-steps", "2", "--rollout-steps", "2",
       "--eval-reports", "20", "--save-every", "0"]


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> Path:
    """A folder like Stable Diffusion's, of random weights: 3-channel autoencoder, noise prediction, DDIM's
    betas; 64 px."""
    folder = tmp_path_factory.mktemp("init")
    tokenizer = Tokenizer.train(describe(range(40), 0, False).reports, 600)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(UNET)
    for parameter in unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    vae, text = AutoencoderKL(VAE), CLIPTextModel(TEXT)
    Pipeline(unet, vae, text, tokenizer, Schedule(ScheduleConfig())).save(folder)
    return folder


@pytest.fixture(scope="module")
def mimic(tmp_path_factory) -> Path:
    """MIMIC-CXR-JPG in miniature: 48 patients with a phantom each."""
    folder, texts = tmp_path_factory.mktemp("mimic"), describe(range(48), 0, True)
    metadata, split = "dicom_id,subject_id,study_id,ViewPosition\n", "dicom_id,split\n"
    for i, image in enumerate(render(range(48), 0, 64, True)):
        study = folder / "files" / "p10" / f"p{10_000_000 + i}" / f"s{50_000_000 + i}"
        study.mkdir(parents=True)
        Image.fromarray(image[0].numpy()).save(study / f"d{i}.jpg")
        study.with_suffix(".txt").write_text(f" FINAL REPORT\n IMPRESSION:\n \n {texts.reports[i]}\n")
        metadata += f"d{i},{10_000_000 + i},{50_000_000 + i},PA\n"
        split += f"d{i},{'test' if i < 24 else 'validate' if i < 28 else 'train'}\n"
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text(metadata)
    (folder / "mimic-cxr-2.0.0-split.csv").write_text(split)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{path.parent.name}.{k}": v for path in sorted(folder.glob("*/*.safetensors"))
            for k, v in load_file(path).items()}


def test_the_command_of_the_readme_goes_all_the_way(init, mimic, tmp_path):
    """--preset sd15 --init --data, with a LoRA learned first: evaluation.json in the end; the LoRA is merged
    into the UNet of RUN/anchor, all else is the folder's own; what the preset set is in config.json."""
    run = tmp_path / "run"
    done = command("train.py", "--preset", "sd15", "--init", init, "--data", mimic, "--out", run, *FEW,
                   "--finetune", "lora")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text())["n"] == 20
    kept = json.loads((run / "config.json").read_text())
    assert (kept["guidance"], kept["lora_rank"], kept["offload"], kept["rounds"]) == (4.0, 4, True, 1)
    before, after = tensors(init), tensors(run / "anchor")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(any(name in key for name in ("to_q", "to_k", "to_v", "to_out")) for key in changed)
    read = [Schedule.from_pretrained(folder / "scheduler").config for folder in (init, run / "anchor")]
    assert read[0] == read[1] and read[0].prediction_type == "epsilon"


def test_killed_fine_tuning_ends_bit_for_bit_where_the_uninterrupted_one_ends(init, mimic, tmp_path):
    """SIGKILL after the first checkpoint of UNet and text encoder: the same command ends with the same
    weights, of another UNet and text encoder than it began with, and the very same autoencoder."""
    argv = ["--preset", "sd15", "--init", str(init), "--data", str(mimic), *FEW, "--finetune", "all",
            "--stage", "diffusion"]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *argv, "--out", tmp_path / "killed"],
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "state" / "diffusion.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists() and not (tmp_path / "killed" / "anchor" / "model_index.json").exists()
    for name in ("killed", "whole"):
        train.main([*argv, "--out", str(tmp_path / name)])
    before, one, two = (tensors(folder) for folder in
                        (init, tmp_path / "killed" / "anchor", tmp_path / "whole" / "anchor"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    for part, same in (("unet", False), ("text_encoder", False), ("vae", True)):
        assert all(torch.equal(before[key], one[key]) for key in one if key.startswith(part)) is same, part
    with pytest.raises(ValueError, match="--finetune none: .* was begun with 'all'; choose another --out"):
        train.main([*argv[:-4], "--out", str(tmp_path / "whole")])


# ------------------------------------------------------------------------------------------ several processes

TWO_STEPS = ["--train-images", "24", "--vae-steps", "2", "--vae-batch", "4", "--text-steps", "2",
             "--text-batch", "4", "--diffusion-steps", "2", "--diffusion-batch", "4", "--reward-steps", "2",
             "--reward-batch", "4", "--rwr-steps", "2", "--rounds", "2"]
IN_DOUBLE = """
import multiprocessing, os, socket, sys
sys.path.insert(0, {root!r})
import torch
torch.set_default_dtype(torch.float64)
torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
import data, train
torch.optim.AdamW([torch.zeros(1)])   # imports for seconds, too
# Slow in double precision, and nothing is learned from them: pictures, and what is held out.
data.load_phantom = lambda size, seed, count: {{
    name: data.PhantomChests(name, 1000 * i, count if name == "train" else 8, seed, size, name == "train")
    for i, name in enumerate(("train", "val", "test", "judge"))}}
train.before_and_after = lambda *_: None
train.generate = lambda pipe, reports, *_, **options: torch.zeros(len(reports), 1, 64, 64)

def job(out, environment):
    os.environ.update(environment)
    for stage in ("vae", "diffusion", "rewards", "rl"):
        train.main([*{argv!r}, "--out", out, "--stage", stage])
    train.main([*{tuning!r}, "--out", out + "-tuned", "--stage", "diffusion"])

with socket.create_server(("localhost", 0)) as free:
    port = str(free.getsockname()[1])
both = {{"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}}
ranks = [both | {{"RANK": rank, "LOCAL_RANK": rank}} for rank in "01"]
fork = multiprocessing.get_context("fork").Process   # this process has computed nothing: safe
for out, environments in (("one", [{{}}]), ("two", ranks)):
    jobs = [fork(target=job, args=(out, environment)) for environment in environments]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()
    if any(process.exitcode for process in jobs):
        sys.exit(1)
"""


def test_two_processes_make_what_one_makes(init, mimic, tmp_path):
    """Of two ranks, started as torchrun does, each takes half of every batch and of every rollout. Computed
    in double precision, where rounding hides nothing, every weight that any stage ends with is the one that a
    single process ends with: batch norms, contrastive losses and labels that count unevenly included."""
    double = Path(shutil.copytree(init, tmp_path / "double"))   # float32 means float64 there: in files, too
    for path in double.glob("*/*.safetensors"):
        save_file({key: value.double() for key, value in load_file(path).items()}, path)
    tuning = ["--preset", "sd15", "--init", str(double), "--data", str(mimic), *FEW, "--finetune", "all",
              "--diffusion-steps", "2"]
    script = IN_DOUBLE.format(root=str(ROOT), argv=[*SMOKE, *TWO_STEPS], tuning=tuning)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    parts = ("/anchor", "/rewards", "/cxrl", "-tuned/anchor")
    one, two = ({f"{part} {name}": value for part in parts
                 for name, value in tensors(Path(f"{tmp_path / run}{part}")).items()}
                for run in ("one", "two"))
    assert len(one) > 1000 and one.keys() == two.keys()
    for name, value in one.items():
        assert (value - two[name]).double().norm() <= 1e-9 * value.double().norm(), name


def test_batches_must_split_evenly_over_processes(tmp_path, monkeypatch):
    """A batch that the processes cannot share is refused with the flag's name."""
    monkeypatch.setattr(options, "ranks", lambda: 3)
    # The archive's part of reinforcement learning takes the diffusion stage's batch, also with --init alone.
    batches = ["--reports", "3", "--reward-batch", "3", "--diffusion-batch", "8"]
    monkeypatch.setattr(options, "given_by_init", lambda config: ("vae", "diffusion"))
    with pytest.raises(ValueError, match="--diffusion-batch 8: expected a multiple of the 3 processes"):
        options.open_run(*parse(["--out", str(tmp_path), *batches]))
    monkeypatch.undo()
    monkeypatch.setattr(options, "ranks", lambda: 3)
    with pytest.raises(ValueError, match="--vae-batch 4: expected a multiple of the 3 processes"):
        options.open_run(*parse(["--out", str(tmp_path), "--reports", "33"]))


def test_passes_of_any_size_make_the_same_update(tmp_path):
    """--diffusion-micro: gradient and reported loss are means over the batch, however it is cut."""
    run = loop.Run(tmp_path, {}, torch.device("cpu"), 0, 1e9)
    x, net = torch.randn(5, 3), torch.nn.Linear(3, 1, bias=False)
    for micro in (5, 2, 1):
        torch.nn.init.ones_(net.weight)
        loop.fit(run, f"m{micro}", {"net": net}, lambda step, part: (net(x[part]).square().mean(), {}), 1,
                 0.1, 5, micro)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in lines] == pytest.approx([lines[0][key]] * 3, rel=1e-6)


# ---------------------------------------------------------------------------------------------------- latents


class Films:
    """Ten grey images, and a note of which were asked for."""
    size, digest = 16, "0123456789abcdef"

    def __init__(self):
        self.pixels = torch.randint(256, (10, 1, 16, 16), dtype=torch.uint8)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 10

    def stream(self, rule):
        return lambda step: self.seen.extend(rule(step).tolist()) or self.pixels[rule(step)]


def test_latents_are_mapped_and_made_shard_by_shard(tmp_path, monkeypatch):
    """Each image is encoded once, to float16 files that are mapped, never in memory whole; a shard that is
    missing is made again, and no other; a batch is what the autoencoder gives, scaled, to float16's
    rounding."""
    monkeypatch.setattr(latents, "SHARD", 4)
    monkeypatch.setattr(latents, "at_once", lambda side, device: 3)
    vae, films = AutoencoderKL(VAE).eval(), Films()
    run = loop.Run(tmp_path, {}, torch.device("cpu"), 0, 1e9)
    first = latents.latent_cache(run, vae, films)
    assert films.seen == list(range(10))
    assert all(isinstance(shard, np.memmap) and shard.dtype == np.float16 for shard in first.shards)
    index = torch.tensor([9, 0, 5])
    with torch.no_grad():
        want = vae.encode((films.pixels[index] / 255 * 2 - 1).expand(-1, 3, -1, -1))[0] * VAE.scaling_factor
    assert first[index].dtype == torch.float32 and torch.allclose(first[index], want, rtol=2e-3, atol=1e-3)
    [folder] = (tmp_path / "state").glob("latents-*")
    (folder / "0000004.npy").unlink()
    again = latents.latent_cache(run, vae, films)
    assert films.seen[10:] == [4, 5, 6, 7] and torch.equal(again[index], first[index])
    path = folder / "0000008.npy"
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match="0000008.npy: damaged"):
        latents.latent_cache(run, vae, films)


# ------------------------------------------------------------------------------------------ presets, dry runs


def test_a_preset_sets_defaults_and_flags_override_them(init, capsys):
    """--preset sd15 brings its own defaults, shown by --help; a flag wins, before or after it; tiny's are the
    dataclasses'; every default belongs to an option."""
    kinds = (options.TrainConfig, SampleConfig, RLConfig)
    names = {name for kind in kinds for name in kind.__dataclass_fields__}
    for name in ("tiny", "small", "sd15", "sd21"):
        assert preset(name).defaults.keys() <= names
    config, sampling, rl = parse(["--guidance", "2", "--preset", "sd15", "--init", str(init), "--no-offload"])
    assert (config.out, config.diffusion_lr, sampling.sample_steps) == (Path("runs/sd15"), 1e-5, 50)
    assert (sampling.guidance, rl.offload, rl.checkpointing, rl.lora_rank) == (2.0, False, True, 4)
    with pytest.raises(SystemExit):
        parse(["--preset=sd15", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "denoising steps of a rollout; fewer than of a picture serve [50]" in text
    assert "halves the cost [4.0]" in text


@pytest.mark.parametrize("gradient", ["score", "pathwise"])
@pytest.mark.parametrize("kl, guidance", [(0.0, 1.0), (0.1, 2.0)])
def test_forwards_of_the_plan_are_those_of_a_round(kl, guidance, gradient):
    """The UNet forwards an image that --dry-run prints, counted in a round: rollout, anchor's rollout,
    update."""
    pipe, anchor, count = small_pipeline(), small_pipeline(0), []
    config = RLConfig(gradient, rounds=1, rollout_steps=6, reports=2, group=4, kl=kl, rl_batch=8, rl_micro=8,
                      rlcf=gradient == "score")
    sampling = SampleConfig(guidance=guidance)
    for unet in (pipe.unet, anchor.unet):
        unet.register_forward_hook(lambda net, args, out: count.append(len(out)))
    rl_round(pipe, anchor, anchor, Brightness(), ["a"] * 4 + ["bb"] * 4, list(range(8)), sampling, config,
             optimizer_of(pipe, 1e-4))
    text, _ = plan.work(options.TrainConfig(), sampling, config, 100, 0)["rl"]
    assert f"; {sum(count) / 8:.0f} UNet forwards an image" in text


def test_a_dry_run_says_what_would_be_done_and_does_nothing(same_phantoms, tmp_path, capsys, monkeypatch):
    """Stages, images, updates, forwards, queries, memory and time of what is not done yet, how far a stage
    has come, and no run folder; what cannot fit is refused with the flags that would help."""
    train.main(["--dry-run", *SMOKE, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    for words in ("vae: 6 updates of 8 images", "32 images to encode", "6 updates of 8 images, 1.5 epochs",
                  "3 networks", "32 pairs of the archive to score", "3 rounds of 4 images", "reward queries",
                  "GB of tensors", "passes of the UNet a second"):
        assert words in said, words
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"stage": "text", "step": 4}\n')
    train.main(["--dry-run", *SMOKE, "--out", str(tmp_path / "run")])
    assert "; done of it: text 4\n" in capsys.readouterr().out
    monkeypatch.setattr(plan.os, "sysconf", lambda name: 100)
    with pytest.raises(ValueError, match="stage diffusion: needs .* GB of memory, cpu has 0.0: lower --diff"):
        train.main(["--dry-run", *SMOKE, "--out", str(tmp_path / "run")])


def test_an_option_that_nothing_reads_is_said(init):
    """Phantoms are square and have one text; an archive has as many films as it has; what --init replaces
    is not trained. Not refused, for scripts give all options always, but never silent."""
    made = ["--init", str(init), "--vae-steps", "5", "--diffusion-lr", "1"]
    few = ["--train-images", "9"]
    for given, said in [(["--fit", "pad"], ["--fit pad: does nothing with --data phantom"]), (few, []),
                        (["--data", "x", *few], ["--train-images 9: does nothing with --data x"]),
                        (made, ["--vae-steps 5: does nothing with --init",
                                "--diffusion-lr 1.0: does nothing with --finetune none"]),
                        (made + ["--finetune", "unet"], ["--vae-steps 5: does nothing with --init"])]:
        assert options.needless(options.parse(given)[0]) == said


def test_an_init_is_read_before_the_data(init, tmp_path):
    """What is wrong in a part of the folder is found at once, not after an archive has been decoded."""
    folder = Path(shutil.copytree(init, tmp_path / "init"))
    (folder / "tokenizer" / "merges.txt").unlink()
    command = ["--init", str(folder), "--out", str(tmp_path / "run"), "--data", "absent", *FEW]
    for more in ([], ["--dry-run"]):
        with pytest.raises(ValueError, match="merges.txt: cannot be read"):
            train.main(command + more)


def test_memory_is_foretold_as_a_gpu_needs_it():
    """CUDA's autocast keeps what norms say in float32, the CPU's does not. An update of 16 images of the
    small preset took 13.3 GiB on an H200, reward networks included (docs/experiments.md, 69)."""
    foretold = plan.update_bytes(preset("small"), 16, 0, False, True, torch.float32, 16) / 2**30
    assert 0.9 * 13.3 < foretold < 13.3


def test_processes_of_torchrun_say_why_they_end(tmp_path):
    """torch puts a hook of its own around the one that prints errors, and would keep their line to itself."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           "2", ROOT / "train.py", "--out", tmp_path / "run", *SMOKE, "--reports", "3"],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "error: --reports 3: expected a multiple of the 2 processes" in done.stderr
