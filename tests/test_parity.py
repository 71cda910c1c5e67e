"""Parity as a property: on random small and odd-shaped configurations, weights and inputs every network and
every step equals diffusers' and transformers', to 1e-5 relative in float32. (Files: test_pretrained.py.)"""
from dataclasses import asdict

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_model import randomised, relative_error
from test_text_encoder import HARD, REPORTS

from model import UNet2DConditionModel, UNetConfig
from sample import Schedule, ScheduleConfig, both_branches, ddim_step, guided_noise
from text_encoder import EOS, CLIPTextModel, TextConfig, Tokenizer
from vae import AutoencoderKL, VAEConfig

diffusers = pytest.importorskip("diffusers", reason="the comparison needs diffusers: requirements-dev.txt")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
few, many = settings(max_examples=12, deadline=None), settings(max_examples=100, deadline=None)
sides, seeds = st.integers(1, 9), st.integers(0, 2**31)


@st.composite
def unet_configs(draw) -> UNetConfig:
    levels, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    heads = [draw(st.sampled_from([1, 2, 3, 4])) for _ in range(levels)]
    widths = tuple(4 * groups * h * draw(st.integers(1, 2)) for h in heads)
    one_count = draw(st.booleans())
    cross = [draw(st.booleans()) for _ in range(2 * levels)]
    return UNetConfig(
        in_channels=draw(st.integers(1, 5)), out_channels=draw(st.integers(1, 5)), block_out_channels=widths,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross[:levels]),
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in cross[levels:]),
        layers_per_block=draw(st.integers(1, 2)), norm_num_groups=groups,
        cross_attention_dim=draw(st.integers(1, 20)),
        attention_head_dim=draw(st.sampled_from([1, 2, 4])) if one_count else tuple(heads),
        use_linear_projection=draw(st.booleans()))


def theirs_of(kind, ours, config):
    """The reference network of the same configuration and weights."""
    theirs = kind(**config).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


@few
@given(config=unet_configs(), h=sides, w=sides, n=st.integers(1, 9), seed=seeds)
def test_unet(config, h, w, n, seed):
    """Any widths, heads, blocks, projections, sides (odd and 1 included) and number of tokens;
    with guidance too."""
    smallest = 2 ** (len(config.block_out_channels) - 1)
    assume(min(h, w) >= smallest / 2)
    torch.manual_seed(seed)
    ours = randomised(UNet2DConditionModel(config))
    theirs = theirs_of(diffusers.UNet2DConditionModel, ours, asdict(config))
    x, context = torch.randn(2, config.in_channels, h, w), torch.randn(2, n, config.cross_attention_dim)
    t = torch.randint(0, 1000, (2,))
    with torch.no_grad():
        e_c = theirs(x, t, context).sample
        assert relative_error(ours(x, t, context), e_c) < 1e-5
        uncond = torch.randn(n, config.cross_attention_dim)
        e_u = theirs(x, t, uncond.expand_as(context)).sample
        both = both_branches(ours, context, uncond, 3.5)
        assert relative_error(guided_noise(ours, x, t, both, 3.5), e_u + 3.5 * (e_c - e_u)) < 1e-5


@few
@given(data=st.data(), seed=seeds)
def test_vae(data, seed):
    """Any widths, layers, channels and sides that the factor divides; black borders included."""
    levels, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
    config = VAEConfig(
        in_channels=data.draw(st.integers(1, 3)), out_channels=data.draw(st.integers(1, 3)),
        block_out_channels=tuple(2 * groups * data.draw(st.integers(1, 4)) for _ in range(levels)),
        layers_per_block=data.draw(st.integers(1, 2)), latent_channels=data.draw(st.integers(1, 6)),
        norm_num_groups=groups)
    torch.manual_seed(seed)
    ours = randomised(AutoencoderKL(config))
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels,
             "up_block_types": ("UpDecoderBlock2D",) * levels}
    theirs = theirs_of(diffusers.AutoencoderKL, ours, asdict(config) | kinds)
    h, w = (config.factor * data.draw(st.integers(1, 5)) for _ in range(2))
    image = torch.randn(2, config.in_channels, h, w).clamp(-1, 1)
    image[:, :, :h // 2] = -1
    with torch.no_grad():
        (mean, logvar), want = ours.encode(image), theirs.encode(image).latent_dist
        assert relative_error(mean, want.mean) < 1e-5 and relative_error(logvar, want.logvar) < 1e-5
        assert relative_error(ours.decode(mean), theirs.decode(mean).sample) < 1e-5


@few
@given(data=st.data(), seed=seeds)
def test_text_encoder(data, seed):
    """Any width, depth, heads, activation and length."""
    heads = data.draw(st.integers(1, 4))
    config = TextConfig(
        vocab_size=50, hidden_size=heads * 2 * data.draw(st.integers(1, 6)), num_attention_heads=heads,
        intermediate_size=data.draw(st.integers(1, 60)), num_hidden_layers=data.draw(st.integers(1, 4)),
        max_position_embeddings=data.draw(st.integers(2, 20)),
        hidden_act=data.draw(st.sampled_from(["gelu", "quick_gelu"])))
    torch.manual_seed(seed)
    ours = randomised(CLIPTextModel(config))
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**asdict(config))).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 50, (2, data.draw(st.integers(1, config.max_position_embeddings))))
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(ids).last_hidden_state) < 1e-5


@pytest.fixture(scope="module", params=[EOS, "!"])
def tokenizers(request, tmp_path_factory):
    ours = Tokenizer.train(REPORTS * 3, 600, 20)
    ours = Tokenizer(ours.vocab, ours.merges, 20, request.param)
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save_pretrained(folder)
    return ours, transformers.CLIPTokenizer.from_pretrained(folder)


@many
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(REPORTS + HARD), max_size=3).map(" ".join))
def test_tokenizer(tokenizers, text):
    """Any text in any script, with SD 1's padding and SD 2's: the same ids."""
    ours, theirs = tokenizers
    want = theirs([text], padding="max_length", max_length=20, truncation=True).input_ids
    assert ours([text]).tolist() == want


@many
@given(data=st.data(), n=st.integers(1, 400), eta=st.sampled_from([0.0, 0.3, 1.0]), seed=seeds)
def test_ddim_step(data, n, eta, seed):
    """Any schedule, number of steps, randomness and place: timesteps, and x_p from x_t, are diffusers'."""
    config = ScheduleConfig(
        beta_start=data.draw(st.sampled_from([0.0001, 0.00085])),
        beta_end=data.draw(st.sampled_from([0.012, 0.02])),
        beta_schedule=data.draw(st.sampled_from(["scaled_linear", "linear"])),
        prediction_type=data.draw(st.sampled_from(["epsilon", "v_prediction"])),
        timestep_spacing=data.draw(st.sampled_from(["leading", "trailing", "linspace"])),
        steps_offset=data.draw(st.integers(0, 1)), set_alpha_to_one=data.draw(st.booleans()))
    schedule = Schedule(config)
    theirs = diffusers.DDIMScheduler(**asdict(config), clip_sample=False)
    theirs.set_timesteps(n)
    t, p = schedule.timesteps(n)
    assert t.tolist() == theirs.timesteps[:n].tolist()   # rounding may give them one more, at -1
    i = data.draw(st.integers(0, n - 1))
    x, out, z = torch.randn(3, 2, 4, 5, 7, generator=torch.Generator().manual_seed(seed))
    mean, std, _ = ddim_step(schedule, out, x, t[i].expand(2), p[i].expand(2), eta)
    want = theirs.step(out, int(t[i]), x, eta=eta, variance_noise=z if eta else None).prev_sample
    assert relative_error(mean + std * z, want) < 1e-5
