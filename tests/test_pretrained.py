"""Whole folders as Stable Diffusion's authors published them, in small: every layout opens and draws the
picture of diffusers; a folder that is wrong or incomplete gives one error that names file and key.

The json files carry the keys and values of the published ones, only sizes are smaller.
"""
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import randomised, relative_error

from sample import REQUIRED, SAMPLERS, Pipeline, Schedule, denoise, generate, seeded_noise
from text_encoder import BOS, EOS, Tokenizer

diffusers = pytest.importorskip("diffusers", reason="the comparison needs diffusers: requirements-dev.txt")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

REPORTS = ["Moderate left pleural effusion.", "No acute disease! The heart is normal in size."]
BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
         "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
         "trained_betas": None, "clip_sample": False}
SCHEDULERS = {
    "SD 1.4, 1.5": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **BETAS},
    "SD 2, 2.1 base": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.10.0.dev0", **BETAS,
                       "prediction_type": "epsilon"},
    "SD 2, 2.1 768-v": {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", **BETAS,
                        "prediction_type": "v_prediction"},
}
UNET = {"act_fn": "silu", "block_out_channels": [32, 64], "center_input_sample": False,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 1,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 8, "out_channels": 4,
        "sample_size": 8, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
UNETS = {  # attention_head_dim is a number of heads: one for all levels, or one a level
    "SD 1.4, 1.5": UNET | {"attention_head_dim": 8, "cross_attention_dim": 24},
    "SD 2, 2.1 base": UNET | {"attention_head_dim": [2, 4], "cross_attention_dim": 32,
                              "dual_cross_attention": False, "num_class_embeds": None,
                              "only_cross_attention": False, "use_linear_projection": True},
}
UNETS["SD 2, 2.1 768-v"] = UNETS["SD 2, 2.1 base"] | {"sample_size": 12, "upcast_attention": True}
VAE = {"act_fn": "silu", "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
       "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 4, "out_channels": 3,
       "sample_size": 16, "up_block_types": ["UpDecoderBlock2D"] * 2}   # no scaling_factor: it is 0.18215
TEXT = {"attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 48,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "num_attention_heads": 4, "pad_token_id": 1,
        "vocab_size": 600}
TEXTS = {"SD 1.4, 1.5": TEXT | {"hidden_act": "quick_gelu", "hidden_size": 24, "num_hidden_layers": 2,
                                "projection_dim": 768},
         "SD 2, 2.1 base": TEXT | {"hidden_act": "gelu", "hidden_size": 32, "num_hidden_layers": 3,
                                   "projection_dim": 512}}
TEXTS["SD 2, 2.1 768-v"] = TEXTS["SD 2, 2.1 base"]
FAMILIES = list(SCHEDULERS)
FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def added(content: str) -> dict:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_tokenizer(family: str, folder: Path) -> None:
    """vocab.json, merges.txt and the two small files, SD 2's with its padding "!" in the map alone."""
    Tokenizer.train(REPORTS * 4, 600).save_pretrained(folder)
    kinds = {"bos_token": added(BOS), "eos_token": added(EOS), "unk_token": added(EOS)}
    write(folder / "special_tokens_map.json", kinds | {"pad_token": EOS if "1.5" in family else "!"})
    write(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "pad_token": EOS, "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer", **{k: {"__type": "AddedToken", **v} for k, v in kinds.items()}})


def old_names(folder: Path) -> None:
    """The names of SD 1's files: the VAE's attention of 2022, text_model. and a stray position_ids."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights, names = load_file(path), (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                                       ("to_out.0", "proj_attn"))
    for new, old in names:
        weights = {k.replace(f"attentions.0.{new}", f"attentions.0.{old}"): v for k, v in weights.items()}
    save_file(weights, path, {"format": "pt"})
    path = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, {"format": "pt"})


def write_folder(family: str, folder: Path, **how) -> dict:
    """A pipeline folder with random weights, saved by diffusers and transformers (`how`), under published
    json files -> the three networks as they have them."""
    torch.manual_seed(0)
    parts = {"unet": diffusers.UNet2DConditionModel(**UNETS[family]), "vae": diffusers.AutoencoderKL(**VAE),
             "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXTS[family]))}
    for name, part in parts.items():
        randomised(part).to(how.get("dtype", torch.float32))
        part.save_pretrained(folder / name, **{k: v for k, v in how.items() if k != "dtype"})
    write(folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", **UNETS[family]})
    write(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", **VAE})
    write(folder / "text_encoder" / "config.json",
          {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **TEXTS[family]})
    write(folder / "scheduler" / "scheduler_config.json", SCHEDULERS[family])
    write_tokenizer(family, folder / "tokenizer")
    write(folder / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None], "safety_checker": [None, None],
        "scheduler": ["diffusers", SCHEDULERS[family]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})
    (folder / "safety_checker").mkdir()          # there in published folders, and ignored
    return parts


# ------------------------------------------------------------------------------------ folders that are right


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_published_layouts_draw_the_same_picture(family, guidance, tmp_path):
    """From the same folder and noise, 6 steps of diffusers' DDIM and of ours end in the same latent and the
    same picture (1e-5 relative): heads, projections, activation, eps or v, padding and latent scale are
    right."""
    write_folder(family, tmp_path)
    if "1.5" in family:
        old_names(tmp_path)
    pipe = Pipeline.load(tmp_path)
    pipe.unet.to(memory_format=torch.contiguous_format)   # as theirs: another layout rounds otherwise
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    noise = seeded_noise([3, 4], 6, pipe.latent_shape)[:, 0]
    settings = {"latents": noise, "num_inference_steps": 6, "eta": 0.0, "guidance_scale": guidance}
    want = theirs(REPORTS, output_type="latent", **settings).images
    assert want.shape[2:] == pipe.latent_shape[1:] == (UNETS[family]["sample_size"],) * 2
    with torch.no_grad():
        *_, last = denoise(pipe.unet, pipe.schedule, pipe.embed(REPORTS), pipe.embed([""])[0],
                           seeded_noise([3, 4], 6, pipe.latent_shape), guidance, 0.0)
    assert relative_error(last.x_p, want) < 1e-5
    assert pipe.vae.config.scaling_factor == 0.18215
    picture = generate(pipe, REPORTS, [3, 4], 6, guidance, eta=0.0)
    assert picture.std() > 0.01
    assert relative_error(picture, theirs(REPORTS, output_type="pt", **settings).images) < 1e-5


STORAGE = {
    "half precision": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "fp16 variant": {"dtype": torch.float16, "variant": "fp16"},
    "shards": {"max_shard_size": "40KB"},
    "shards of the fp16 variant": {"dtype": torch.float16, "variant": "fp16", "max_shard_size": "40KB"},
}


@pytest.mark.parametrize("name", STORAGE)
def test_every_way_of_storing_weights(name, tmp_path):
    """16-bit files, diffusers' file name variants and shards give exactly the stored numbers, in float32."""
    parts = write_folder("SD 2, 2.1 base", tmp_path, **STORAGE[name])
    files = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors"))
    assert ("diffusion_pytorch_model.safetensors" in files) == (name in ("half precision", "bfloat16"))
    assert (len(files) > 2) == name.startswith("shards")
    pipe = Pipeline.load(tmp_path)
    for part, ours in (("unet", pipe.unet), ("vae", pipe.vae), ("text_encoder", pipe.text)):
        theirs = {k.removeprefix("text_model."): v for k, v in parts[part].state_dict().items()}
        state = ours.state_dict()
        assert state.keys() == theirs.keys() - {"embeddings.position_ids"}
        assert all(v.dtype == torch.float32 and torch.equal(v, theirs[k].float()) for k, v in state.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_published_tokenizers(family, tmp_path):
    """The published tokenizer files give transformers' ids, with the padding that each family was trained on:
    the end token in SD 1, "!" (id 0) in SD 2."""
    write_tokenizer(family, tmp_path)
    ours, theirs = Tokenizer.from_pretrained(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["", *REPORTS, "word " * 100]
    ids = ours(texts)
    want = theirs(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert ids[0, 2:].unique().tolist() == [ours.vocab[EOS] if "1.5" in family else 0]
    assert ids.tolist() == want.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_published_schedulers(family, tmp_path):
    """All of the process that a published scheduler_config.json describes is read: betas, eps or v, offset,
    the alpha after the last step; it is written again as a DDIM scheduler that diffusers steps alike."""
    write(tmp_path / "scheduler_config.json", SCHEDULERS[family])
    schedule = Schedule.from_pretrained(tmp_path)
    assert schedule.config.prediction_type == SCHEDULERS[family].get("prediction_type", "epsilon")
    t, p = schedule.timesteps(50)
    assert t.tolist() == list(range(981, 0, -20)) and p.tolist() == list(range(961, 0, -20)) + [-1]
    assert schedule.a[-1] == schedule.a[0]
    schedule.save_pretrained(tmp_path / "again")
    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path / "again")
    assert torch.equal(theirs.alphas_cumprod, schedule.a[:1000])
    assert theirs.final_alpha_cumprod == schedule.a[-1] and not theirs.config.clip_sample
    assert Schedule.from_pretrained(tmp_path / "again").config == schedule.config


def as_the_pipeline_converts(folder: Path):
    """diffusers' DDIM scheduler of a folder, in StableDiffusionPipeline."""
    raw = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, raw["_class_name"]).from_pretrained(folder)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(scheduler=scheduler, requires_safety_checker=False, **parts)
    ddim = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    # The conversion drops keys that the file lacks; the pipeline then sets this one again.
    return diffusers.StableDiffusionPipeline(scheduler=ddim, requires_safety_checker=False, **parts).scheduler


@pytest.mark.parametrize("how", ["steps_offset 0", "no steps_offset", "no set_alpha_to_one", "as saved anew"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_becomes_the_ddim_that_diffusers_makes_of_it(name, how, tmp_path):
    """Whatever sampler a folder names: its timesteps and its alpha after the last step are those of DDIM in
    diffusers' Stable Diffusion pipeline. steps_offset 0, written out or by default, becomes 1, clip_sample
    false; where set_alpha_to_one is missing DDIM's default holds."""
    raw = {"_class_name": name, **BETAS}
    if how == "as saved anew":   # every key of the class, with its default
        scheduler = getattr(diffusers, name)(**{k: BETAS[k] for k in REQUIRED[1:]})
        scheduler.save_pretrained(tmp_path)
        raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    elif how == "steps_offset 0":
        raw["steps_offset"] = 0
    else:
        del raw[how.removeprefix("no ")]
    write(tmp_path / "scheduler_config.json", raw)
    ours, theirs = Schedule.from_pretrained(tmp_path), as_the_pipeline_converts(tmp_path)
    theirs.set_timesteps(50)
    assert ours.timesteps(50)[0].tolist() == theirs.timesteps.tolist()
    assert ours.a[-1] == theirs.final_alpha_cumprod and not theirs.config.clip_sample


# ------------------------------------------------------------------------------------ folders that are wrong


def change(path: str, **values):
    """-> a spoiler that sets keys of a json file; None removes one."""
    def spoil(folder: Path) -> None:
        raw = json.loads((folder / path).read_text()) | values
        write(folder / path, {k: v for k, v in raw.items() if v is not None})
    return spoil


def only_a_pickle(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def shorter_text(folder: Path) -> None:
    change("text_encoder/config.json", max_position_embeddings=7)(folder)
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    [key] = [k for k in weights if k.endswith("position_embedding.weight")]
    save_file(weights | {key: weights[key][:7].contiguous()}, path)


def larger_vocabulary(folder: Path) -> None:
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    write(folder / "tokenizer" / "vocab.json", vocab | {"more": 600})


def inpainting(folder: Path) -> None:
    unet = diffusers.UNet2DConditionModel(**UNETS["SD 1.4, 1.5"] | {"in_channels": 9})
    unet.save_pretrained(folder / "unet")


def another_vae(folder: Path) -> None:
    diffusers.AutoencoderKL(**VAE | {"latent_channels": 16}).save_pretrained(folder / "vae")


def another_text_encoder(folder: Path) -> None:
    config = transformers.CLIPTextConfig(**TEXTS["SD 2, 2.1 base"])
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")


SCHEDULER = "scheduler/scheduler_config.json"
WRONG = {
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "unet.config.json"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), SCHEDULER),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
    "a pickle": (only_a_pickle, "pytorch_model.bin: a pickle, which may run any code"),
    "VAE of another family": (
        another_vae, "unet.config.json: in_channels is 4, but vae has latent_channels 16"),
    "text encoder of another family": (
        another_text_encoder,
        "unet.config.json: cross_attention_dim is 24, but text_encoder has hidden_size 32"),
    "positions": (shorter_text, "tokenizer: model_max_length is 77, .*max_position_embeddings 7"),
    "tokens": (larger_vocabulary, "tokenizer: has a token 600, but text_encoder has vocab_size 600"),
    "no size": (change("unet/config.json", sample_size=None), "unet.config.json: sample_size is missing"),
    "oblong": (change("unet/config.json", sample_size=[8, 16]), r"unet.config.json: sample_size is .*square"),
    "inpainting": (inpainting, "unet.config.json: in_channels is 9, but vae has latent_channels 4"),
    "config of another UNet": (change("unet/config.json", in_channels=9),
                               r"diffusion_pytorch_model.safetensors: conv_in.weight has shape \[32, 4, 3"),
    "half a scheduler": (change(SCHEDULER, beta_end=None), f"{SCHEDULER}: beta_end is missing"),
    "flow matching": (change(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
                      f"{SCHEDULER}: _class_name is 'FlowMatchEulerDiscreteScheduler'"),
    "own betas": (change(SCHEDULER, trained_betas=[0.1, 0.2]), f"{SCHEDULER}: trained_betas is "),
    "x_0 prediction": (change(SCHEDULER, prediction_type="sample"), "prediction_type is 'sample'"),
    "thresholds": (change(SCHEDULER, thresholding=True), "thresholding is 'True'"),
    "a number as text": (change(SCHEDULER, beta_end="0.012"), f"{SCHEDULER}: beta_end is '0.012'"),
    "a schedule without end": (change(SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps is 10000"),
    "a vast width": (change("unet/config.json", cross_attention_dim=10**30), "attention_dim is 10"),
    "a vast vocabulary": (change("text_encoder/config.json", vocab_size=10**30), "vocab_size is 1000"),
    "vast channels": (change("vae/config.json", latent_channels=10**30), "latent_channels is 1000"),
    "no timesteps": (change(SCHEDULER, num_train_timesteps=0), "num_train_timesteps is 0"),
    "a flag as text": (change(SCHEDULER, set_alpha_to_one="no"), "set_alpha_to_one is 'no'"),
    "a list for a value": (change("unet/config.json", act_fn=[]), "unet.config.json: act_fn is \\[\\]"),
    "shards beside a whole file": (
        lambda f: write(f / "unet/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {}}),
        "index.json: diffusion_pytorch_model.safetensors is there as well"),
    "a token that stands alone": (
        change("tokenizer/special_tokens_map.json", pad_token={"content": EOS, "single_word": True}),
        f"single_word of '{re.escape(EOS)}' is True"),
    "a list": (lambda f: (f / SCHEDULER).write_text("[]"), f"{SCHEDULER}: expected a JSON object, not list"),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("right")
    write_folder("SD 1.4, 1.5", folder)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_refused(name, right, tmp_path):
    """Whatever is wrong or missing, one ValueError names the file and, where there is one, the key."""
    spoil, message = WRONG[name]
    folder = Path(shutil.copytree(right, tmp_path / "init"))
    Pipeline.load(folder)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Pipeline.load(folder)
    assert str(folder) in str(caught.value)


def test_more_steps_than_there_are_timesteps(right):
    """A number of steps whose timesteps would leave the schedule is refused, not wrapped around."""
    schedule = Schedule.from_pretrained(right / "scheduler")
    assert schedule.timesteps(999)[0][0] == 999
    for n, words in ((1000, "timestep would be 1000"), (1001, "expected 1 to 1000"), (0, "0 denoising")):
        with pytest.raises(ValueError, match=words):
            schedule.timesteps(n)
