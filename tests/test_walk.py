"""docs/walk.md: what it points at exists, and its shapes and numbers are the tiny preset's."""
import ast
import re
from pathlib import Path

import pytest
import torch

from ace import ACE
from model import UNet2DConditionModel
from rewards import ConsistencyNet, DiagnosisNet, PostureNet
from rl import DISCOUNT, RLConfig, discount, rollout
from sample import Pipeline, SampleConfig, Schedule
from text_encoder import CLIPTextModel, Tokenizer
from training.options import preset
from vae import AutoencoderKL

ROOT = Path(__file__).resolve().parent.parent
WALK = (ROOT / "docs" / "walk.md").read_text()
REPORT = "Moderate left pleural effusion. Heart size is normal."


def names(file: Path) -> set[str]:
    """Functions, classes, and methods as Class.method"""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_every_anchor_exists():
    """`file.py:name` is a function, a class or a method of that file."""
    anchors = re.findall(r"`([\w/]+\.py):([\w.]+)`", WALK)
    assert len(anchors) > 30
    assert not [anchor for anchor in anchors if anchor[1] not in names(ROOT / anchor[0])]


@torch.no_grad()
def test_the_shapes_are_those_of_the_tiny_preset():
    """The report goes through untrained networks of the preset's sizes: the table says what comes out."""
    sizes = preset("tiny")
    tokenizer = Tokenizer.train([REPORT], 514, sizes.text.max_position_embeddings)
    schedule = Schedule(sizes.schedule)
    pipe = Pipeline(UNet2DConditionModel(sizes.unet), AutoencoderKL(sizes.vae), CLIPTextModel(sizes.text),
                    tokenizer, schedule)
    c_p, c_empty = pipe.embed([REPORT]), pipe.embed([""])[0]
    pipe.ace = ACE.start(RLConfig().ace_tokens, c_empty)
    cond, uncond = pipe.condition(c_p, c_empty)
    noise = torch.randn(1, RLConfig().rollout_steps + 1, *pipe.latent_shape)
    ro = rollout(pipe, cond, uncond, noise, SampleConfig(), [0], micro=1)
    nets = [net(sizes.rewards).eval() for net in (PostureNet, DiagnosisNet, ConsistencyNet)]
    psi, logits, embedding = nets[0](ro.images), nets[1](ro.images), nets[2].embed_images(ro.images)
    shapes = [tokenizer([REPORT]), c_p, pipe.ace.c_s[None], cond, noise[:, 0],
              pipe.unet(noise[:, 0], ro.t[:1], cond), ro.promises[0], ro.states, ro.images, psi, logits,
              embedding]
    told = re.findall(r"^\| \d+ \| .* \| ([\d ]+) \| `", WALK, re.MULTILINE)
    assert told == [" ".join(map(str, x.shape[1:])) for x in shapes]


def test_its_numbers_are_the_defaults():
    """Weights, discount, timesteps and counts in the text are those that the code begins with."""
    config = RLConfig()
    weights = [float(w) for w in re.findall(r"([\d.]+) r_(?:align|diag|consist)", WALK)]
    assert weights == pytest.approx([*config.weights.values()], abs=0.005)
    assert f"loss = {config.kl:g} |v - v_start|^2 / {4 * 16 * 16} - {DISCOUNT}^(tenths left)" in WALK
    assert f"counts {discount(torch.tensor(0), config.rollout_steps):.2f} of one" in WALK
    t = Schedule(preset("tiny").schedule).timesteps(config.rollout_steps)[0].tolist()
    assert f"t falls {t[0]}, {t[1]}, ... {t[-1]} in ten steps" in WALK and len(t) == 10
    images = config.reports * config.group
    assert f"{config.reports} reports with {config.group} images each, b = {images}" in WALK
    assert f"{config.rwr_steps:,} supervised steps" in WALK
    assert (config.updates, config.rounds) == (8, 6) and "eight updates" in WALK and "six rounds" in WALK
