"""Networks of others: CLIP and DINOv2 folders of transformers give transformers' numbers, or are refused."""
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluate import load_eyes
from evaluation.judge import look
from pretrained.vit import CLIPPair, Dinov2, Preprocessing
from rewards import CLIPConsistency, DiagnosisNet, PostureNet, RewardConfig, Rewards
from text_encoder import EOS, Tokenizer

transformers = pytest.importorskip("transformers",
                                   reason="the folders are transformers': requirements-dev.txt")
REPORTS = ["No pleural effusion.", "Large left pleural effusion, and much more than twenty tokens can hold",
           "Moderate cardiomegaly. No pneumothorax.", ""]
TOKENIZER = Tokenizer.train(REPORTS * 3, vocab_size=560, max_length=20)
TEXT = {"vocab_size": 570, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 20, "eos_token_id": TOKENIZER.vocab[EOS]}
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 7}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 7}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def randomised(model):
    """Every weight random, so that a forgotten one shows: zero biases and unit scales hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def preprocessor(folder, **values):
    """preprocessor_config.json as transformers writes it, CLIP's numbers but for `values`"""
    whole = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 28},
             "resample": 3, "do_center_crop": True, "crop_size": {"height": 28, "width": 28},
             "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN,
             "image_std": STD, "do_convert_rgb": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(whole | values))


def clip(folder, text=(), vision=()):
    """A CLIP folder of transformers' making -> its CLIPModel"""
    config = transformers.CLIPConfig(text_config=TEXT | dict(text), vision_config=VISION | dict(vision),
                                     projection_dim=16)
    model = randomised(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    preprocessor(folder)
    return model


def dinov2(folder, **values):
    model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**DINO | values)))
    model.save_pretrained(folder)
    preprocessor(folder, image_processor_type="BitImageProcessor")
    return model


def images(*shape):
    return torch.rand(3, 1, *shape, generator=torch.Generator().manual_seed(2))


def normalised(x):
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def close(ours, theirs):
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    dinov2(folder)
    return folder


def copy(folder, to):
    return shutil.copytree(folder, to / "copy")


# ------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("vision", [{}, {"image_size": 30, "patch_size": 8, "hidden_act": "gelu"},
                                    {"layer_norm_eps": 1e-2, "num_attention_heads": 1}])
def test_clip_images_equal_transformers(vision, tmp_path):
    """Image embeddings of unit length, and their gradient with respect to the pixels: 1e-5. The prescribed
    size is 28 px: where that is not the trained one, positions are interpolated."""
    model, pair = clip(tmp_path, vision=vision), CLIPPair.from_pretrained(tmp_path)
    weight, ours = torch.randn(3, 16), images(28, 28).requires_grad_()
    embedded = pair.embed_images(ours)
    (embedded * weight).sum().backward()
    theirs = images(28, 28).requires_grad_()
    want = model.get_image_features(normalised(theirs), interpolate_pos_encoding=True).pooler_output
    want = want / want.norm(dim=-1, keepdim=True)
    (want * weight).sum().backward()
    close(embedded, want)
    close(ours.grad, theirs.grad)
    assert ours.grad.abs().min(0).values.max() > 0
    assert not any(p.requires_grad for p in pair.parameters()) and not pair.training


@pytest.mark.parametrize("eos", [2, TOKENIZER.vocab[EOS]])
def test_clip_reports_equal_transformers(eos, tmp_path):
    """Text embeddings, by both rules of where a report ends: the highest id (folders that say 2), or the
    first end-of-text token. A token above it tells the two apart; long reports are cut."""
    model, folder = clip(tmp_path, text={"eos_token_id": eos}), tmp_path
    vocab = TOKENIZER.vocab | {"zz</w>": 565}
    odd = Tokenizer(vocab, [*TOKENIZER.merges, ("z", "z</w>")], 20)
    odd.save_pretrained(folder)
    reports = [*REPORTS, "zz effusion"]
    ids = odd(reports)
    assert (ids[-1] == 565).sum() == 1
    want = model.get_text_features(ids).pooler_output
    got = CLIPPair.from_pretrained(folder).embed_reports(reports)
    close(got, want / want.norm(dim=-1, keepdim=True))
    plain = model.text_model(ids).last_hidden_state[-1, 1 if eos == 2 else (ids[-1] == eos).int().argmax()]
    close(got[-1], F.normalize(model.text_projection(plain), dim=-1))


@pytest.mark.parametrize("size", [28, 35, 30, 7, (14, 56), (21, 35)])
def test_dinov2_equals_transformers(size, tmp_path):
    """The pooler output and its gradient, at the trained size and at others: fewer and more patches, a size
    that is no multiple of a patch, and as many patches as trained in another arrangement."""
    model = dinov2(tmp_path)
    h, w = size if isinstance(size, tuple) else (size, size)
    preprocessor(tmp_path, size={"height": h, "width": w}, do_center_crop=False)
    net, weight = Dinov2.from_pretrained(tmp_path), torch.randn(3, 32)
    ours, theirs = images(h, w).requires_grad_(), images(h, w).requires_grad_()
    features = net(ours)
    (features * weight).sum().backward()
    want = model(normalised(theirs)).pooler_output
    (want * weight).sum().backward()
    close(features, want)
    close(ours.grad, theirs.grad)
    assert not any(p.requires_grad for p in net.parameters())


def test_a_dinov2_folder_is_what_sets_are_compared_on(dino_folder):
    """evaluate.py --features DIR: its features of a set, here of bytes, are those of its single images."""
    net, files = Dinov2.from_pretrained(dino_folder), (255 * images(40, 40)).byte()
    features = look(load_eyes(dino_folder), files)["features"]
    assert features.shape == (3, 32)
    assert torch.allclose(features, torch.cat([net(file[None] / 255) for file in files]), atol=1e-5)


def test_any_float_type_and_old_buffers_are_read(clip_folder, dino_folder, tmp_path):
    """Half precision becomes float32; the position_ids of old files and a missing mask token are nothing."""
    for kind, folder in ((CLIPPair, clip_folder), (Dinov2, dino_folder)):
        other = shutil.copytree(folder, tmp_path / kind.__name__)
        weights = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
        if kind is CLIPPair:
            weights["text_model.embeddings.position_ids"] = torch.arange(20)[None]
            weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        else:
            del weights["embeddings.mask_token"]
        save_file(weights, other / "model.safetensors")
        state = kind.from_pretrained(other).state_dict()
        assert all(v.dtype == torch.float32 for v in state.values())
        assert all(torch.equal(state[k], v.float()) for k, v in weights.items() if k in state)


def test_saved_pair_is_the_same_here_and_in_transformers(clip_folder, tmp_path):
    """save_pretrained writes a CLIP folder again: same numbers here, same model there."""
    pair = CLIPPair.from_pretrained(clip_folder)
    pair.save_pretrained(tmp_path / "saved")
    again, x = CLIPPair.from_pretrained(tmp_path / "saved"), images(40, 40)
    assert torch.equal(pair.embed_images(x), again.embed_images(x))
    assert torch.equal(pair.embed_reports(REPORTS), again.embed_reports(REPORTS))
    _, info = transformers.CLIPModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_your_own_clip_is_the_consistency_reward(clip_folder, tmp_path, capsys):
    """Its score is the cosine, the same in any batch; calibrated and saved it is what RUN/rewards holds, with
    its scale. A scale that is none is named."""
    small, reports, x = RewardConfig(width=8, blocks=1), REPORTS[:3], images(40, 40)
    for net, name in ((PostureNet(small), "posture"), (DiagnosisNet(small), "diagnosis")):
        net.save_pretrained(tmp_path / name)
    net = CLIPConsistency.from_pretrained(clip_folder)
    cosine = F.cosine_similarity(net.pair.embed_images(x), net.pair.embed_reports(reports))
    assert torch.allclose(net.score(x, reports), cosine, atol=1e-6)
    assert torch.allclose(net.score(x[1:2], reports[1:2]), cosine[1:2], atol=1e-6)
    net.calibrate(x, reports)
    assert "1 of 3 reports exceed the CLIP's 20 tokens" in capsys.readouterr().out
    net.save_pretrained(tmp_path / "consistency")
    kept = Rewards.load(tmp_path)
    assert torch.equal(kept.units()["consist"], net.spread) and net.spread != 1
    assert torch.allclose(kept.scores(x, reports)["consist"], cosine, atol=1e-6)
    assert kept.consistency.median.item() == pytest.approx(cosine.median().item(), abs=1e-6)
    (tmp_path / "consistency" / "reward.json").write_text('{"median": "1", "spread": 1.0}')
    with pytest.raises(ValueError, match="reward.json: median is '1'"):
        Rewards.load(tmp_path)


# ------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("shape", [(64, 64), (20, 20), (28, 28), (50, 37), (33, 90)])
@pytest.mark.parametrize("values", [{}, {"size": {"shortest_edge": 31}},
                                    {"size": {"height": 30, "width": 41}, "image_mean": (0.53, 0.53, 0.53)}])
def test_images_are_prepared_as_transformers_does(shape, values):
    """Pillow's resizing, larger and smaller, crop and normalisation: to 1.25 grey values, for Pillow
    rounds to those twice, after resizing rows and after resizing columns, and nothing is rounded here. Black
    beside white, as in a film's letters, overshoots, and is clipped after either (squares alone are as hard:
    of others Pillow 13 resizes now the rows first, now the columns)."""
    whole = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | values
    soft = images(*shape)[:, 0]
    files = (255 * soft.round() if shape[0] == shape[1] else 64 + 128 * soft).byte()
    theirs = transformers.CLIPImageProcessorPil(**whole)
    pictures = [Image.fromarray(file.numpy()).convert("RGB") for file in files]
    want = torch.as_tensor(np.stack(theirs(pictures)["pixel_values"]))
    ours = Preprocessing(**whole)(files[:, None] / 255)
    assert ours.shape == want.shape == (3, 3, 28, 28)
    assert (ours - want).abs().max() < 1.25 / 255 / min(STD)


def test_gradient_reaches_every_pixel_through_resizing(clip_folder):
    """A reward on 64 px images is a function of all of their pixels."""
    x = images(64, 64).requires_grad_()
    CLIPPair.from_pretrained(clip_folder).embed_images(x)[:, 0].sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).float().mean() > 0.9


def test_without_a_file_the_default_is_used_and_said(clip_folder, dino_folder, tmp_path, capsys):
    """CLIP: its trained size, OpenAI's mean; DINOv2: 256, cropped to 224, ImageNet's mean. transformers 5's
    processor_config.json is read as well, without a word."""
    for kind, folder in ((CLIPPair, clip_folder), (Dinov2, dino_folder)):
        other = shutil.copytree(folder, tmp_path / kind.__name__)
        raw = json.loads((other / "preprocessor_config.json").read_text())
        (other / "processor_config.json").write_text(json.dumps({"image_processor": raw | {"crop_size": 21}}))
        assert kind.from_pretrained(other).prepare.crop_size == 21   # as transformers 5, where both are there
        (other / "preprocessor_config.json").unlink()
        assert kind.from_pretrained(other).prepare.crop_size == 21
        assert capsys.readouterr().out == ""
        (other / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
        prepare = kind.from_pretrained(other).prepare
        assert "no preprocessor_config.json" in capsys.readouterr().out
        side = 28 if kind is CLIPPair else 224
        assert prepare(images(300, 300)).shape == (3, 3, side, side)
        assert prepare.image_mean[0] == (0.48145466 if kind is CLIPPair else 0.485)


# ------------------------------------------------------------------------------------ refusals


def change(folder, file="config.json", part=None, **values):
    raw = json.loads((folder / file).read_text())
    (raw if part is None else raw[part]).update(values)
    (folder / file).write_text(json.dumps(raw))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD_CLIP = {
    "pickle": (pickled, "pytorch_model.bin: a pickle"),
    "text tower alone": (lambda f: change(f, model_type="clip_text_model"), "model_type is 'clip_text"),
    "another tower": (lambda f: change(f, part="vision_config", model_type="vit"),
                      "vision_config: model_type is 'vit'"),
    "towers are lists": (lambda f: change(f, text_config=[]), "text_config is \\[\\]"),
    "colour": (lambda f: change(f, part="vision_config", num_channels=1), "vision_config: num_channels is 1"),
    "activation": (lambda f: change(f, part="vision_config", hidden_act="relu"), "hidden_act is 'relu'"),
    "heads": (lambda f: change(f, part="vision_config", num_attention_heads=5), "num_attention_heads is 5"),
    "type": (lambda f: change(f, part="vision_config", image_size="28"), "vision_config: image_size is '28'"),
    "truth": (lambda f: change(f, part="vision_config", hidden_size=True), "hidden_size is True"),
    "two sides": (lambda f: change(f, part="vision_config", image_size=[28, 28]), "image_size is \\(28"),
    "patch": (lambda f: change(f, part="vision_config", patch_size=29), "image_size is 28.*patch_size = 29"),
    "text width": (lambda f: change(f, part="text_config", hidden_size=27), r"\[16, 24\].*\[16, 27\]|shape"),
    "head of another width": (lambda f: change(f, projection_dim=15), "projection.weight.*16.*15"),
    "no number": (lambda f: change(f, projection_dim=None), "projection_dim is None"),
    "end of text": (lambda f: change(f, part="text_config", eos_token_id=5), "eos_token_id is 5"),
    "vocabulary": (lambda f: change(f, part="text_config", vocab_size=500), "vocab_size is 500"),
    "no tokenizer": (lambda f: (f / "vocab.json").unlink(), "tokenizer.json"),
    "old key counts": (lambda f: change(f, text_config_dict={"hidden_act": "relu"}), "hidden_act is 'relu'"),
    "not finite": (lambda f: change_weights(f, lambda w: w["logit_scale"].fill_(torch.nan)), "logit_scale"),
    "one more": (lambda f: change_weights(f, lambda w: w.update(x=torch.ones(1))), "x has no place"),
}
BAD_DINO = {
    "pickle": (pickled, "pytorch_model.bin: a pickle"),
    "registers": (lambda f: change(f, model_type="dinov2_with_registers"), "model_type is 'dinov2_with_reg"),
    "gated": (lambda f: change(f, use_swiglu_ffn=True), "use_swiglu_ffn is True"),
    "no bias": (lambda f: change(f, qkv_bias=False), "qkv_bias is False"),
    "ratio": (lambda f: change(f, mlp_ratio="4"), "mlp_ratio is '4'"),
    "width": (lambda f: change(f, hidden_size=None), "hidden_size is None"),
    "another width": (lambda f: change(f, hidden_size=40), "config.json says"),
    "layers": (lambda f: change(f, num_hidden_layers=3), "encoder.layers.2.*missing"),
    "size": (lambda f: change(f, image_size=35), "position_embedding.*17.*26"),
    "no layer scale": (lambda f: change_weights(f, lambda w: w.pop("encoder.layer.1.layer_scale2.lambda1")),
                       "encoder.layers.1.layer_scale2 is missing"),
    "not an object": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "processor": (lambda f: preprocessor(f, image_processor_type="ViTImageProcessor"), "processor_type"),
    "no resizing": (lambda f: preprocessor(f, do_resize=False), "do_resize is False"),
    "padding": (lambda f: preprocessor(f, do_pad=True), "do_pad is True"),
    "grey values": (lambda f: preprocessor(f, rescale_factor=1 / 127.5), "rescale_factor is 0.0078"),
    "nearest": (lambda f: preprocessor(f, resample=0), "resample is 0"),
    "longest": (lambda f: preprocessor(f, size={"longest_edge": 28}), "size is {'longest_edge': 28}"),
    "no side": (lambda f: preprocessor(f, size={"shortest_edge": "28"}), "size is {'shortest_edge': '28'}"),
    "crop": (lambda f: preprocessor(f, crop_size=29), "crop_size is 29, expected at most"),
    "crop below a patch": (lambda f: preprocessor(f, crop_size=6), "side of an image is 6, expected"),
    "a vast width": (lambda f: change(f, hidden_size=10**30), "hidden_size is 1000"),
    "mean": (lambda f: preprocessor(f, image_mean=[0.5]), "image_mean is \\(0.5,"),
    "mean as text": (lambda f: preprocessor(f, image_mean="abc"), "image_mean is 'abc'"),
    "deviation": (lambda f: preprocessor(f, image_std=[1, 1, 0]), "image_std is \\(1, 1, 0"),
    "nested": (lambda f: preprocessor(f, image_processor=[1]), "preprocessor_config.json is \\[1\\]"),
}


@pytest.mark.parametrize("kind, name", [("clip", n) for n in BAD_CLIP] + [("dino", n) for n in BAD_DINO])
def test_bad_folders_are_refused(kind, name, clip_folder, dino_folder, tmp_path):
    """Whatever is wrong with a folder, one ValueError names the file and the key; pickles are not opened."""
    folder = shutil.copytree(clip_folder if kind == "clip" else dino_folder, tmp_path / "copy")
    spoil, message = (BAD_CLIP if kind == "clip" else BAD_DINO)[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        (CLIPPair if kind == "clip" else Dinov2).from_pretrained(folder)
    assert str(folder) in str(caught.value)
