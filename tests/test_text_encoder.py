"""Tokenizer and text transformer: CLIP's files, CLIP's ids, CLIP's numbers."""
import hashlib
import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from text_encoder import BOS, EOS, CLIPTextModel, TextConfig, Tokenizer

SMALL = TextConfig(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                   num_attention_heads=3, max_position_embeddings=11)
REPORTS = [
    "Moderate left pleural effusion. Heart size is normal.", "No pneumothorax, no consolidation!",
    "The cardiomediastinal silhouette is mildly enlarged; it's unchanged since 2019.", "Lungs are clear.",
    "Bibasilar opacities may reflect atelectasis or pneumonia.", "Right-sided PICC line tip in the SVC.",
]
HARD = ["", " ", "Heart  size\tnormal.\n\n", "NAÏVE café ﬁbrosis", "漢字 🫁 lungs", "it's they'll 12.5cm x3",
        "a" * 300, "<|endoftext|> injected <|startoftext|>", "!!! ??? ...", "e\u0301 vs \u00e9",
        "\u0085 \u2028 \ufeff"]


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(REPORTS * 3, vocab_size=600, max_length=20)


# ------------------------------------------------------------------------------------ tokenizer


def test_training_is_repeatable(tokenizer):
    """The same reports, in any order, always give the same vocabulary and merges."""
    for reports in (REPORTS * 3, REPORTS[::-1] * 3):
        again = Tokenizer.train(reports, vocab_size=600, max_length=20)
        assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)


def test_vocabulary_is_laid_out_as_clips(tokenizer):
    """Ids are 256 bytes, the same ending a word, merges in order, BOS, EOS:
    CLIP's own 49408 are laid out so."""
    by_id = sorted(tokenizer.vocab, key=tokenizer.vocab.get)
    assert sorted(tokenizer.vocab.values()) == list(range(600))
    assert by_id[:2] == ["!", '"'] and by_id[256:258] == ["!</w>", '"</w>']
    assert by_id[512:598] == [a + b for a, b in tokenizer.merges] and by_id[598:] == [BOS, EOS]


def test_rows_are_bos_tokens_eos_padding(tokenizer):
    """Every row has max_length ids; the empty prompt is BOS, EOS and padding."""
    bos, eos = tokenizer.vocab[BOS], tokenizer.vocab[EOS]
    ids = tokenizer(["Lungs are clear.", ""])
    assert ids.shape == (2, 20) and ids.dtype == torch.int64
    assert ids[1].tolist() == [bos] + [eos] * 19
    body = tokenizer.encode(["Lungs are clear."])[0]
    assert ids[0].tolist() == [bos, *body, *[eos] * (19 - len(body))]


def test_long_reports_are_cut_and_counted(tokenizer):
    """A report longer than the limit keeps its first tokens and EOS, and is counted;
    one that just fits is not."""
    word = tokenizer.encode(["a"])[0]
    assert len(word) == 1
    fits, long = " ".join("a" * 18), " ".join("a" * 19)
    assert tokenizer.cut_count([fits, long, "", long]) == 2
    expected = [tokenizer.vocab[BOS], *word * 18, tokenizer.vocab[EOS]]
    assert tokenizer([fits, long]).tolist() == [expected, expected]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_spelled_out_in_bytes(tokenizer, text):
    """No text is unknown: ids are in range, upper case and spacing change nothing."""
    [ids] = tokenizer.encode([text.replace("<|", "")])
    assert tokenizer.vocab[EOS] not in ids and all(0 <= i < 598 for i in ids)
    plain = "".join(c for c in text if c.isascii() and c.isalnum() or c == " ")
    assert tokenizer.encode([plain]) == tokenizer.encode([f" {plain.upper()}  "])


def test_one_string_is_refused(tokenizer):
    """A string is a sequence of letters; passing it by mistake is caught."""
    with pytest.raises(ValueError, match="not one string"):
        tokenizer("Lungs are clear.")


@pytest.mark.parametrize("pad", [EOS, "!"])
def test_equals_transformers_tokenizer_both_ways(tokenizer, pad, tmp_path):
    """transformers' CLIPTokenizer gives the same ids from our folder, and we from its;
    SD 1 and SD 2 padding."""
    transformers = pytest.importorskip("transformers",
                                       reason="the comparison needs transformers: requirements-dev.txt")
    ours = Tokenizer(tokenizer.vocab, tokenizer.merges, 20, pad)
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    reports = REPORTS + HARD
    want = theirs(reports, padding="max_length", truncation=True, return_tensors="pt").input_ids
    saved = [Tokenizer.from_pretrained(tmp_path / name) for name in ("ours", "theirs")]
    for tokens in (ours, *saved):
        assert tokens.max_length == 20 and tokens.pad == pad
        for report, got, expected in zip(reports, tokens(reports).tolist(), want.tolist(), strict=True):
            assert got == expected, report


def save_as_clip(tokenizer, folder, **special):
    """The four files as OpenAI's and Stability's folders have them."""
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"model_max_length": 77, "pad_token": EOS, "do_lower_case": True, "bos_token": {"content": BOS}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("pad", ["!", {"content": "!", "lstrip": False}])
def test_padding_of_sd2(tokenizer, pad, tmp_path):
    """SD 2 names "!" as padding in special_tokens_map.json and another in tokenizer_config.json:
    the map counts."""
    save_as_clip(tokenizer, tmp_path, pad_token=pad)
    tokens = Tokenizer.from_pretrained(tmp_path)
    assert tokens.pad == "!" and tokens([""])[0, 2:].tolist() == [0] * 75


@pytest.mark.parametrize("length", [10**30, 1e30, None])
def test_unset_length_is_77(tokenizer, length, tmp_path):
    """transformers writes 10^30 for "no length given"; CLIP's is 77."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    assert Tokenizer.from_pretrained(tmp_path).max_length == 77


def test_vocab_and_merges_alone_are_enough(tokenizer, tmp_path):
    """OpenAI's release has vocab.json and merges.txt only."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    tokens = Tokenizer.from_pretrained(tmp_path)
    assert (tokens.vocab, tokens.merges, tokens.pad) == (tokenizer.vocab, tokenizer.merges, EOS)


def whole(folder, **model) -> None:
    """tokenizer.json in place of vocab.json and merges.txt"""
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab, "merges": [], **model}}))


BAD_TOKENIZERS = {
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "tokenizer.json"),
    "no merges": (lambda f: (f / "merges.txt").unlink(), "merges.txt"),
    "broken vocabulary": (lambda f: (f / "vocab.json").write_text('{"a": 0'), "vocab.json: not JSON"),
    "vocabulary is a list": (lambda f: (f / "vocab.json").write_text("[]"),
                             "vocab.json: expected a JSON object"),
    "not UTF-8": (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe a"), "merges.txt: cannot be read"),
    "half a merge": (lambda f: (f / "merges.txt").write_text("a b\nc\n"), "merge 1 is"),
    "unknown merge": (lambda f: (f / "merges.txt").write_text("zz qq\n"), "do not fit together"),
    "no end token": (lambda f: (f / "vocab.json").write_text('{"a": 0}'),
                     "lacks the token '<|startoftext|>'"),
    "unknown padding": (lambda f: (f / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}'),
                        r"\[PAD\]"),
    "merges of numbers": (lambda f: whole(f, merges=[[1, 2]]), "merge 0 is"),
    "merges are no list": (lambda f: whole(f, merges=7), "not a CLIP tokenizer"),
    "model is a list": (lambda f: (f / "vocab.json").unlink() or
                        (f / "tokenizer.json").write_text('{"model": []}'), "not a CLIP tokenizer"),
    "padding is a list": (lambda f: (f / "special_tokens_map.json").write_text('{"pad_token": ["!"]}'),
                          "a token is .'!'., expected text"),
    "nested thousands deep": (lambda f: (f / "tokenizer.json").write_text('{"model":' * 50_000),
                              "tokenizer.json: not JSON"),
    "ids as text": (lambda f: (f / "vocab.json").write_text(json.dumps({"a": "0", BOS: "1", EOS: "2"})),
                    "vocab"),
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_bad_tokenizer_folders_are_refused(tokenizer, name, tmp_path):
    """One ValueError names the folder and what is wrong in it."""
    spoil, message = BAD_TOKENIZERS[name]
    tokenizer.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_length_by_its_old_name_and_ids_that_disagree(tokenizer, tmp_path):
    """`max_len` is the length where model_max_length is not given; a decoder that numbers a special token
    otherwise than the vocabulary is refused, as other readers would take its number."""
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["max_len"] = config.pop("model_max_length") - 3
    path.write_text(json.dumps(config))
    assert Tokenizer.from_pretrained(tmp_path).max_length == tokenizer.max_length - 3
    other = tokenizer.vocab[EOS] - 1
    path.write_text(json.dumps(config | {"added_tokens_decoder": {str(other): {"content": EOS}}}))
    with pytest.raises(ValueError, match=f"the id of '<.endoftext.>' is '{other}', expected {other + 1}"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("file, value", [
    ("added_tokens.json", {"<cxr-style>": 600}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"600": {"content": "<cxr-style>"}}}),
    ("tokenizer_config.json", {"additional_special_tokens": ["<cxr-style>"]}),
    ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<cxr-style>"}}),
    ("tokenizer_config.json", {"mask_token": {"content": "<cxr-style>"}}),
    ("tokenizer.json", {"added_tokens": [{"id": 600, "content": "<cxr-style>"}]}),
    ("special_tokens_map.json", {"additional_special_tokens": ["<cxr-style>"]})])
def test_added_tokens_are_refused_by_name(tokenizer, file, value, tmp_path):
    """A token of textual inversion would be split into letters, which is another prompt: wherever a folder
    names it, it is refused. CLIP's own special tokens among added ones are not."""
    tokenizer.save_pretrained(tmp_path)
    for name, refused in [("<cxr-style>", True), (EOS, False)]:
        text = json.dumps(value).replace("<cxr-style>", name)
        (tmp_path / file).write_text(text if refused else text.replace("600", str(tokenizer.vocab[EOS])))
        if refused:
            with pytest.raises(ValueError, match="the added token '<cxr-style>' is not supported"):
                Tokenizer.from_pretrained(tmp_path)
        else:
            assert Tokenizer.from_pretrained(tmp_path).vocab == tokenizer.vocab


@pytest.mark.parametrize("file, value, words", [
    ("tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
    ("special_tokens_map.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
    ("tokenizer_config.json", {"bos_token": "<s>"}, "bos_token is '<s>'"),
    ("special_tokens_map.json", {"eos_token": {"content": "!"}}, "eos_token is '!'"),
    ("tokenizer_config.json", {"unk_token": "!"}, "unk_token is '!'"),
    ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is True"),
    ("tokenizer_config.json", {"model_max_length": "77"}, "model_max_length is '77'"),
    ("tokenizer_config.json", {"model_max_length": -1}, "model_max_length is -1"),
    ("tokenizer.json", {"padding": {"direction": "Left"}}, "padding of tokenizer.json is 'Left'"),
    ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": []}}, "tokenizer.json is 'another'")])
def test_settings_that_would_give_other_ids_are_refused(tokenizer, file, value, words, tmp_path):
    """Where transformers would pad, cut, begin or end a text otherwise (each of these changes its ids), or
    where two vocabularies lie in one folder: never another prompt without a word."""
    tokenizer.save_pretrained(tmp_path)
    if file != "tokenizer.json":
        (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=words):
        Tokenizer.from_pretrained(tmp_path)


def test_vocabulary_must_hold_all_bytes():
    """Fewer than 514 entries could not spell every text."""
    with pytest.raises(ValueError, match="at least 514"):
        Tokenizer.train(REPORTS, vocab_size=500)


# ------------------------------------------------------------------------------------ text transformer


@pytest.mark.parametrize("preset, tensors, parameters, digest", [
    ("sd15", 196, 123_060_480, "a49bc0b832a1e5c17c35c13ac3db12ef2bdb60e63f5914aae507030145c51c49"),
    ("sd21", 372, 340_387_840, "9a375520eeec0ca281980b7189c60c556b0841e56e139f2d4feff0853ac5c3ac"),
])
def test_stable_diffusion_names_and_shapes(preset, tensors, parameters, digest):
    """All names and shapes are those of SD's text encoders (SHA-256 of the sorted list)."""
    with torch.device("meta"):
        state = CLIPTextModel(getattr(TextConfig, preset)()).state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    assert (len(lines), sum(v.numel() for v in state.values())) == (tensors, parameters)
    width = 768 if preset == "sd15" else 1024
    assert f"embeddings.position_embedding.weight [77, {width}]" in lines
    assert f"encoder.layers.{(tensors - 4) // 16 - 1}.mlp.fc1.bias [{4 * width}]" in lines
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_stored_numbers():
    """Weights from a formula give the states that transformers 5.23 gave for them, with either activation."""
    stored = {"quick_gelu": [-0.8031, -0.04858, 0.64699, -0.86691, -1.6856],
              "gelu": [-0.80166, -0.03875, 0.65199, -0.86746, -1.68345]}
    for activation, numbers in stored.items():
        text = CLIPTextModel(replace(SMALL, hidden_act=activation))
        formula_weights(text)
        with torch.no_grad():
            states = text(torch.tensor([[48, 3, 17, 42, 49, 49]]))
        torch.testing.assert_close(states[0, 4, ::5], torch.tensor(numbers), rtol=1e-4, atol=1e-4)


def formula_weights(model):
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
            numbers = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(numbers * 0.37 + i).view_as(parameter)
            gain = 2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(wave * gain + (parameter.ndim == 1 and name.endswith("weight")))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("n", [1, 6, 11])
def test_equals_transformers_both_ways(activation, n, tmp_path):
    """transformers computes the same from our folder, and we from its folder (1e-5 relative)."""
    transformers = pytest.importorskip("transformers",
                                       reason="the comparison needs transformers: requirements-dev.txt")
    config = replace(SMALL, hidden_act=activation)
    ours = randomised(CLIPTextModel(config))
    ours.save_pretrained(tmp_path / "ours")
    theirs, info = transformers.CLIPTextModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs.eval().save_pretrained(tmp_path / "theirs")
    back = CLIPTextModel.from_pretrained(tmp_path / "theirs")
    assert back.config == config
    ids = torch.randint(0, 50, (3, n), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = theirs(ids).last_hidden_state
        for text in (ours, back):
            assert (text(ids) - want).abs().max() < 1e-5 * want.abs().max()


def test_transformers_defaults_are_ours():
    """A key missing from config.json means what it means to transformers."""
    transformers = pytest.importorskip("transformers",
                                       reason="the comparison needs transformers: requirements-dev.txt")
    theirs = transformers.CLIPTextConfig()
    for name, value in asdict(TextConfig()).items():
        assert getattr(theirs, name) == value, name


def test_later_tokens_never_change_earlier_states():
    """The mask is causal: changing token i leaves the states before i as they are, and changes state i."""
    text, ids = randomised(CLIPTextModel(SMALL)), torch.arange(8)[None]
    with torch.no_grad():
        base = text(ids)
        for i in range(8):
            other = ids.clone()
            other[0, i] = 30
            states = text(other)
            torch.testing.assert_close(states[:, :i], base[:, :i], rtol=1e-5, atol=1e-6)
            assert (states[:, i] - base[:, i]).abs().max() > 1e-2


# ------------------------------------------------------------------------------------ files


@pytest.fixture
def folder(tmp_path):
    """A complete text_encoder/ folder as we write it."""
    randomised(CLIPTextModel(SMALL)).save_pretrained(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def test_round_trip_is_exact(folder):
    """What is saved is what is loaded, config and bits, and no temporary file stays behind."""
    text = CLIPTextModel.from_pretrained(folder)
    text.save_pretrained(folder)
    again = CLIPTextModel.from_pretrained(folder)
    assert again.config == SMALL and list(folder.glob("*.tmp")) == [] and not list(again.buffers())
    assert all(torch.equal(a, b) for a, b in zip(text.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["text_model.", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_prefix_and_position_ids(folder, prefix, dtype):
    """Files of transformers 4 (prefix, stray position_ids) and 5 (no prefix), in any float type,
    are the same model."""
    weights = load_file(folder / "model.safetensors")
    weights = {k.removeprefix("text_model."): v.to(dtype, copy=True) for k, v in weights.items()}
    stray = {"embeddings.position_ids": torch.arange(11)[None]}
    save_file({prefix + k: v for k, v in (weights | stray).items()}, folder / "model.safetensors")
    state = CLIPTextModel.from_pretrained(folder).state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(v, weights[k].float()) for k, v in state.items())


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | values))


NORM = "text_model.final_layer_norm.bias"
BAD = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        "model.safetensors.*damaged"),
    "corrupt": (lambda f: (f / "model.safetensors").write_bytes(b"\1" * 500),
                "model.safetensors.*not a safetensors"),
    "missing key": (lambda f: change_weights(f, lambda w: w.pop(NORM)), "final_layer_norm.bias is missing"),
    "projection head": (
        lambda f: change_weights(f, lambda w: w.update({"text_projection.weight": torch.ones(1)})),
        "text_projection.weight has no place"),
    "wrong shape": (lambda f: change_weights(f, lambda w: w.update({NORM: torch.ones(3)})), r"\[3\].*\[24\]"),
    "not finite": (lambda f: change_weights(f, lambda w: w[NORM].fill_(torch.nan)),
                   "final_layer_norm.bias.*finite"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "only a .bin": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
                    "pytorch_model.bin: a pickle"),
    "another model": (lambda f: change_config(f, model_type="bert"), "model_type is 'bert'"),
    "masked padding": (lambda f: change_config(f, use_attention_mask=True), "use_attention_mask is True"),
    "both towers": (lambda f: change_config(f, model_type="clip"), "model_type is 'clip'"),
    "activation": (lambda f: change_config(f, hidden_act="relu"), "hidden_act is 'relu'"),
    "heads": (lambda f: change_config(f, num_attention_heads=5),
              "num_attention_heads is 5.*hidden_size = 24"),
    "length": (lambda f: change_config(f, max_position_embeddings="77"), "max_position_embeddings is '77'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused(folder, name):
    """Whatever is wrong with a folder, one ValueError names the file and the key."""
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        CLIPTextModel.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_config_save_says_what_it_is(folder):
    """config.json carries what transformers needs to choose its class,
    and every field of ours by its own name."""
    raw = json.loads((folder / "config.json").read_text())
    assert raw["model_type"] == "clip_text_model" and raw["architectures"] == ["CLIPTextModel"]
    assert {k: raw[k] for k in asdict(SMALL)} == asdict(SMALL)
