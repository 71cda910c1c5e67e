"""The UNet: exact names, exact numbers, honest refusals."""
import copy
import hashlib
import inspect
import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import (
    LoRASnapshot,
    UNet2DConditionModel,
    UNetConfig,
    add_lora,
    merge_lora,
    read_unet_config,
    save_lora,
)

SMALL = UNetConfig(sample_size=8, in_channels=3, out_channels=5, block_out_channels=(16, 24),
                   down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=20,
                   up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1,
                   norm_num_groups=4, attention_head_dim=2)
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
# odd on purpose: asymmetric blocks, head counts that differ, one level, linear and convolution projections
SHAPES = {
    "conv, one head count": SMALL,
    "linear, list of head counts": replace(SMALL, use_linear_projection=True, attention_head_dim=(4, 3)),
    "three levels, two layers": UNetConfig(
        in_channels=4, out_channels=4, block_out_channels=(8, 24, 16), layers_per_block=2,
        down_block_types=(PLAIN[0], CROSS[0], CROSS[0]), up_block_types=(CROSS[1], PLAIN[1], CROSS[1]),
        cross_attention_dim=12, norm_num_groups=8, attention_head_dim=(1, 2, 4)),
    "one level": replace(SMALL, block_out_channels=(24,), down_block_types=CROSS[:1],
                         up_block_types=CROSS[1:]),
}


def randomised(model):
    """Every weight drawn anew: zero-initialised layers would hide mistakes behind them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def inputs(config, b=2, h=8, w=8, n=7):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(b, config.in_channels, h, w, generator=generator)
    t = torch.tensor([3, 917, 500, 20])[:b]
    return x, t, torch.randn(b, n, config.cross_attention_dim, generator=generator)


def relative_error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.fixture
def folder(tmp_path):
    """A complete unet/ folder as we write it."""
    randomised(UNet2DConditionModel(SMALL)).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


# -------------------------------------------------------------------------------- names and numbers


@pytest.mark.parametrize("preset, tensors, parameters, digest", [
    ("sd15", 686, 859_520_964, "06ab0a594a10b99fc9b3d3c034559b191a587c22cb887c343b18421a3fbb5748"),
    ("sd21", 686, 865_910_724, "102cedebfb24e477a06ae61809735ebaa75f361e6549862d432f445ef996fd26"),
])
def test_stable_diffusion_names_and_shapes(preset, tensors, parameters, digest):
    """All names and shapes are Stable Diffusion's (SHA-256 of the sorted list),
    without allocating a single weight."""
    with torch.device("meta"):
        state = UNet2DConditionModel(getattr(UNetConfig, preset)()).state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    assert (len(lines), sum(v.numel() for v in state.values())) == (tensors, parameters)
    width = 768 if preset == "sd15" else 1024
    block = "down_blocks.0.attentions.1.transformer_blocks.0"
    assert f"{block}.attn2.to_k.weight [320, {width}]" in lines
    assert f"{block}.ff.net.0.proj.weight [2560, 320]" in lines
    assert "up_blocks.1.resnets.2.conv_shortcut.weight [1280, 1920, 1, 1]" in lines
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_stored_numbers():
    """Weights from a formula give the outputs that diffusers 0.42.1 gave for them, stored here."""
    unet = UNet2DConditionModel(SMALL)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(unet.named_parameters())):
            numbers = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(numbers * 0.37 + i).view_as(parameter)
            gain = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(wave * gain + (parameter.ndim == 1 and name.endswith("weight")))
    x = torch.cos(torch.arange(2 * 3 * 8 * 8) * 0.9).view(2, 3, 8, 8)
    context = torch.sin(torch.arange(2 * 7 * 20) * 0.7).view(2, 7, 20)
    with torch.no_grad():
        out = unet(x, torch.tensor([10, 900]), context)
    stored = [[0.55573, -0.71055, 0.49139, -0.64902, 0.44135],
              [-0.32375, 0.23918, -0.51326, 0.39436, -0.62393]]
    torch.testing.assert_close(out[:, :, 3, 5], torch.tensor(stored), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("h, w", [(8, 8), (6, 10), (7, 5)])
def test_equals_diffusers_both_ways(name, h, w, tmp_path):
    """diffusers computes the same from our folder, and we from its folder,
    also at odd sides (1e-5 relative)."""
    diffusers = pytest.importorskip("diffusers",
                                    reason="the comparison needs diffusers: requirements-dev.txt")
    config = SHAPES[name]
    ours = randomised(UNet2DConditionModel(config))
    ours.save_pretrained(tmp_path / "ours")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = UNet2DConditionModel.from_pretrained(tmp_path / "theirs")
    assert back.config == config
    x, t, context = inputs(config, h=h, w=w)
    with torch.no_grad():
        want = theirs(x, t, context).sample
        assert relative_error(ours(x, t, context), want) < 1e-5
        assert relative_error(back(x, t, context), want) < 1e-5


def test_diffusers_defaults_are_ours(tmp_path):
    """A key missing from config.json means what it means to diffusers: our defaults are its constructor's."""
    diffusers = pytest.importorskip("diffusers",
                                    reason="the comparison needs diffusers: requirements-dev.txt")
    theirs = inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters
    for name, value in asdict(UNetConfig()).items():
        assert theirs[name].default == value, name


# -------------------------------------------------------------------------------- behaviour


def test_batch_independence():
    """An image's prediction does not depend on its neighbours in the batch."""
    unet, (x, t, context) = randomised(UNet2DConditionModel(SMALL)), inputs(SMALL, b=4)
    with torch.no_grad():
        together = unet(x, t, context)
        alone = torch.cat([unet(x[i:i + 1], t[i:i + 1], context[i:i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_every_input_matters():
    """Latent, timestep and each context token change the prediction."""
    unet, (x, t, context) = randomised(UNet2DConditionModel(SMALL)), inputs(SMALL)
    with torch.no_grad():
        base = unet(x, t, context)
        assert (unet(x + 0.1, t, context) - base).abs().max() > 1e-3
        assert (unet(x, t + 1, context) - base).abs().max() > 1e-4
        for token in range(context.shape[1]):
            other = context.clone()
            other[:, token] += 1
            assert (unet(x, t, other) - base).abs().max() > 1e-4, token


@pytest.mark.parametrize("name", SHAPES)
def test_reading_the_text_once_changes_nothing(name):
    """Keys and values of the text do not depend on latent and timestep: read once, for many steps, they give
    the same bits as read anew, with a LoRA and without it."""
    unet, (x, t, context) = randomised(UNet2DConditionModel(SHAPES[name])), inputs(SHAPES[name])
    add_lora(unet, 2)
    before = LoRASnapshot(unet)
    randomised(unet)
    with torch.no_grad():
        for network in (unet, before):
            text = network.read(context)
            for step in (t, t // 2):
                assert torch.equal(network(x, step, text), network(x, step, context))
        assert (unet(x, t, context) - before(x, t, context)).abs().max() > 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_branches_of_guidance_are_one_until_the_text_is_looked_at(name):
    """A context of 2 b rows for b latents: outputs and gradients are those of the latents put twice."""
    config = SHAPES[name]
    unet, (x, t, context) = randomised(UNet2DConditionModel(config)), inputs(config)
    context, gradients = torch.cat([context.flip(1), context]), []
    for latents, times in ((x, t), (torch.cat([x, x]), torch.cat([t, t]))):
        unet.zero_grad()
        out = unet(latents, times, context)
        out.square().mean().backward()
        gradients.append([out.detach(), *(p.grad.clone() for p in unet.parameters())])
    for once, twice in zip(*gradients, strict=True):   # some gradients are 0 but for rounding
        torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_presets_are_consistent(preset):
    """The presets for training from scratch build, and what comes out has the shape of what went in."""
    config = getattr(UNetConfig, preset)()
    with torch.device("meta"):
        unet, side = UNet2DConditionModel(config), config.sample_size
        x = torch.empty(2, config.in_channels, side, side)
        out = unet(x, torch.empty(2), torch.empty(2, 7, config.cross_attention_dim))
    assert out.shape == x.shape and config.in_channels == config.out_channels


def test_starts_at_zero():
    """A new UNet predicts exactly zero: the first training loss is the variance of its target."""
    assert not UNet2DConditionModel(SMALL)(*inputs(SMALL)).any()


def test_checkpointing_changes_no_gradient():
    """gradient_checkpointing saves memory only: loss and gradients are the same bit for bit."""
    unet, batch, gradients = randomised(UNet2DConditionModel(SMALL)), inputs(SMALL), []
    for unet.gradient_checkpointing in (False, True):
        unet.zero_grad()
        unet(*batch).square().mean().backward()
        gradients.append([p.grad.clone() for p in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_batch_overfits():
    """30 Adam steps on one batch remove four fifths of the loss: gradients reach what they must."""
    torch.manual_seed(0)
    unet, (x, t, context) = UNet2DConditionModel(SMALL), inputs(SMALL, b=4)
    target = torch.randn(4, 5, 8, 8)
    optimizer, losses = torch.optim.Adam(unet.parameters(), 4e-3), []
    for _ in range(30):
        loss = (unet(x, t, context) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0], losses[::10]


# -------------------------------------------------------------------------------- files


def test_round_trip_is_exact(folder):
    """What is saved is what is loaded, config and bits, and no temporary file stays behind."""
    unet = UNet2DConditionModel.from_pretrained(folder)
    unet.save_pretrained(folder)
    again = UNet2DConditionModel.from_pretrained(folder)
    assert again.config == SMALL and list(folder.glob("*.tmp")) == []
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))
    assert all(p.requires_grad for p in again.parameters()) and not list(again.buffers())


@pytest.mark.parametrize("dtype, suffix", [
    (torch.float16, ".fp16"), (torch.bfloat16, ".bf16"), (torch.float16, "")])
def test_half_precision_files(folder, dtype, suffix):
    """16-bit files, under diffusers' variant names too, are read and become float32."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    weights = {k: v.to(dtype) for k, v in load_file(whole).items()}
    whole.unlink()
    save_file(weights, folder / f"diffusion_pytorch_model{suffix}.safetensors")
    unet = UNet2DConditionModel.from_pretrained(folder)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert torch.equal(unet.conv_in.weight, weights["conv_in.weight"].float())


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_sharded_files(folder, variant):
    """Weights in several files with an index are one model."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    weights, names = load_file(whole), {}
    for part in range(3):
        name = f"diffusion_pytorch_model{variant}-{part + 1:05d}-of-00003.safetensors"
        shard = dict(sorted(weights.items())[part::3])
        save_file(shard, folder / name)
        names |= dict.fromkeys(shard, name)
    whole.unlink()
    index = folder / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    unet = UNet2DConditionModel.from_pretrained(folder)
    assert all(torch.equal(v, weights[k]) for k, v in unet.state_dict().items())
    (folder / name).unlink()
    with pytest.raises(ValueError, match="00003-of-00003.safetensors"):
        UNet2DConditionModel.from_pretrained(folder)


def change_weights(folder, change):
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def change_bytes(folder, change):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def change_config(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | values))


def only_a_pickle(folder):
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


BAD = {
    "truncated": (lambda f: change_bytes(f, lambda b: b[:-100]),
                  "diffusion_pytorch_model.safetensors.*damaged"),
    "empty file": (lambda f: change_bytes(f, lambda b: b""),
                   "diffusion_pytorch_model.safetensors.*damaged"),
    "corrupt header": (lambda f: change_bytes(f, lambda b: b[:8] + b"#" * 64 + b[72:]),
                       "not a safetensors file"),
    "header of 2^63 bytes": (lambda f: change_bytes(f, lambda b: b"\xff" * 8 + b[8:]),
                             "not a safetensors file"),
    "missing key": (lambda f: change_weights(f, lambda w: w.pop("conv_in.bias")), "conv_in.bias is missing"),
    "extra key": (lambda f: change_weights(f, lambda w: w.update(conv_x=torch.ones(1))),
                  "conv_x has no place"),
    "wrong shape": (lambda f: change_weights(f, lambda w: w.update({"conv_in.bias": torch.ones(3)})),
                    r"conv_in.bias has shape \[3\].*\[16\]"),
    "integers": (lambda f: change_weights(f, lambda w: w.update({"conv_in.bias": torch.ones(16).int()})),
                 "int32"),
    "not finite": (lambda f: change_weights(f, lambda w: w["conv_in.bias"].fill_(float("nan"))),
                   "conv_in.bias .*finite"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json.*object"),
    "only a .bin": (only_a_pickle, "diffusion_pytorch_model.bin: a pickle"),
    "no weights": (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
                   "no diffusion_pytorch_model.safe"),
    "another class": (lambda f: change_config(f, _class_name="UNet2DModel"), "_class_name is 'UNet2DModel'"),
    "another activation": (lambda f: change_config(f, act_fn="mish"), "act_fn is 'mish'"),
    "SDXL depth": (lambda f: change_config(f, transformer_layers_per_block=[1, 10]),
                   "transformer_layers_per_block"),
    "SDXL condition": (lambda f: change_config(f, addition_embed_type="text_time"), "addition_embed_type"),
    "unknown block": (lambda f: change_config(f, down_block_types=["AttnDownBlock2D"] * 2),
                      "config.json: down_block_types.*'AttnDownBlock2D'"),
    "too few blocks": (lambda f: change_config(f, up_block_types=["UpBlock2D"]), "up_block_types.*2 entries"),
    "a number as text": (lambda f: change_config(f, layers_per_block="2"), "layers_per_block is '2'"),
    "heads do not divide": (lambda f: change_config(f, attention_head_dim=5),
                            "attention_head_dim is 5.*divisor"),
    "groups do not divide": (lambda f: change_config(f, norm_num_groups=5), "norm_num_groups = 5"),
    "no widths": (lambda f: change_config(f, block_out_channels=None), "config.json: block_out_channels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused(folder, name):
    """Whatever is wrong with a folder, one ValueError names the file and the key."""
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        UNet2DConditionModel.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_missing_folder_is_refused(tmp_path):
    """A folder that does not exist is named."""
    with pytest.raises(ValueError, match="nowhere"):
        UNet2DConditionModel.from_pretrained(tmp_path / "nowhere")


def test_keys_that_change_nothing_are_ignored(folder):
    """Version stamps, unknown notes, and null or lists for "not used" do not stop a folder from loading."""
    change_config(folder, _diffusers_version="0.6.0", note="x", only_cross_attention=[False, False],
                  upcast_attention=True, dual_cross_attention=None, mid_block_only_cross_attention=False)
    assert UNet2DConditionModel.from_pretrained(folder).config == SMALL


@pytest.mark.parametrize("version, side", [("0.6.0", 64), ("0.8.1", 64), ("0.9.0", 8), ("0.30.0", 8),
                                           (None, 8)])
def test_a_pipeline_takes_small_old_sizes_for_64(folder, version, side):
    """StableDiffusionPipeline reads a sample_size under 64 as 64 where diffusers below 0.9 wrote it."""
    change_config(folder, _diffusers_version=version)
    assert read_unet_config(folder).sample_size == side


# ------------------------------------------------------------------------------------ LoRA


def trained_lora():
    """A UNet whose LoRA does something, and the UNet without."""
    unet = randomised(UNet2DConditionModel(SMALL))
    plain = copy.deepcopy(unet)
    parameters = add_lora(unet, rank=3).parameters()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return unet, plain


def test_lora_starts_without_effect():
    """A new LoRA changes no bit of the prediction; only its float32 matrices are trained."""
    unet, batch = randomised(UNet2DConditionModel(SMALL)), inputs(SMALL)
    before = unet(*batch).detach()
    parameters = list(add_lora(unet, rank=2).parameters())
    assert torch.equal(unet(*batch), before)
    assert [p for p in unet.parameters() if p.requires_grad] == parameters
    assert all(p.dtype == torch.float32 for p in parameters)
    assert len(parameters) == 2 * 8 * 4          # A and B; two attentions in each of 4 blocks; q, k, v, out


def test_lora_is_trained_alone():
    """Gradients reach every B at once (A follows, as B is zero first), and no frozen weight."""
    unet = randomised(UNet2DConditionModel(SMALL))
    add_lora(unet, rank=2)
    unet(*inputs(SMALL)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == name.endswith("lora_B.weight"), name


def test_a_merged_lora_is_an_ordinary_unet(tmp_path):
    """Merged weights compute the same at the base model's price. A UNet folder never silently loses its LoRA:
    one that is not merged is refused."""
    unet, plain = trained_lora()
    with pytest.raises(ValueError, match="merge_lora"):
        unet.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    merged, batch = merge_lora(unet, tmp_path), inputs(SMALL)
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        apart = unet(*batch)
        assert relative_error(plain(*batch), apart) > 0.01
        assert relative_error(merged(*batch), apart) < 1e-5
        assert torch.equal(UNet2DConditionModel.from_pretrained(tmp_path / "merged")(*batch), merged(*batch))


def test_a_merged_lora_keeps_the_pipelines_size(folder):
    """An old folder's sample_size, which the pipeline takes for 64, stays 64 through a LoRA."""
    change_config(folder, _diffusers_version="0.6.0")
    unet = UNet2DConditionModel.from_pretrained(folder)
    unet.config = read_unet_config(folder)
    add_lora(unet, rank=2)
    assert merge_lora(unet, folder).config.sample_size == 64


def test_lora_file_opens_in_diffusers(tmp_path):
    """diffusers' load_lora_weights reads the file and computes the same (1e-5 relative)."""
    diffusers = pytest.importorskip("diffusers",
                                    reason="the comparison needs diffusers: requirements-dev.txt")
    pytest.importorskip("peft", reason="diffusers needs peft to read a LoRA: pip install peft")
    unet, plain = trained_lora()
    plain.save_pretrained(tmp_path / "unet")
    save_lora(unet, tmp_path / "lora")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False).eval()
    state, metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True)[::2]
    diffusers.StableDiffusionPipeline.load_lora_into_unet(state, None, theirs, metadata=metadata)
    x, t, context = inputs(SMALL)
    with torch.no_grad():
        assert relative_error(unet(x, t, context), theirs(x, t, context).sample) < 1e-5
