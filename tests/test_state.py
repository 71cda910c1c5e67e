"""storage/ and training/: what a command prints and how it ends, who may write, and what is read back."""
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMOKE
from PIL import Image
from safetensors.torch import load_file, save_file

import data
from rewards import DiagnosisNet
from sample import SampleConfig
from storage import files
from storage.files import append_line, holding, keep_tensors, read_json, replacing, to_json, write_json
from storage.pictures import png_text, save_png
from training import loop, options
from training.latents import latent_cache
from training.loop import Run, read_log
from training.options import parse
from vae import AutoencoderKL, VAEConfig

SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from storage import command
command.begin("the same command goes on", status=3)
"""


def script(body: str, **how) -> subprocess.Popen:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([sys.executable, "-c", SCRIPT + body], **how)


def test_no_letter_and_no_reader_ends_a_command(tmp_path):
    """Letters that the console's code page lacks are escaped; a closed pipe or a full disk behind `>` costs
    the output and nothing else."""
    body = "for i in range(300): print('漢', i)\nopen(sys.argv[1], 'w').write('done')"
    for number, how in enumerate(({"env": {**os.environ, "PYTHONIOENCODING": "cp1252"}},
                                  {"stdout": os.open("/dev/full", os.O_WRONLY)}, {})):
        path = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-c", SCRIPT + body, path],
                                   **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how})
        if not how:
            process.stdout.close()   # `| head -0`
        out = process.stdout.read() if number == 0 else b""
        assert process.wait() == 0 and path.read_text() == "done", process.stderr.read()
        assert number or out.startswith(b"\\u6f22 0")


def test_an_error_is_one_line_whatever_is_in_it():
    """A message of several lines, or with half a letter in it, is one line and the command's own status."""
    process = script("raise ValueError('DIR\\udcff: wrong\\nin two lines')")
    assert process.wait() == 3
    assert process.stderr.read() == b"error: DIR\\udcff: wrong in two lines\n"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("body", [
    "print('begun', flush=True); time.sleep(60)",
    "with command.stoppable() as stopped:\n    print('begun', flush=True)\n"
    "    while not stopped(): time.sleep(0.01)\n    print('saved')\nprint('never reached')"])
def test_a_signal_ends_a_command_with_a_word_on_how_to_go_on(number, status, body):
    """Ctrl-C and SIGTERM: one line, the usual status; a loop that is stoppable ends itself first."""
    process = script(body)
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == status and error == b"stopped: the same command goes on\n"
    assert out == (b"saved\n" if "saved" in body else b"")


@pytest.mark.parametrize("body, words", [
    ("import no_such_package", b"error: No module named 'no_such_package'\n"),
    ("import torch; torch.empty(10**15)", b"can't allocate memory")])
def test_what_the_machine_lacks_is_one_line(body, words):
    """A package that is not installed, memory that is not there: no traceback."""
    _, error = (process := script(body)).communicate(timeout=100)
    assert process.returncode == 3 and words in error and b"Traceback" not in error


def test_one_process_holds_a_run_and_its_death_frees_it(tmp_path):
    """A second process on a folder is refused at once; SIGKILL of the first leaves nothing to clean up. What
    a killed process left half-written goes, what others put there stays."""
    run = tmp_path / "run"
    with holding(run):
        write_json(run / "config.json", {})
    holder = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'a')\n"
                               "fcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)",
                               run / ".lock"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="run: another process is at work in it"), holding(run):
        pass
    holder.kill()
    holder.wait()
    (run / "vae.safetensors.4711.tmp").write_text("half")
    (run / "mine.tmp").write_text("whole")
    for folder in ("state", "other"):
        (run / folder).mkdir()
        (run / folder / "rl.safetensors.4711.tmp").write_text("half, or of a run that lies below")
        (run / folder / ".tmpWnuhkH").write_text("half, by safetensors")
    with holding(run):
        pass
    assert sorted(p.name for p in run.iterdir()) == [".lock", "config.json", "mine.tmp", "other", "state"]
    assert not [*(run / "state").iterdir()] and len([*(run / "other").iterdir()]) == 2


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, capsys):
    """Where the lock is refused for another reason than another process, the reason is said and the command
    goes on."""
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("storage.files.fcntl.lockf", no_locks)
    with holding(tmp_path / "run"):
        write_json(tmp_path / "run" / "config.json", {})
    assert "run: cannot be locked (No locks available)" in capsys.readouterr().out


def test_a_folder_to_which_nothing_was_written_goes_again(tmp_path):
    """An error before the first file leaves no run folder behind; a folder that was there stays."""
    for name, there in (("new", False), ("old", True)):
        (tmp_path / name).mkdir() if there else None
        with pytest.raises(KeyError), holding(tmp_path / name):
            raise KeyError
        assert (tmp_path / name).exists() is there


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    """Writing never goes through a link that somebody laid under the temporary name."""
    (tmp_path / "outside").write_text("precious")
    (tmp_path / f"a.json.{os.getpid()}.tmp").symlink_to(tmp_path / "outside")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "outside").read_text() == "precious" and read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(OSError), replacing(tmp_path / "b") as temporary:
        assert temporary.is_file() and not temporary.read_bytes()
        raise OSError
    assert not list(tmp_path.glob("b*"))


def test_a_pipe_or_a_link_is_no_file_of_a_run(tmp_path):
    """Neither is opened, which would never end or reach elsewhere: not as picture, lock or weights."""
    os.mkfifo(tmp_path / "a.png")
    assert png_text(tmp_path / "a.png") is None
    os.mkfifo(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="net.safetensors: not a DenseNet-121.*not a regular file"):
        DiagnosisNet.from_densenet(tmp_path / "net.safetensors")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a reward network.*not a regular file"):
        DiagnosisNet.from_pretrained(tmp_path)
    for spoil in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "outside")):
        spoil(tmp_path / ".lock")
        with pytest.raises(ValueError, match=".lock is not a regular file"), holding(tmp_path):
            pass
        (tmp_path / ".lock").unlink()
    assert not (tmp_path / "outside").exists()


WRITTEN = {
    "a.json": lambda path: write_json(path, {"a": list(range(100))}),
    "a.safetensors": lambda path: keep_tensors(path, {"a": torch.zeros(100)}),
    "a.png": lambda path: save_png(Image.effect_noise((40, 40), 50), path),
    "log.jsonl": lambda path: append_line(path, "b" * 200),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_is_said_and_costs_nothing(tmp_path, name):
    """Every kind of file: an error that names it, what was there before stays whole (of a log its lines), and
    the same goes well once there is room."""
    path, write = tmp_path / name, WRITTEN[name]
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(OSError, match=f"{name}: cannot be written"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" + b"b" * 47 * (name == "log.jsonl")
    assert os.listdir(tmp_path) == [name]
    write(path)
    assert path.stat().st_size > 200


def test_json_knows_no_nan_and_no_depth(tmp_path):
    """Numbers that are not finite are written as null; a file nested thousands deep, or a pipe, is an error
    that names it, and no hang."""
    assert json.loads(to_json({"a": [float("nan"), 1.5], "b": float("inf")})) == {"a": [None, 1.5], "b": None}
    path = tmp_path / "deep.json"
    path.write_text('{"a": ' * 50_000)
    with pytest.raises(ValueError, match="deep.json: not JSON"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: cannot be read: not a regular file"):
        read_json(tmp_path / "pipe")


# ------------------------------------------------------------------------------------------------ the log


def run_of(folder: Path, **more) -> Run:
    run = options.open_run(*parse(["--out", str(folder), *SMOKE]))
    run.options.update(more)
    folder.mkdir(exist_ok=True)
    return run


def test_no_log_line_stays_half_or_is_counted_twice(tmp_path):
    """A stage that resumes from step 4 drops what it logged later, half a line at the end, and what is logged
    at its end (without a time), which comes again; other stages' lines stay."""
    run = run_of(tmp_path / "run")
    run.log("vae", 4, time=1.0, loss=0.5)
    run.log("text", 9, time=1.0, loss=float("nan"))
    run.log("vae", 8, time=2.0, loss=0.25)
    run.log("vae", 4, held_out_psnr=20.0)
    with open(run.path("log.jsonl"), "a") as file:
        file.write('{"stage": "vae", "st')
    run.forget("vae", 4)
    assert run.path("log.jsonl").read_text() == (
        '{"stage": "vae", "step": 4, "time": 1.0, "loss": 0.5}\n'
        '{"stage": "text", "step": 9, "time": 1.0, "loss": null}\n')


@pytest.mark.parametrize("lines", [
    b'{"stage": "vae", "step": 1}{"stage": "vae", "step": 2}\n', b'{"stage": "vae"}\n', b"[1, 2]\n",
    b"notes\n", b"my notes", b'{"stage": "vae", "step": "1"}\n', b"[" * 90_000 + b"\n", b"\xff\xfe\n"])
def test_a_log_with_lines_of_others_is_refused_and_not_touched(tmp_path, lines):
    """Glued, foreign or undecodable lines: an error that names file (and line); nothing is lost."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"stage": "vae", "step": 1, "time": 1}\n' + lines)
    with pytest.raises(ValueError, match="log.jsonl: (line 2 is none of a log|cannot be read)"):
        read_log(path)
    assert path.read_bytes().endswith(lines)


# ------------------------------------------------------------------------------------------------ checkpoints


def stepped(net: torch.nn.Module):
    optimizer = loop.make_optimizer(net.parameters(), 1e-3)
    net(torch.randn(3, 2)).square().mean().backward()
    optimizer.step()
    return optimizer


def change(path: Path, header: dict | None = None, **tensors) -> None:
    """Write a safetensors file again with other tensors (None: without), and another header."""
    kept = load_file(path) | tensors
    save_file({k: v for k, v in kept.items() if v is not None}, path, header)


HEADER = {"stage": "vae", "step": "3", "seconds": "1", "options": "{}"}
WRONG_STATES = {
    "no header": lambda p: change(p),
    "another stage's": lambda p: change(p, HEADER | {"stage": "text"}),
    "a step that is none": lambda p: change(p, HEADER | {"step": "many"}),
    "a negative step": lambda p: change(p, HEADER | {"step": "-1"}),
    "options that are a list": lambda p: change(p, HEADER | {"options": "[]"}),
    "options nested deep": lambda p: change(p, HEADER | {"options": "[" * 90_000}),
    "another network's": lambda p: change(p, HEADER, **{"net.weight": torch.zeros(3, 3)}),
    "a weight missing": lambda p: change(p, HEADER, **{"net.bias": None}),
    "a moment missing": lambda p: change(p, HEADER, **{"optimizer.1.exp_avg": None}),
    "moments of another type": lambda p: change(p, HEADER, **{
        "optimizer.0.exp_avg": torch.zeros(2, 2).to(torch.float8_e4m3fn)}),
    "moments of nobody": lambda p: change(p, HEADER, **{"optimizer.7.step": torch.tensor(1.0)}),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_a_state_file_of_another_kind_is_refused_by_name(tmp_path, name):
    """One error that names the file and says what to do, whatever is wrong in it; weights stay as they
    are."""
    run, net = run_of(tmp_path / "run"), torch.nn.Linear(2, 2)
    optimizer = stepped(net)
    loop.save_state(run, "vae", 3, 1.0, {"net": net}, optimizer, None)
    assert loop.load_state(run, "vae", {"net": net}, optimizer, None) == (3, 1.0)
    WRONG_STATES[name](run.path("state", "vae.safetensors"))
    before = net.weight.clone()
    with pytest.raises(ValueError, match="vae.safetensors: .*delete it to begin the stage anew"):
        loop.load_state(run, "vae", {"net": net}, optimizer, None)
    assert torch.equal(net.weight, before)


class Pairs:
    """As much of a set as a run is tied to."""
    name, size, truth, posture = "train", 16, None, None

    def __init__(self, reports: list[str], seed: int = 0):
        self.reports, self.labels = reports, torch.zeros(len(reports), 14)
        self.pixels = torch.randint(256, (len(reports), 1, 16, 16), dtype=torch.uint8,
                                    generator=torch.Generator().manual_seed(seed))
        self.digest = data.digest([self.pixels.flatten().tolist()], reports, self.labels)

    def __len__(self) -> int:
        return len(self.reports)

    def images(self, index) -> torch.Tensor:
        return self.pixels[index]

    def stream(self, rule):
        return lambda step: self.images(rule(step))


def test_a_run_is_tied_to_its_data(tmp_path):
    """The same images, reports and labels are the same data however the folder is spelled; sorted otherwise
    they are not, in the run folder and in each checkpoint."""
    data = tmp_path / "data"
    data.mkdir()
    runs = [options.open_run(*parse(["--out", str(tmp_path / "run"), "--data", spelled, *SMOKE]))
            for spelled in (str(data), f"{data}/", os.path.relpath(data))]
    for run in runs:
        options.bind(run, {"train": Pairs(["a", "b"])})
    net = torch.nn.Linear(2, 2)
    loop.save_state(run, "vae", 3, 1.0, {"net": net}, stepped(net), None)
    for other in (Pairs(["b", "a"]), Pairs(["a", "b"], seed=1)):
        run = options.open_run(*parse(["--out", str(tmp_path / "run"), "--data", str(data), *SMOKE]))
        with pytest.raises(ValueError, match="--data .*images, reports or labels are not those .*run was"):
            options.bind(run, {"train": other})
        with pytest.raises(ValueError, match="--data .*vae.safetensors was begun with"):
            loop.load_state(run, "vae", {"net": net}, stepped(net), None)


def test_latents_of_other_images_are_made_again(tmp_path, capsys):
    """Kept latents are named after their images and their autoencoder: sorted otherwise, or encoded by
    another one, they are not used. What is not finite is refused."""
    torch.manual_seed(0)
    vae = AutoencoderKL(VAEConfig(in_channels=1, out_channels=1, block_out_channels=(8, 8),
                                  norm_num_groups=4))
    run, here, there = run_of(tmp_path / "run"), Pairs(["a", "b", "c"]), Pairs(["a", "b", "c"], seed=1)
    first = latent_cache(run, vae, here)[torch.arange(3)]
    [path] = run.path("state").glob("latents-*/*.npy")
    kept = path.stat().st_mtime_ns
    assert torch.equal(latent_cache(run, vae, here)[torch.arange(3)], first)
    assert path.stat().st_mtime_ns == kept
    assert not torch.equal(latent_cache(run, vae, there)[torch.arange(3)], first)
    assert "of other images or another autoencoder" in capsys.readouterr().out and not path.exists()
    [path] = run.path("state").glob("latents-*/*.npy")
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff")   # float16 nan
    with pytest.raises(ValueError, match="latents-.*: not finite; delete it"):
        latent_cache(run, vae, there)[torch.arange(3)]


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("argv, words", [
    (["--eval-reports", "16"], "--eval-reports 16: expected at least 20"),
    (["--seed", "3000000000"], "--seed 3000000000"), (["--seed", "9" * 20], "--seed 9999"),
    (["--sample-steps", "1001"], "--sample-steps 1001: .*expected 1 to 1000"),
    (["--eta", "0"], "--eta 0.*no log-probability"), (["--eta", "1e-30"], "--eta 1e-30"),
    (["--w-align", "1e308"], "--w-align 1e.308"),
    (["--w-align", "1e-200", "--w-diag", "0", "--w-consist", "0"], "at least one reward needs a weight"),
    (["--guidance", "1e9"], "--guidance"),
    (["--ace-tokens", "70000"], "--ace-tokens 70000: .*at most 4,096"),
    (["--lora-rank", "100000"], "--lora-rank 100000"), (["--vae-batch", "1000000000"], "--vae-batch"),
    (["--text-batch", "1"], "--text-batch 1: expected at least 2"),
    (["--reward-batch", "1"], "--reward-batch 1: expected at least 2"),
    (["--reports", "1", "--group", "1"], "--reports 1 --group 1: expected more than one image"),
    (["--gradient", "score", "--clip", "1e-4"], "--clip 0.0001: .*DDPO's 1e-4 .* is 1.64"),
    (["--rlcf"], "--rlcf: needs --gradient score"),
    (["--clip", "0.5"], "--clip 0.5: needs --gradient score"), (["--credit", "end"], "--credit end: needs"),
    (["--finetune-rank", "4"], "--finetune-rank 4: needs --finetune lora"),
    (["--no-ace", "--ace-tokens", "9"], "--ace-tokens 9: needs --ace"),
    (["--out", ""], "argument '': expected a value"), (["--out="], "'--out=': expected a value"),
    (["--vae-steps", "1" + "0" * 30], "--vae-steps 1000"), (["--init=--"], "--init=--.: expected a value"),
    (["--data", "bad \udcff byte"], "bad .* byte.*: expected a value, in valid UTF-8")])
def test_what_can_be_known_is_refused_at_once(argv, words):
    """Under the flag's own name, before anything is loaded."""
    with pytest.raises(ValueError, match=words):
        parse(argv)


def test_an_init_with_more_than_an_anchor_is_refused(tmp_path):
    """An anchor denoises without c_s: a folder that has one is no anchor, nor is one with a ControlNet;
    nothing is silently left out."""
    (tmp_path / "ace").mkdir()
    for index, words in [("{}", "has the c_s of an earlier reinforcement learning"), ("{", "not JSON"),
                         ('{"controlnet": ["diffusers", "ControlNetModel"]}', "has the part controlnet")]:
        (tmp_path / "model_index.json").write_text(index)
        with pytest.raises(ValueError, match=f"--init .*{words}"):
            parse(["--init", str(tmp_path)])


def test_options_of_a_stage_that_is_done_are_refused(tmp_path):
    """config.json never says of a result what did not make it: --vae-steps may change until the autoencoder
    is there, then not; what shapes no result, and what the stages to come take, may."""
    first, other = (run_of(tmp_path / "run", vae_steps=n, rounds=n) for n in (6, 7))
    options.bind(first, {})
    options.refuse_other_origin(other)
    write_json(first.path("anchor", "vae", "config.json"), {})
    with pytest.raises(ValueError, match="--vae-steps 7: .*run was begun with 6; choose another --out"):
        options.refuse_other_origin(other)
    options.refuse_other_origin(run_of(tmp_path / "run", vae_steps=6, rounds=9, sample_steps=9))
    write_json(first.path("rewards", "posture", "config.json"), {})   # one of three
    with pytest.raises(ValueError, match="--reward-lr 1.0: .*choose another --out"):
        options.refuse_other_origin(run_of(tmp_path / "run", vae_steps=6, reward_lr=1.0))
    write_json(first.path("evaluation.json"), {})
    with pytest.raises(ValueError, match="--sample-steps 9: .*evaluation.json was begun with .*delete it"):
        options.refuse_other_origin(run_of(tmp_path / "run", vae_steps=6, sample_steps=9))
    write_json(first.path("evaluation.json"), {"n": 77})   # by evaluate.py
    with pytest.raises(ValueError, match="--eval-reports 9: .*evaluation.json was begun with 77; delete it"):
        options.refuse_other_origin(run_of(tmp_path / "run", vae_steps=6, eval_reports=9))
    options.refuse_other_origin(run_of(tmp_path / "run", vae_steps=6, eval_reports=77))


def test_options_of_a_stage_that_is_begun_are_refused_before_the_folder_says_so(tmp_path):
    """A start that is refused leaves config.json, which sample.py reads, as it was. The given flag is
    named, not the defaults that it brings; what a later stage takes is free until then."""
    run, net = run_of(tmp_path / "run"), torch.nn.Linear(2, 2)
    options.bind(run, {})
    said = run.path("config.json").read_bytes()
    loop.save_state(run, "rl", 3, 1.0, {"net": net}, stepped(net), None)
    for flags, words in (("--guidance 3", "--guidance 3.0: .*rl.safetensors was begun with 1.0; give that"),
                         ("--gradient score", "--gradient score: .*was begun with 'pathwise'"),
                         ("--no-ace", "--no-ace: .* was begun with the other")):
        with pytest.raises(ValueError, match=words):
            options.open_run(*parse(["--out", str(tmp_path / "run"), *SMOKE, *flags.split()]))
    assert run.path("config.json").read_bytes() == said
    loop.save_state(run, "vae", 3, 1.0, {"net": net}, stepped(net), None)
    later = run_of(tmp_path / "run", rounds=9)
    assert loop.load_state(later, "vae", {"net": net}, stepped(net), None)[0] == 3
    with pytest.raises(ValueError, match="--rounds 9: .*rl.safetensors was begun with"):
        loop.load_state(later, "rl", {"net": net}, stepped(net), None)


@pytest.mark.parametrize("flags", [
    "--rwr-steps 0 --rounds 0", "--rwr-steps 0 --mix 0", "--rwr-lr 0 --rl-lr 0 --no-ace",
    "--rwr-steps 0 --rl-lr 0 --ace-lr 0", "--rounds 0 --rwr-lr 0 --no-ace", "--mix 0 --rwr-lr 0 --no-ace"])
def test_learning_nothing_is_refused(flags):
    """The anchor would be called CXRL."""
    with pytest.raises(ValueError, match="nothing would be learned"):
        parse(flags.split())


def test_a_moved_init_is_the_same_init(tmp_path):
    """What one brings along goes by its contents, not by where it lies."""
    old, new = ({"init": path, "init_digest": "same"} for path in ("/a/SD", "/b/SD"))
    loop.refuse_another("init", old, new, tmp_path, "")
    with pytest.raises(ValueError, match="--init /b/SD: .*was begun with '/a/SD'"):
        loop.refuse_another("init", old, new | {"init_digest": "other"}, tmp_path, "")
    with pytest.raises(ValueError, match="--diagnosis net: its files are not those"):
        loop.refuse_another("diagnosis_digest", {"diagnosis_digest": "a"},
                            {"diagnosis_digest": "b", "diagnosis": "net"}, tmp_path, "")


def test_a_network_of_ones_own_is_tied_with_its_labels(tmp_path):
    """FILE.safetensors and the FILE.json beside it, and nothing else of their folder."""
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"1" * 100)
    file.with_suffix(".json").write_text('["Edema"]')
    first = options.files_digest(file)
    (tmp_path / "readme").write_text("no part of it")
    assert options.files_digest(file) == first
    file.with_suffix(".json").write_text('["Mass"]')
    assert options.files_digest(file) != first


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path):
    """safetensors makes its files its owner's alone; ours are as all others of a run."""
    umask = os.umask(0o022)
    os.umask(umask)
    keep_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_result_keeps_the_revision_that_made_it(tmp_path, monkeypatch):
    """The code may have gone on when a finished run is looked at again; its pictures name what made them."""
    run = run_of(tmp_path / "run")
    monkeypatch.setattr(options, "git_revision", lambda: "old")
    options.bind(run, {})
    monkeypatch.setattr(options, "git_revision", lambda: "new")
    write_json(run.path("cxrl", "model_index.json"), {})
    options.bind(run, {})
    assert read_json(run.path("config.json"))["git"] == "old"


def test_a_revision_says_that_the_code_was_changed(tmp_path, monkeypatch):
    """The commit alone would name code that did not run."""
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    (tmp_path / "files.py").write_text("1")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=b commit -qm 1"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    clean = files.git_revision()
    (tmp_path / "files.py").write_text("2")
    assert len(clean) == 40 and files.git_revision() == f"{clean}-dirty"


def test_an_init_is_tied_by_what_is_in_it(tmp_path):
    """Weights or a tokenizer that change behind the folder's name are another --init."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "weights").write_bytes(b"1" * 100)
    first = options.files_digest(tmp_path)
    (tmp_path / "readme").write_text("no part of it")
    assert options.files_digest(tmp_path) == first
    (tmp_path / "unet" / "weights").write_bytes(b"1" * 50 + b"2" + b"1" * 49)
    assert options.files_digest(tmp_path) != first


def test_only_temporary_files_of_a_run_go(tmp_path):
    """What a killed process left in a run goes at the next start; what only looks like it, and what lies in
    folders of others, stays."""
    names = ["a.json.12.tmp", "notes.2024.tmp", "samples/a.png.7.tmp", "samples/.tmpAbC123"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "dir.json.1.tmp").mkdir()
    with holding(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {".lock"}
        assert left == set(names[1:])
    write_json(tmp_path / "config.json", {})
    with holding(tmp_path):
        assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
            ".lock", "config.json", "notes.2024.tmp"}


def test_compile_without_a_compiler_is_refused(monkeypatch):
    """--compile compiles a line before the first stage: without a compiler that is one short error."""
    import torch._inductor.config as inductor
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nonexistent/g++"))
    with pytest.raises(ValueError, match="--compile: torch.compile does not work here") as error:
        parse(["--compile"])
    assert len(str(error.value).splitlines()) == 1


def test_sampling_defaults_pass_the_check():
    """What is refused is not what is given when nothing is given."""
    assert parse([])[1] == SampleConfig()
