"""sample.py: the schedule, one denoising step, noise and pictures."""
import csv
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

import sample
from ace import ACE, ACEConfig
from chests import drawn
from chests.tables import Tally, read_table
from data import load_images
from model import UNet2DConditionModel, UNetConfig
from rewards import ConsistencyNet, DiagnosisNet, PostureNet, RewardConfig
from sample import (
    Pipeline,
    Schedule,
    ScheduleConfig,
    both_branches,
    ddim_step,
    denoise,
    generate,
    guided_noise,
    seeded_noise,
)
from storage import pictures
from storage.files import read_json, write_json
from text_encoder import CLIPTextModel, TextConfig, Tokenizer
from vae import AutoencoderKL, VAEConfig, at_once


class GaussianScore(torch.nn.Module):
    """The exact noise prediction for data ~ N(mu, sd^2): what a perfectly trained network would answer."""

    def __init__(self, schedule: Schedule, mu: float, sd: float):
        super().__init__()
        self.schedule, self.mu, self.sd = schedule, mu, sd

    def forward(self, x, t, context):
        a = self.schedule.alpha(t)
        e = (1 - a).sqrt() * (x - a.sqrt() * self.mu) / (a * self.sd**2 + 1 - a)
        if self.schedule.config.prediction_type == "epsilon":
            return e
        return (e - (1 - a).sqrt() * x) / a.sqrt()   # v, from e = sqrt(a) v + sqrt(1-a) x_t


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sampler_lands_on_the_data_distribution(eta, kind):
    """With the exact score of a Gaussian, DDIM ends on its mean and standard deviation,
    for eps and v, any eta."""
    schedule = Schedule(ScheduleConfig(prediction_type=kind, timestep_spacing="trailing",
                                       set_alpha_to_one=True))
    net, nothing = GaussianScore(schedule, 0.7, 0.4), torch.zeros(16, 1, 1)
    noise = seeded_noise(list(range(16)), 200, (4, 16, 16))
    noise[:, 0] += schedule.a[999].sqrt() * 0.7   # a_T is not quite 0: x_T has a little of the data's mean
    for step in denoise(net, schedule, nothing, nothing[0], noise, 1, eta):
        x = step.x_p
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    assert x.std().item() == pytest.approx(0.4, abs=0.02)


def test_eta_one_is_the_ddpm_posterior():
    """At eta = 1 and adjacent timesteps, mean and std equal the DDPM posterior q(x_p | x_t, x_0)
    (Ho et al., eq. 6-7)."""
    schedule = Schedule(ScheduleConfig())
    t, p = torch.tensor([500]), torch.tensor([499])
    x0, e = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    x = schedule.add_noise(x0, e, t)
    mean, std, _ = ddim_step(schedule, e, x, t, p, 1.0)
    a_t, a_p = schedule.a[500], schedule.a[499]
    beta = 1 - a_t / a_p
    posterior = a_p.sqrt() * beta / (1 - a_t) * x0 + (a_t / a_p).sqrt() * (1 - a_p) / (1 - a_t) * x
    assert torch.allclose(mean, posterior, atol=1e-5)
    assert std.item() == pytest.approx(math.sqrt((1 - a_p) / (1 - a_t) * beta), rel=1e-4)


def test_last_step_has_no_randomness_when_alpha_is_one():
    """Where a_p = 1 the std is 0: that step has no log-probability
    and must stay out of the policy gradient."""
    schedule = Schedule(ScheduleConfig.tiny())
    t, p = schedule.timesteps(10)
    zero = torch.zeros(1, 1, 1, 1)
    stds = [ddim_step(schedule, zero, zero, t[i:i + 1], p[i:i + 1], 1.0)[1].item() for i in range(10)]
    assert p[-1] == -1 and stds[-1] == 0 and min(stds[:-1]) > 0


def test_timesteps_are_those_of_the_reference():
    """Leading and trailing spacing as diffusers' DDIMScheduler has them; every step leads to the next."""
    t, p = Schedule(ScheduleConfig()).timesteps(50)
    assert t[:3].tolist() == [981, 961, 941] and t[-1] == 1 and p[-1] == -1
    t, p = Schedule(ScheduleConfig.tiny()).timesteps(10)
    assert t.tolist() == list(range(999, 0, -100)) and p.tolist() == list(range(899, 0, -100)) + [-1]


def test_against_diffusers_ddim():
    """One DDIM step equals diffusers' for eps and v, every spacing, to 1e-5."""
    diffusers = pytest.importorskip("diffusers")
    for kind in ("epsilon", "v_prediction"):
        for config in (ScheduleConfig(prediction_type=kind), ScheduleConfig(
                prediction_type=kind, timestep_spacing="trailing", set_alpha_to_one=True)):
            schedule, theirs = Schedule(config), diffusers.DDIMScheduler(**config.__dict__, clip_sample=False)
            theirs.set_timesteps(20)
            t, p = schedule.timesteps(20)
            assert t.tolist() == theirs.timesteps.tolist()
            for i in (0, 7, 19):
                x, out, z = torch.randn(3, 2, 4, 8, 8)
                mean, std, _ = ddim_step(schedule, out, x, t[i].expand(2), p[i].expand(2), 1.0)
                step = theirs.step(out, int(t[i]), x, eta=1.0, variance_noise=z).prev_sample
                assert torch.allclose(mean + std * z, step, rtol=1e-5, atol=2e-5)


def test_decoding_in_parts_changes_no_picture(monkeypatch):
    """Images are decoded a few at a time, on a GPU two of 512 px, which bounds memory; none is lost, and
    order is kept."""
    pipe, sizes = Pipeline(None, AutoencoderKL(VAEConfig.tiny()), None, None, Schedule(ScheduleConfig())), []

    def decode(z):
        sizes.append(len(z))
        return torch.nn.functional.interpolate(z[:, :1], scale_factor=4.0)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    for z in (torch.randn(3, 4, 128, 128), torch.randn(129, 4, 16, 16)):   # 512 px, 64 px
        assert torch.equal(pipe.decode(z), (decode(z) / 2 + 0.5).clamp(0, 1))
    assert sizes == [1, 1, 1, 3, 32, 32, 32, 32, 1, 129] and at_once(512, torch.device("cuda")) == 2


def test_noise_depends_on_the_seed_alone():
    """An image's noise is the same alone, in any batch and in any order."""
    together = seeded_noise([5, 6, 7], 3, (2, 4, 4))
    assert torch.equal(together[1], seeded_noise([6], 3, (2, 4, 4))[0])
    assert torch.equal(together.flip(0), seeded_noise([7, 6, 5], 3, (2, 4, 4)))


def test_guidance_extrapolates_from_the_unconditional_branch():
    """e = e_u + w (e_c - e_u); at w = 1 the unconditional branch is not even computed."""
    calls = []

    def unet(x, t, context):
        calls.append(len(x))
        return context.mean((1, 2)).view(-1, 1, 1, 1).expand_as(x)

    x, t = torch.zeros(2, 1, 2, 2), torch.zeros(2).long()
    cond, uncond = torch.full((2, 3, 4), 5.0), torch.full((3, 4), 1.0)
    for w, guided, rows in ((3.0, 13, [4]), (1, 5, [4, 2])):
        out = guided_noise(unet, x, t, both_branches(unet, cond, uncond, w), w)
        assert out.unique().item() == guided and calls == rows


def test_schedule_folder_round_trip_and_refusals(tmp_path):
    """scheduler_config.json is read back as written;
    a schedule that cannot be reproduced is refused by key and value."""
    Schedule(ScheduleConfig.tiny()).save_pretrained(tmp_path)
    assert Schedule.from_pretrained(tmp_path).config == ScheduleConfig.tiny()
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "squaredcos_cap_v2"}')
    with pytest.raises(ValueError, match="beta_schedule is 'squaredcos_cap_v2'"):
        Schedule.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match="scheduler_config.json"):
        Schedule.from_pretrained(tmp_path)


def test_png_says_that_it_is_synthetic(tmp_path):
    """A saved picture carries synthetic=true and what is needed to make it again, non-ASCII text included."""
    rows = [("Größe normal", torch.rand(3, 1, 8, 8)), ("two", torch.rand(2, 1, 8, 8))]
    sheet = pictures.picture_grid(rows, 32)
    assert sheet.width == 96
    pictures.save_png(sheet, tmp_path / "a" / "grid.png", report="Größe normal", seed=3)
    text = Image.open(tmp_path / "a" / "grid.png").text
    assert text["synthetic"] == "true" and text["seed"] == "3" and text["report"] == "Größe normal"
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["grid.png"]


def test_a_picture_beyond_black_and_white_has_no_specks():
    """What a decoder gives a little below 0 is black, not white, and above 1 white."""
    images = torch.stack([torch.full((1, 8, 8), -0.01), torch.full((1, 8, 8), 1.01)])
    sheet = np.asarray(pictures.picture_grid([("", images)], 32))[-32:]
    assert (sheet[:, :32] == 0).all() and (sheet[:, 32:] == 255).all()


@pytest.mark.parametrize("argv, words", [
    ([], "either a report"), (["x", "--n", "0"], "--n 0"), (["x", "--steps", "0"], "--steps 0"),
    (["  "], "empty"), (["x", "--guidance", "nan"], "--guidance nan"),
    (["x", "--out", "a.jpg"], "--out a.jpg"), (["x", "--seed", "-1"], "--seed -1"),
    (["x", "--seed", str(2**32 - 1)], "the last would be 4294967298"),
    (["x", "--best-of", "0"], "--best-of 0"),
    (["x", "--batch", "0"], "--batch 0"), (["bad \udcff byte"], "valid UTF-8"),
    (["--reports", "/dev/null"], "--reports /dev/null: .*not a regular file"),
    (["--reports", "absent.txt"], "--reports absent.txt"), (["x", "--run", "absent"], "model_index.json")])
def test_command_line_refuses_bad_values(argv, words):
    """Every bad option stops with one line that names the flag and the value."""
    with pytest.raises(ValueError, match=words):
        sample.main(argv)


@pytest.mark.parametrize("name, text, words", [
    ("many.txt", "Clear.\n" * 257, "--out .*g.png: a grid of 257 reports; expected 256, or a folder"),
    ("table.tsv", "report\tid\nClear.\t1\n", "--reports .*table.tsv: expected a text file"),
    ("blank.txt", "\n \n", "^--reports /.*blank.txt: no report in it")])
def test_files_that_cannot_be_drawn_are_refused_before_a_model_is_loaded(tmp_path, name, text, words):
    """A picture too high to open, a table read as lines, nothing at all: the flag and the file are named."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        sample.main(["--reports", str(tmp_path / name), "--run", "absent", "--out", str(tmp_path / "g.png")])


def test_names_of_pictures_fit_a_file_system(tmp_path):
    """Names grow by the report and the seed, and while they are written."""
    with pytest.raises(ValueError, match="expected a shorter name"):
        sample.main(["x", "--run", "absent", "--out", str(tmp_path / f"{'g' * 240}.png")])


def test_reports_file_must_be_utf8(tmp_path):
    """A report file in another encoding is refused with the byte's position, not decoded into nonsense."""
    (tmp_path / "r.txt").write_bytes("Herzgröße normal".encode("latin-1"))
    with pytest.raises(ValueError, match="--reports .*r.txt: cannot be read: .*position 6"):
        sample.main(["--reports", str(tmp_path / "r.txt")])


def test_a_report_is_a_line(tmp_path):
    """Lines end where an editor ends them: a line or page separator copied from a web page ends no report."""
    (tmp_path / "r.txt").write_bytes("\ufeffNo\u2028acute\fdisease.\r\n\n Clear lungs. \n".encode())
    assert drawn.read_reports(tmp_path / "r.txt") == ["No\u2028acute\fdisease.", "Clear lungs."]


@pytest.fixture(scope="module")
def saved_pipeline(tmp_path_factory) -> tuple[Pipeline, Path]:
    """A small pipeline with random weights and ACE, and its folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    unet, text = UNet2DConditionModel(UNetConfig.tiny()).eval(), CLIPTextModel(TextConfig.tiny()).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.02 * torch.randn_like(parameter)   # nothing is zero any more
    reports = ["Small left pleural effusion.", "No acute disease. The heart is normal in size."]
    tokenizer = Tokenizer.train(reports * 8, 1024, 64)
    vae = AutoencoderKL(replace(VAEConfig.tiny(), scaling_factor=0.7)).eval()
    pipe = Pipeline(unet, vae, text, tokenizer, Schedule(ScheduleConfig.tiny()), ACE(ACEConfig(3, 128)))
    with torch.no_grad():
        pipe.ace.c_s.normal_()
    pipe.save(folder)
    return pipe, folder


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("with_ace", [False, True])
def test_whole_pipeline_opens_in_diffusers_and_draws_our_picture(saved_pipeline, with_ace, guidance):
    """StableDiffusionPipeline reads the folder as it is; from the same noise both draw the same picture.
    ACE enters through prompt_embeds, in both branches, as docs/recipes.md shows."""
    diffusers = pytest.importorskip("diffusers")
    pipe, folder = saved_pipeline
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    reports, seeds = ["Small left pleural effusion.", "No acute disease."], [3, 4]
    ours = generate(pipe if with_ace else replace(pipe, ace=None), reports, seeds, 5, guidance, eta=0.0)
    settings = {"latents": seeded_noise(seeds, 5, pipe.latent_shape)[:, 0], "num_inference_steps": 5,
                "eta": 0.0, "guidance_scale": guidance, "output_type": "pt"}
    if with_ace:
        c_s = load_file(folder / "ace" / "ace.safetensors")["c_s"].expand(2, -1, -1)
        cond, uncond = theirs.encode_prompt(reports, "cpu", 1, True, negative_prompt=["", ""])
        images = theirs(prompt_embeds=torch.cat([cond, c_s], 1),
                        negative_prompt_embeds=torch.cat([uncond, c_s], 1), **settings).images
    else:
        images = theirs(reports, **settings).images
    assert ours.std() > 0.01
    assert (ours - images).abs().max() < 1e-4


REPORTS = ["Small left pleural effusion.", "No acute disease.", 'A "large" heart, though.', "Pneumothorax."]


@pytest.fixture(scope="module")
def run(saved_pipeline, tmp_path_factory) -> Path:
    """A run folder of random weights: pipeline, reward networks, options."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(saved_pipeline[1], folder / "anchor")
    with open(folder / "reports.csv", "w", newline="") as file:
        rows = [(i, report, "x") for i, report in enumerate([*REPORTS, REPORTS[0]])]
        csv.writer(file).writerows([("id", "annotated_prompt", "note"), *rows])
    torch.manual_seed(1)
    nets = {"posture": PostureNet, "diagnosis": DiagnosisNet, "consistency": ConsistencyNet}
    for name, kind in nets.items():
        net = kind(RewardConfig.tiny()).eval()
        net.tokenizer = Tokenizer.train(REPORTS * 8, 1024, 64)
        net.save_pretrained(folder / "rewards" / name)
    write_json(folder / "config.json", {"sample_steps": 2, "guidance": 2.0, "eta": 1.0, "git": "abc",
                                        "w_align": 0.05, "w_diag": 2.0, "w_consist": 0.2})
    return folder


def test_the_recipe_from_python_runs(run):
    """docs/recipes.md's first block, with a run of random weights in place of its own."""
    code = (ROOT / "docs" / "recipes.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace('"runs/phantom"', repr(str(run))).replace('"cxrl"', '"anchor"'), names)
    assert names["images"].shape[0] == 4 and set(names["scores"]) == {"align", "diag", "consist"}
    assert all(score.shape == (4,) and score.isfinite().all() for score in names["scores"].values())


def test_single_images_lie_beside_the_grid(run, tmp_path, capsys):
    """Every image of the grid is there alone, too, by report and seed, and says how to draw it again."""
    sample.main([REPORTS[0], "--run", str(run), "--n", "2", "--seed", "7", "--out", str(tmp_path / "g.png")])
    assert {f.name for f in tmp_path.iterdir()} == {"g.png", "g_00001_7.png", "g_00001_8.png"}
    said = pictures.png_text(tmp_path / "g_00001_8.png")
    wanted = {"synthetic": "true", "report": REPORTS[0], "seed": "8", "steps": "2", "guidance": "2.0",
              "eta": "1.0", "model": "anchor", "revision": "abc"}
    assert wanted.items() <= said.items()
    again = generate(Pipeline.load(run / "anchor"), [REPORTS[0]], [8], 2, 2.0, 1.0)
    assert (pictures.read_png(tmp_path / "g_00001_8.png") - again).abs().max() < 0.51 / 255


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


def test_a_set_is_drawn_once_by_any_number_of_processes(run, tmp_path):
    """--out FOLDER: each different report of CheXGenBench's table gets its picture, named in prompt_INFO.csv.
    What is missing, damaged or of other settings is drawn, the rest is left alone; two processes draw the
    same bytes as one."""
    command = ["--reports", str(run / "reports.csv"), "--run", str(run), "--n", "1", "--batch", "3"]
    one = tmp_path / "one"
    sample.main([*command, "--out", str(one)])
    first = contents(one)
    assert sorted(first) == [f"{i + 1:05d}_{i}.png" for i in range(4)] + ["prompt_INFO.csv"]
    with open(one / "prompt_INFO.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == REPORTS
    assert [row["img_savename"] for row in rows] == sorted(first)[:4]
    (one / "00001_0.png").unlink()
    (one / "00003_2.png").write_bytes(first["00003_2.png"][:-40])
    kept = (one / "00002_1.png").stat().st_mtime_ns
    sample.main([*command, "--out", str(one)])
    assert contents(one) == first and (one / "00002_1.png").stat().st_mtime_ns == kept
    sample.main([*command, "--out", str(one), "--guidance", "3"])
    assert all(contents(one)[name] != first[name] for name in sorted(first)[:4])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "--", ROOT / "sample.py", *command, "--out", tmp_path / "two"],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == first


@pytest.mark.parametrize("name, held", [("g.png", ".g.png"), ("set", "set")])
def test_a_second_process_on_one_out_is_refused(run, tmp_path, name, held):
    """A grid or a folder is one process's own, also beside others in the same place: the second is refused
    before it loads a model, and what it would have drawn does not mix with the first's. A kill frees it."""
    (tmp_path / held).mkdir()
    holder = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'a')\n"
                               "fcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)",
                               tmp_path / held / ".lock"], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    command = [REPORTS[0], "--n", "1", "--out", str(tmp_path / name), "--run"]
    with pytest.raises(ValueError, match=f"--out .*/{name}: another process is at work in it"):
        sample.main([*command, str(tmp_path / "no model here")])
    sample.main([*command[:-2], str(tmp_path / "other.png"), "--run", str(run)])
    holder.kill()
    holder.wait()
    sample.main([*command, str(run)])
    assert not list(tmp_path.glob(".*"))


def test_a_drawn_set_can_be_judged(run, tmp_path):
    """evaluate.py --images reads the folder as it is: prompt_INFO.csv names pictures and prompts."""
    folder = tmp_path / "set"
    sample.main(["--reports", str(run / "reports.csv"), "--run", str(run), "--n", "2", "--out", str(folder)])
    chests = load_images(folder, 64)
    assert chests.reports == [report for report in REPORTS for _ in range(2)]
    assert torch.equal(chests.images(torch.tensor([3])) / 255, pictures.read_png(folder / "00002_3.png"))


def test_a_table_of_prompts_reads_back(tmp_path):
    """Whatever line break a prompt holds, the picture is judged by that prompt."""
    prompts = ["Edema.\rNo effusion.", 'A "mass", 2 cm.', "Edema.\nClear."]
    drawn.write_table(tmp_path, [drawn.Job(tmp_path / "a.png", prompt, range(1)) for prompt in prompts])
    table = read_table(tmp_path / "prompt_INFO.csv", Tally(), ["img_savename", "prompt"])
    assert [cells["prompt"] for cells in table] == prompts


def test_what_is_not_of_this_set_is_not_replaced(run, tmp_path):
    """A film of the user's, pictures of other reports, another set's table: refused before a model draws. A
    grid may be drawn for another report, a set may grow, and what is damaged is drawn anew."""
    reports = tmp_path / "reports.txt"
    reports.write_text("\n".join(REPORTS))
    command = ["--reports", str(reports), "--run", str(run), "--n", "1", "--out", str(tmp_path / "set")]
    sample.main(command)
    before = contents(tmp_path / "set")
    reports.write_text("Another report.")
    with pytest.raises(ValueError, match="00001_0.png was drawn for another report"):
        sample.main(command)
    reports.write_text(REPORTS[0])
    with pytest.raises(ValueError, match=r"holds \d other pictures, such as 00002_1.png"):
        sample.main(command)
    assert contents(tmp_path / "set") == before
    (tmp_path / "set" / "prompt_INFO.csv").unlink()   # the set was never finished: no matter
    with pytest.raises(ValueError, match=r"holds \d other pictures, such as 00002_1.png"):
        sample.main(command)
    (tmp_path / "set" / "prompt_INFO.csv").write_bytes(before["prompt_INFO.csv"])
    reports.write_text("\n".join([*REPORTS, "One more."]))
    with pytest.raises(ValueError, match="a run's folder"):
        sample.main([*command[:-1], str(run)])
    (tmp_path / "set" / "00001_0.png").write_bytes(b"damaged")
    sample.main(command)
    assert before.items() - contents(tmp_path / "set").items() == {
        ("prompt_INFO.csv", before["prompt_INFO.csv"])}
    Image.new("L", (9, 9)).save(tmp_path / "film.png")
    for _ in range(2):
        with pytest.raises(ValueError, match="film.png is no picture drawn here"):
            sample.main([REPORTS[0], "--run", str(run), "--n", "1", "--out", str(tmp_path / "film.png")])
    for report in REPORTS[:2]:
        sample.main([report, "--run", str(run), "--n", "1", "--out", str(tmp_path / "grid.png")])


def test_a_set_that_is_drawn_anew_is_no_set_until_it_is_whole(run, tmp_path, monkeypatch, capsys):
    """Half of the new pictures would be judged together with half of the old. What is kept is said."""
    command = [REPORTS[0], "--run", str(run), "--n", "3", "--batch", "1", "--out", str(tmp_path / "set")]
    sample.main(command)
    whole, drawn_best = contents(tmp_path / "set"), sample.draw_best

    def dies(paint, like, reports, seeds):
        return drawn_best(paint, like, reports, seeds) if seeds[0][0] == 0 else 1 / 0

    monkeypatch.setattr(sample, "draw_best", dies)
    with pytest.raises(ZeroDivisionError):
        sample.main([*command, "--guidance", "3"])
    assert not (tmp_path / "set" / "prompt_INFO.csv").exists()
    monkeypatch.undo()
    capsys.readouterr()
    sample.main(command)
    assert "2 of 3 pictures are there already" in capsys.readouterr().out
    assert contents(tmp_path / "set") == whole


def test_best_of_keeps_what_the_reward_networks_like_best(run, tmp_path):
    """Of the N candidates of an image the one with the highest weighted sum of rewards is kept, and its seed
    said; what candidates are, does not depend on the batch."""
    sample.main(["--reports", str(run / "reports.csv"), "--run", str(run), "--n", "1", "--best-of", "4",
                 "--out", str(tmp_path / "set")])
    (like, _), pipe = sample.liking(run, torch.device("cpu")), Pipeline.load(run / "anchor")
    winners = []
    for i, report in enumerate(REPORTS):
        seeds = list(range(4 * i, 4 * i + 4))
        winners.append(seeds[like(generate(pipe, [report] * 4, seeds, 2, 2.0), [report] * 4).argmax()])
        said = pictures.png_text(tmp_path / "set" / f"{i + 1:05d}_{4 * i}.png")
        assert (said["seed"], said["seeds"]) == (str(winners[-1]), f"{seeds[0]}-{seeds[-1]}")
    assert {winner % 4 for winner in winners} != {0}


def test_a_picture_is_there_if_all_that_made_it_is_the_same(run, tmp_path):
    """Another prediction type, another scale of latents, other reward weights: what lies there is of another
    model, and drawn again. A model whose c_s is gone is none."""
    own = shutil.copytree(run, tmp_path / "own")
    command = [REPORTS[0], "--run", str(own), "--n", "1", "--best-of", "2", "--out", str(tmp_path / "set")]
    (tmp_path / "set").mkdir()
    said = []
    for file, change in [(None, {}), ("config.json", {"w_diag": 1.0}),
                         ("anchor/scheduler/scheduler_config.json", {"prediction_type": "epsilon"}),
                         ("anchor/vae/config.json", {"scaling_factor": 0.5})]:
        if file:
            write_json(own / file, read_json(own / file) | change)
        sample.main(command)
        said.append(tuple(sorted(pictures.png_text(tmp_path / "set" / "00001_0.png").items())))
    assert len(set(said)) == 4 and dict(said[0])["best_of"] == "2"
    shutil.rmtree(own / "anchor" / "ace", ignore_errors=True)
    write_json(own / "anchor/model_index.json", read_json(own / "anchor/model_index.json") | {"_ace": True})
    with pytest.raises(ValueError, match="ace"):
        sample.main(command)


def test_options_of_a_run_are_numbers(run, tmp_path):
    """A config.json whose sampling options cannot be meant is refused by name."""
    write_json(tmp_path / "config.json", {"sample_steps": "many"})
    with pytest.raises(ValueError, match="config.json: sample_steps is 'many'"):
        sample.run_settings(tmp_path)


def test_a_picture_needs_a_report_and_a_seed(run):
    """One seed for four reports would be one noise for four pictures, silently."""
    with pytest.raises(ValueError, match="4 reports, 1 seeds: expected one seed for each"):
        generate(Pipeline.load(run / "anchor"), ["Clear."] * 4, [0], 2)
