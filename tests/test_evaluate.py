"""evaluate.py: a run folder in, evaluation.json out; what is compared with what; clear refusals."""
import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_judge import FLUID, HEART, ToyChests, trained

import evaluate
from evaluation.results import BETTER, gains, remarks, summary
from model import UNet2DConditionModel, UNetConfig
from rewards import DiagnosisNet, RewardConfig
from sample import Pipeline, Schedule, ScheduleConfig
from text_encoder import CLIPTextModel, TextConfig, Tokenizer
from vae import AutoencoderKL, VAEConfig

METRICS = {"posture_deviation", "auroc", "label_accuracy", "all_labels_right", "consistency", "fid", "kid",
           "ms_ssim", "precision", "recall", "density", "coverage", "nearest_train_distance",
           "closer_to_train"}


def toy_sets() -> dict:
    return {"train": ToyChests(96, seed=0, name="train"), "judge": ToyChests(512, seed=1, name="judge"),
            "test": ToyChests(64, seed=2)}


def noise_pipeline(seed: int) -> Pipeline:
    """An untrained pipeline for 32 px: its images are noise, so every metric has to tell them from chests."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(toy_sets()["train"].reports, vocab_size=520, max_length=16)
    unet = UNetConfig(sample_size=16, in_channels=2, out_channels=2, block_out_channels=(8, 8),
                      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4,
                      cross_attention_dim=8, attention_head_dim=2)
    vae = VAEConfig(in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(8, 8),
                    layers_per_block=1, norm_num_groups=4)
    text = TextConfig(vocab_size=len(tokenizer.vocab), hidden_size=8, intermediate_size=16,
                      num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    return Pipeline(UNet2DConditionModel(unet), AutoencoderKL(vae), CLIPTextModel(text), tokenizer,
                    Schedule(ScheduleConfig.tiny()))


@pytest.fixture
def toy_judge():
    return trained()[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run folder of untrained pipelines; cxrl differs from the anchor,
    control is the anchor again."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    noise_pipeline(0).save(folder / "anchor")
    noise_pipeline(1).save(folder / "cxrl")
    config = {"data": "phantom", "seed": 0, "sample_steps": 2, "guidance": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "state").mkdir()
    shutil.copy(trained()[1], folder / "state" / "judge.safetensors")
    return folder


@pytest.fixture(scope="module")
def result(run):
    return evaluate.evaluate_run(run, toy_sets(), reports=24, seed=3, controls=(run / "anchor",))


def test_evaluation_json_holds_the_contract(run, result):
    """Each system has every metric as {"value", "ci95"}, valid JSON without NaN,
    and the value lies near its interval."""
    text = (run / "evaluation.json").read_text()
    assert "NaN" not in text and json.loads(text) == result
    assert result["data"] == "phantom" and result["n"] == 24 and result["seed"] == 3
    assert {"git", "device", "seconds"} <= set(result)
    assert {"train_seed", "accuracy_on_real", "auroc_on_real", "posture_error"} <= set(result["judge"])
    for system in ("real", "anchor", "cxrl", "control"):
        assert METRICS <= set(result[system])
        for name in METRICS:
            entry = result[system][name]
            assert set(entry) == {"value", "ci95"} and len(entry["ci95"]) == 2
            assert entry["ci95"][0] <= entry["value"] + 1e-9 and entry["value"] <= entry["ci95"][1] + 1e-9
    assert not list(run.glob("**/*.tmp"))


def test_real_images_win_against_noise(result):
    """Real images beat an untrained pipeline on all metrics but three: noise is diverse, has no posture and
    copies nothing."""
    for name, better in BETTER.items():
        real, noise = result["real"][name]["value"], result["anchor"][name]["value"]
        if name in ("ms_ssim", "posture_deviation", "closer_to_train"):
            continue
        assert real < noise if better in ("lower", "as real") else real > noise, name
    assert result["real"]["auroc"]["value"] > 0.95


def test_a_control_of_another_size_is_no_control(run, tmp_path):
    """Sharpness and likeness of 16 and of 32 pixels would stand in one table."""
    shutil.copytree(run / "anchor", tmp_path / "small")
    path = tmp_path / "small" / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"sample_size": config["sample_size"] // 2}))
    with pytest.raises(ValueError, match="small: draws images of 16 pixels; expected 32"):
        evaluate.evaluate_run(run, toy_sets(), reports=24, controls=(tmp_path / "small",))


def test_systems_are_compared_on_the_same_reports_and_seeds(result):
    """The anchor as its own control has the same numbers, so every paired difference is exactly 0."""
    assert result["control"] == result["anchor"]
    differences = result["control_vs_anchor"]["difference"]
    assert all(entry == {"value": 0, "ci95": [0, 0]} for entry in differences.values())
    gain = result["cxrl_vs_anchor"]["difference"]["posture_deviation"]["value"]
    expected = result["cxrl"]["posture_deviation"]["value"] - result["anchor"]["posture_deviation"]["value"]
    assert gain == pytest.approx(expected)


def test_same_seed_same_numbers(run, result, toy_judge):
    """A second evaluation trains no judge and repeats the first; another seed draws other prompts."""
    kept = (run / "state" / "judge.safetensors").stat().st_mtime_ns
    again = evaluate.evaluate_run(run, toy_sets(), reports=24, seed=3)
    assert (run / "state" / "judge.safetensors").stat().st_mtime_ns == kept
    assert again["anchor"] == result["anchor"] and again["real"] == result["real"]
    other = evaluate.make_yardstick(toy_judge, toy_sets(), 24, seed=4)
    assert other.index.tolist() != evaluate.make_yardstick(toy_judge, toy_sets(), 24, seed=3).index.tolist()


def test_pictures_are_drawn_as_many_at_a_time_as_in_rollouts(run, tmp_path, monkeypatch):
    """--rl-batch is what memory bears: a card that trained does not fail in the evaluation."""
    folder, sizes, draw = shutil.copytree(run, tmp_path / "copy"), [], evaluate.sample.generate
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rl_batch": 7}))
    monkeypatch.setattr(evaluate.sample, "generate",
                        lambda pipe, reports, *rest, **how: sizes.append(len(reports)) or draw(
                            pipe, reports, *rest, **how))
    evaluate.evaluate_run(folder, toy_sets(), reports=20)
    assert max(sizes) == 7 and sum(sizes) == 2 * (20 + 3 * 20)
    (folder / "config.json").write_text(json.dumps(config | {"rl_batch": "7"}))
    with pytest.raises(ValueError, match="config.json: rl_batch is '7', expected a positive integer"):
        evaluate.evaluate_run(folder, toy_sets())


def test_table_shows_every_metric(result):
    """One line a metric, one column a system."""
    lines = evaluate.table(result).splitlines()
    assert lines[0].split() == ["better", "real", "anchor", "cxrl", "control"]
    assert METRICS <= {line.split()[0] for line in lines if line}


def test_reference_images_are_never_the_compared_ones(toy_judge):
    """Real is not compared with itself: with enough test images the rest is the reference,
    else the halves are."""
    net, sets = toy_judge, toy_sets()
    plenty = evaluate.make_yardstick(net, sets, reports=24, seed=0)
    assert plenty.compared == 24 and len(plenty.reference) == 64 - 24
    scarce = evaluate.make_yardstick(net, sets, reports=512, seed=0)
    assert len(scarce.reports) == 64 and scarce.compared == 32 and len(scarce.reference) == 32
    for yard in (plenty, scarce):
        own = evaluate.look(net, sets["test"].images(yard.index[:yard.compared]))["features"]
        assert evaluate.metrics.nearest(own, yard.reference)[0].min() > 0


def test_copies_of_training_images_are_found(toy_judge):
    """A generator that copies is closer to its training images than to held-out ones every time, real images
    about as often as not; the pairs are the copies and what they copy."""
    sets = toy_sets()
    yard = evaluate.make_yardstick(toy_judge, sets, 24, seed=0)
    real = sets["test"].images(yard.index).float() / 255
    assert 0.2 < evaluate.measure(yard, real, [])["closer_to_train"][0] < 0.8
    copies = yard.train_index[:24]
    images = sets["train"].images(copies).float() / 255
    rows = evaluate.measure(yard, images, [])
    assert rows["closer_to_train"].tolist() == [1] * (1 + evaluate.RESAMPLES)
    pairs = evaluate.nearest_pairs(yard, images, rows["nearest"], sets["train"], "copier")
    (above, drawn), (below, trained_on) = pairs
    assert torch.equal(drawn, trained_on) and len(drawn) == evaluate.PAIRS
    assert above.startswith("copier, generated: nearest of 24") and "TRAINING images" in below


def test_nearest_pairs_are_drawn_and_say_which_rows_are_real(run, result):
    """RUN/samples/nearest_pairs.png has a row of generated and a row of training images for each of anchor
    and CXRL, and its text does not call all of it synthetic."""
    with Image.open(run / "samples" / "nearest_pairs.png") as picture:
        assert picture.width == 160 * evaluate.PAIRS and picture.height > 4 * 160
        assert "training images" in picture.text["synthetic"]


def test_sets_can_be_compared_on_a_densenet(run, result, tmp_path, monkeypatch):
    """--features: torchxrayvision's features2 (ReLU, then the mean over places) in any batch; FID and its
    kin change, what the judge says of single images does not. A file that is none is named."""
    eyes = DiagnosisNet(RewardConfig(trunk="densenet121")).eval()
    monkeypatch.setattr(DiagnosisNet, "from_densenet", lambda path: eyes)
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = [eyes.trunk(image[None] / 255 - 0.5).clamp(min=0).mean((2, 3)) for image in images]
    features = evaluate.look(evaluate.load_eyes(Path("own.safetensors")), images)["features"]
    assert torch.allclose(features, torch.cat(expected), rtol=1e-4, atol=1e-5)
    eyes.trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, 3), torch.nn.ReLU())   # a quick one
    own = Path(shutil.copytree(run, tmp_path / "run"))
    other = evaluate.evaluate_run(own, toy_sets(), reports=24, seed=3, features=Path("own.safetensors"))
    assert result["features"] == "judge" and other["features"] == "own.safetensors"
    for system in ("real", "anchor"):
        changed = {name for name in METRICS if other[system][name] != result[system][name]}
        assert changed >= {"fid", "kid", "nearest_train_distance"}
        assert not changed & {"posture_deviation", "auroc", "consistency", "ms_ssim"}
    monkeypatch.undo()
    with pytest.raises(ValueError, match="absent.safetensors: not a DenseNet-121"):
        evaluate.evaluate_run(run, toy_sets(), reports=24, features=tmp_path / "absent.safetensors")


def test_findings_the_judge_never_saw_are_left_out(toy_judge):
    """Labels without both classes in the judge's training data count in no metric."""
    yard = evaluate.make_yardstick(toy_judge, toy_sets(), 24, seed=0)
    assert (~yard.labels.isnan()).any(0).nonzero().flatten().tolist() == [HEART, FLUID]


def test_real_diversity_is_that_of_other_patients_with_the_same_findings(toy_judge):
    """A group holds one image a patient, 2 to 4 of them, none twice."""
    sets = toy_sets()
    sets["test"].patients = [f"p{i // 2}" for i in range(64)]
    yard = evaluate.make_yardstick(toy_judge, sets, 24, seed=0)
    groups = evaluate.real_groups(yard, sets["test"])
    assert len(groups) == 24
    for group in groups:
        rows = [(sets["test"].pixels.float() / 255 == image).all((1, 2, 3)).nonzero()[0].item()
                for image in group]
        positive = {tuple((sets["test"].labels[row] == 1).tolist()) for row in rows}
        assert 2 <= len(rows) <= 4 and len(positive) == 1
        assert len({sets["test"].patients[row] for row in rows}) == len(rows)


def test_images_from_elsewhere_are_measured_by_the_same_yardstick(run, tmp_path):
    """The true images of the prompts, handed in as a folder of PNG files with metadata.csv, score what
    `real` scores, and are paired with the anchor, for their reports are the prompts."""
    copy, sets = Path(shutil.copytree(run, tmp_path / "run")), toy_sets()
    evaluate.evaluate_run(copy, sets, reports=32)
    prompts = (copy / "prompts.txt").read_text().splitlines()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:32].tolist()
    assert prompts == [sets["test"].reports[i] for i in order]
    (tmp_path / "theirs").mkdir()
    with open(tmp_path / "theirs" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "report"])
        for i, prompt in zip(order, prompts, strict=True):
            Image.fromarray(sets["test"].images([i])[0, 0].numpy()).save(tmp_path / "theirs" / f"{i}.png")
            writer.writerow([f"{i}.png", prompt])
    sets["test"].labels = sets["test"].labels.nan_to_num(0)   # a table's, which says more than the prompts
    result = evaluate.evaluate_run(copy, sets, reports=32, images=(tmp_path / "theirs",))
    for metric in METRICS - {"ms_ssim"}:
        assert result["theirs"][metric] == result["real"][metric], metric
    assert result["theirs_vs_anchor"]["auroc_gap_closed"]["value"] == pytest.approx(1)
    assert result["theirs_vs_anchor"]["difference"]["ms_ssim"]["value"] is None   # of other groups
    rows = {name: torch.rand(100, dtype=torch.float64) for name in BETTER}
    assert gains(rows, rows, rows)["auroc_gap_closed"]["value"] is None   # there is no gap
    assert result["images"] == {"theirs": 32}
    assert not any("do not compare" in line for line in remarks(result))
    result["images"]["theirs"] = 20
    assert any(line.startswith("theirs: 20 images; its fid") for line in remarks(result))
    (tmp_path / "cxrl").mkdir()
    shutil.copy(tmp_path / "theirs" / "metadata.csv", tmp_path / "cxrl")
    for i in order:
        shutil.copy(tmp_path / "theirs" / f"{i}.png", tmp_path / "cxrl")
    with pytest.raises(ValueError, match="--images .*cxrl: the name is taken"):
        evaluate.evaluate_run(copy, sets, reports=32, images=(tmp_path / "cxrl",))


def test_what_cannot_be_measured_is_null_and_said_to_be_undefined(run, tmp_path, capsys):
    """Reports that are uncertain throughout leave no label to judge: every such figure is null in strict JSON
    and `undefined` in the table, and no system is right altogether. More prompts than there are images are
    refused, but for the default, of which all are taken."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    sets = toy_sets()
    sets["test"].labels = torch.full_like(sets["test"].labels, -1)
    result = evaluate.evaluate_run(copy, sets)
    text = (copy / "evaluation.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert result["n"] == len(sets["test"]) and result["judge"]["accuracy_on_real"] is None
    assert result["real"]["all_labels_right"] == {"value": None, "ci95": [None, None]}
    out = capsys.readouterr().out
    assert "label accuracy undefined" in out and "all of which are taken" in out and "nan" not in out.split()
    with pytest.raises(ValueError, match="--reports 65: the test split has 64"):
        evaluate.check_prompts("--reports", 65, sets["test"])
    with pytest.raises(ValueError, match="the test split has 8 images; an evaluation needs 20"):
        evaluate.check_prompts("--eval-reports", 512, ToyChests(8, seed=2, name="test"))


@pytest.mark.parametrize("name", ["seed", "n", "findings", "cxrl_vs_anchor", "seconds"])
def test_a_folder_named_like_a_column_of_the_result_is_refused(name, monkeypatch):
    """Images of a folder are a system by its name, which must not hide another key of evaluation.json."""
    monkeypatch.setattr(evaluate.chest_data, "load_images", lambda *_: ToyChests(32, seed=0, name=name))
    with pytest.raises(ValueError, match=f"--images {name}: the name is taken"):
        evaluate.read_images((Path(name),), 32, {}, {"anchor", "cxrl"})


def test_images_from_elsewhere_are_read_as_the_runs_own(monkeypatch):
    """With the run's --fit and --prompt: a judge that reads another section judges another report."""
    asked = []
    monkeypatch.setattr(evaluate.chest_data, "load_images",
                        lambda *args: asked.append(args) or ToyChests(32, seed=0, name="theirs"))
    evaluate.read_images((Path("theirs"),), 32, {"fit": "pad", "prompt": "findings"}, set())
    assert asked == [(Path("theirs"), 32, "pad", "findings")]


def test_undefined_metrics_are_null():
    """A metric without a value (no label with both classes) is null in the file, not NaN."""
    assert summary(torch.full((5,), math.nan)) == {"value": None, "ci95": [None, None]}


@pytest.mark.parametrize("missing", ["config.json", "anchor/model_index.json", "cxrl/model_index.json"])
def test_unfinished_run_is_refused(run, tmp_path, missing):
    """The message names the run and what it lacks."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"copy: not a finished run, {missing} is missing"):
        evaluate.evaluate_run(folder, toy_sets(), reports=24)


def test_bad_values_are_refused(run, tmp_path):
    """Missing folder, damaged config, too few reports, a seed out of range,
    a data set that does not exist."""
    with pytest.raises(ValueError, match="no such run folder"):
        evaluate.evaluate_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match="--reports 19: expected at least 20"):   # before anything is read
        evaluate.evaluate_run(tmp_path / "nothing", reports=19)
    with pytest.raises(ValueError, match="--seed -1"):
        evaluate.evaluate_run(run, toy_sets(), seed=-1)
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    for text, message in [("{", "not JSON"), ("[]", "expected a JSON object"),
                          ("{}", "expected an object with the key `data`"),
                          ('{"data": "nowhere"}', "nowhere: no such folder")]:
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate.evaluate_run(folder)


def test_command_line_says_one_line_and_exits_with_2(tmp_path):
    """python evaluate.py NOWHERE -> "error: ..." on stderr, nothing else."""
    script, nowhere = Path(evaluate.__file__), tmp_path / "nothing"
    done = subprocess.run([sys.executable, script, nowhere], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {nowhere}: no such run folder")
    assert len(done.stderr.splitlines()) == 1
