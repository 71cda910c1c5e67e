"""The autoencoder: exact names, exact numbers, old files, honest refusals."""
import hashlib
import inspect
import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vae import AutoencoderKL, VAEConfig

SMALL = VAEConfig(sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16, 12),
                  layers_per_block=1, latent_channels=3, norm_num_groups=4, scaling_factor=0.7)
SHAPES = {
    "grey, three levels": SMALL,
    "colour, two layers": replace(SMALL, in_channels=3, out_channels=3, layers_per_block=2,
                                  norm_num_groups=2),
    "one level": replace(SMALL, block_out_channels=(8,), latent_channels=5),
}
FILE = "diffusion_pytorch_model.safetensors"


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def relative_error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.fixture
def folder(tmp_path):
    """A complete vae/ folder as we write it."""
    randomised(AutoencoderKL(SMALL)).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


# ------------------------------------------------------------------------------------ names and numbers


def test_stable_diffusion_names_and_shapes():
    """All 248 names and shapes are Stable Diffusion's (SHA-256 of the sorted list);
    SD 2 has the same network."""
    with torch.device("meta"):
        state = AutoencoderKL(VAEConfig.sd15()).state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    assert (len(lines), sum(v.numel() for v in state.values())) == (248, 83_653_863)
    assert "encoder.mid_block.attentions.0.to_out.0.weight [512, 512]" in lines
    assert "decoder.up_blocks.2.resnets.0.conv_shortcut.weight [256, 512, 1, 1]" in lines
    assert "quant_conv.weight [8, 8, 1, 1]" in lines
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "a8eb7356226250e756201865679f4127b544badce9a66957f83afdbf731c2f37"


def formula_weights(model):
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
            numbers = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(numbers * 0.37 + i).view_as(parameter)
            gain = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(wave * gain + (parameter.ndim == 1 and name.endswith("weight")))


def test_stored_numbers():
    """Weights from a formula give the outputs that diffusers 0.42.1 gave for them.
    Black borders show a wrong eps."""
    vae = AutoencoderKL(SMALL)
    formula_weights(vae)
    image = torch.cos(torch.arange(16 * 16) * 0.9).view(1, 1, 16, 16)
    image[:, :, :6] = -1
    with torch.no_grad():
        mean, logvar = vae.encode(image)
        decoded = vae.decode(mean)
    stored = {"mean": [0.10224, -0.23217, 0.0498], "logvar": [-0.04896, -0.27385, 0.07283],
              "decoded": [-0.12124, -0.14768, -0.81384, 0.04286]}
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean[0, :, 0, 3], torch.tensor(stored["mean"]), **close)
    torch.testing.assert_close(logvar[0, :, 0, 3], torch.tensor(stored["logvar"]), **close)
    torch.testing.assert_close(decoded[0, 0, 5, ::5], torch.tensor(stored["decoded"]), **close)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("h, w", [(16, 16), (8, 20)])
def test_equals_diffusers_both_ways(name, h, w, tmp_path):
    """diffusers computes the same from our folder, and we from its folder (1e-5 relative)."""
    diffusers = pytest.importorskip("diffusers",
                                    reason="the comparison needs diffusers: requirements-dev.txt")
    config = SHAPES[name]
    ours = randomised(AutoencoderKL(config))
    ours.save_pretrained(tmp_path / "ours")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = AutoencoderKL.from_pretrained(tmp_path / "theirs")
    assert back.config == config
    image = torch.randn(2, config.in_channels, h, w, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    with torch.no_grad():
        posterior = theirs.encode(image).latent_dist
        picture = theirs.decode(posterior.mean).sample
        for vae in (ours, back):
            mean, logvar = vae.encode(image)
            assert relative_error(mean, posterior.mean) < 1e-5
            assert relative_error(logvar, posterior.logvar) < 1e-5
            assert relative_error(vae.decode(posterior.mean), picture) < 1e-5


def test_diffusers_defaults_are_ours():
    """A key missing from config.json means what it means to diffusers: our defaults are its constructor's."""
    diffusers = pytest.importorskip("diffusers",
                                    reason="the comparison needs diffusers: requirements-dev.txt")
    theirs = inspect.signature(diffusers.AutoencoderKL.__init__).parameters
    for name, value in asdict(VAEConfig()).items():
        assert theirs[name].default == value, name


# ------------------------------------------------------------------------------------ behaviour


def test_shapes_follow_the_factor():
    """The tiny preset turns 64 px into 16x16 latents of 4 channels and back;
    logvar stays where exp is finite."""
    config = VAEConfig.tiny()
    vae, image = AutoencoderKL(config), torch.zeros(2, 1, 64, 64)
    mean, logvar = vae.encode(image)
    assert config.factor == 4 and mean.shape == logvar.shape == (2, 4, 16, 16)
    assert vae.decode(mean).shape == image.shape
    with torch.no_grad():
        vae.quant_conv.bias.fill_(1e4)
    assert vae.encode(image)[1].max() == 20


def test_starts_as_an_open_channel():
    """New weights lose no scale, as random ones do: latents and pictures vary about as the image does."""
    torch.manual_seed(0)
    vae, image = AutoencoderKL(VAEConfig.tiny()), torch.randn(4, 1, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        mean, logvar = vae.encode(image)
        assert 0.2 < mean.std() < 2 and 0.2 < vae.decode(mean).std() < 2
        assert logvar.mean() < -5                        # the decoder first sees latents, not noise
        for block in vae.decoder.up_blocks[0].resnets:   # residual branches start at zero
            x = torch.randn(2, 64, 4, 4)
            assert torch.equal(block(x), x)


def test_batch_independence():
    """An image's latent and picture do not depend on its neighbours in the batch."""
    vae = randomised(AutoencoderKL(SMALL))
    image = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        mean, _ = vae.encode(image)
        for i in range(3):
            torch.testing.assert_close(vae.encode(image[i:i + 1])[0], mean[i:i + 1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(vae.decode(mean[i:i + 1]), vae.decode(mean)[i:i + 1],
                                       rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------ files


def test_round_trip_is_exact(folder):
    """What is saved is what is loaded, config and bits, and no temporary file stays behind."""
    vae = AutoencoderKL.from_pretrained(folder)
    vae.save_pretrained(folder)
    again = AutoencoderKL.from_pretrained(folder)
    assert again.config == SMALL and list(folder.glob("*.tmp")) == [] and not list(again.buffers())
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("convolutions", [False, True])
def test_old_attention_names(folder, convolutions):
    """Files of 2022 call the attention query, key, value, proj_attn,
    the oldest with 1x1 convolutions: same weights."""
    new = AutoencoderKL.from_pretrained(folder).state_dict()
    old = {}
    for key, value in new.items():
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{now}", f"attentions.0.{then}")
        is_matrix = "attentions" in key and value.ndim == 2
        old[key] = value[:, :, None, None].contiguous() if convolutions and is_matrix else value
    assert old.keys() != new.keys()
    save_file(old, folder / FILE)
    assert all(torch.equal(v, new[k]) for k, v in AutoencoderKL.from_pretrained(folder).state_dict().items())


def test_half_precision_variant(folder):
    """A .fp16.safetensors file is read and becomes float32."""
    weights = {k: v.half() for k, v in load_file(folder / FILE).items()}
    (folder / FILE).unlink()
    save_file(weights, folder / "diffusion_pytorch_model.fp16.safetensors")
    vae = AutoencoderKL.from_pretrained(folder)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert torch.equal(vae.quant_conv.weight, weights["quant_conv.weight"].float())


def test_old_config_without_scaling_factor(folder):
    """The first SD releases wrote no scaling_factor: it is 0.18215. Unknown notes are ignored."""
    raw = json.loads((folder / "config.json").read_text())
    del raw["scaling_factor"]
    (folder / "config.json").write_text(json.dumps(raw | {"_diffusers_version": "0.2.2", "note": "x"}))
    assert AutoencoderKL.from_pretrained(folder).config == replace(SMALL, scaling_factor=0.18215)


def change_weights(folder, change):
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE)


def change_config(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | values))


BAD = {
    "truncated": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-50]), f"{FILE}.*truncated"),
    "corrupt": (lambda f: (f / FILE).write_bytes(b"\0" * 999), f"{FILE}.*not a safetensors file"),
    "missing key": (lambda f: change_weights(f, lambda w: w.pop("quant_conv.bias")),
                    "quant_conv.bias is missing"),
    "extra key": (lambda f: change_weights(f, lambda w: w.update(x=torch.ones(1))), "x has no place"),
    "wrong shape": (lambda f: change_weights(f, lambda w: w.update({"quant_conv.bias": torch.ones(3)})),
                    r"quant_conv.bias has shape \[3\].*\[6\]"),
    "not finite": (lambda f: change_weights(f, lambda w: w["quant_conv.bias"].fill_(torch.inf)),
                   "quant_conv.bias.*finite"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "only a .bin": (lambda f: (f / FILE).rename(f / "diffusion_pytorch_model.bin"), "model.bin: a pickle"),
    "no weights": (lambda f: (f / FILE).unlink(), f"no {FILE}"),
    "another class": (lambda f: change_config(f, _class_name="VQModel"), "_class_name is 'VQModel'"),
    "another block": (lambda f: change_config(f, down_block_types=["AttnDownEncoderBlock2D"] * 3),
                      "down_block_types"),
    "shifted latents": (lambda f: change_config(f, shift_factor=0.1), "shift_factor is 0.1"),
    "no quant_conv": (lambda f: change_config(f, use_quant_conv=False), "use_quant_conv is False"),
    "widths": (lambda f: change_config(f, block_out_channels=[8, 15, 12]),
               "block_out_channels .*norm_num_groups = 4"),
    "scale": (lambda f: change_config(f, scaling_factor=-1), "scaling_factor is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused(folder, name):
    """Whatever is wrong with a folder, one ValueError names the file and the key."""
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        AutoencoderKL.from_pretrained(folder)
    assert str(folder) in str(caught.value)
