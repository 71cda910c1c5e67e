"""Report text to embeddings: CLIP's byte-pair tokenizer and text transformer, as Stable Diffusion uses them.

The condition is the last hidden state after the final layer norm, for every position, padding included:
Stable Diffusion was trained on exactly that. Parameter names equal the keys of the weight files (without the
prefix `text_model.` that transformers before version 5 put in front of each).

Radford et al. 2021 (arXiv 2103.00020), section 2.4; Sennrich et al. 2016 (arXiv 1508.07909), byte pairs.
"""
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
from einops import rearrange
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor, nn

from storage.files import naming, read_json, read_text, write_text
from storage.weights import is_count, load_strict, read_config, read_weights, require, write_folder
from training.ranks import gather_from_ranks

# -------------------------------------------------------------------------------- tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Settings of a tokenizer's files that change ids, with the only value that is supported.
SETTINGS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "padding_side": "right",
            "truncation_side": "right", "split_special_tokens": False}
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """tokenizer(list of str) -> ids: b n. Lower case, CLIP's word split, byte-level BPE, words end in `</w>`.

    A row is BOS, tokens, EOS, padding: `max_length` ids in all. What is longer is cut; `cut_count` counts it.
    """

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], max_length: int = 77,
                 pad: str = EOS):
        for token in (BOS, EOS, pad):
            if token not in vocab:
                raise ValueError(f"the vocabulary lacks the token {token!r}")
        self.vocab, self.merges, self.max_length, self.pad = vocab, merges, max_length, pad
        with naming("vocabulary and merges do not fit together: ", Exception):   # as tokenizers raises
            self.bpe = byte_level(BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>",
                                      continuing_subword_prefix="", unk_token=EOS))
        # Found in a text, these are never split: with SD 2, whose padding is "!", every "!" is padding.
        self.bpe.add_special_tokens([AddedToken(t, normalized=False) for t in dict.fromkeys((BOS, EOS, pad))])

    def __call__(self, reports: Sequence[str]) -> Tensor:
        """(b reports) -> ids: b max_length, int64"""
        rows = torch.full((len(reports), self.max_length), self.vocab[self.pad])
        for row, ids in zip(rows, self.encode(reports), strict=True):
            ids = ids[:self.max_length - 2]
            row[:len(ids) + 2] = torch.tensor([self.vocab[BOS], *ids, self.vocab[EOS]])
        return rows

    def encode(self, reports: Sequence[str]) -> list[list[int]]:
        """Token ids of each report, of any length, without BOS and EOS."""
        if isinstance(reports, str):
            raise ValueError(f"expected a list of reports, not one string: {reports[:40]!r}")
        return [encoding.ids for encoding in self.bpe.encode_batch(list(reports), add_special_tokens=False)]

    def cut_count(self, reports: Sequence[str]) -> int:
        """How many of the reports are longer than `max_length` allows."""
        parts = (reports[i:i + 4096] for i in range(0, len(reports), 4096))   # encodings are large
        return sum(len(ids) > self.max_length - 2 for part in parts for ids in self.encode(part))

    @classmethod
    def train(cls, reports: Iterable[str], vocab_size: int = 1024, max_length: int = 77) -> "Tokenizer":
        """Learn merges. The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, BOS, EOS."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        letters += [letter + "</w>" for letter in letters]
        if vocab_size < len(letters) + 2:
            raise ValueError(f"vocab_size is {vocab_size}, expected at least {len(letters) + 2}")
        # Ties between pairs go to the lower token id; giving letters theirs in advance makes this repeatable.
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, special_tokens=letters,
                                      end_of_word_suffix="</w>", show_progress=False)
        bpe = byte_level(BPE(end_of_word_suffix="</w>"))
        bpe.train_from_iterator(reports, trainer)
        model = json.loads(bpe.to_str())["model"]
        vocab, merges = model["vocab"], [(a, b) for a, b in model["merges"]]
        return cls(vocab | {BOS: len(vocab), EOS: len(vocab) + 1}, merges, max_length)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Tokenizer":
        """Read vocab.json and merges.txt, or the tokenizer.json that transformers 5 writes instead. Tokens
        added to CLIP's (by textual inversion, say) are refused by name, and so is what would give other ids.
        """
        folder = Path(folder)
        apart = (folder / "vocab.json").is_file()
        whole = read_json(folder / "tokenizer.json", missing={} if apart else None)
        config = read_json(folder / "tokenizer_config.json", missing={})
        if "added_tokens_decoder" not in config:   # older folders: the map counts (SD 2: its padding is "!")
            config |= read_json(folder / "special_tokens_map.json", missing={})
        with naming(f"{folder}: not a CLIP tokenizer: ", ValueError, TypeError, AttributeError, KeyError):
            vocab, merges = (whole.get("model", {}).get(key, {}) for key in ("vocab", "merges"))
            merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
            if apart:
                lines, both = read_text(folder / "merges.txt").split("\n"), (vocab, merges)
                vocab = read_json(folder / "vocab.json")
                merges = [tuple(line.split()) for line in lines if line.strip() and line[:8] != "#version"]
                require("model" not in whole or both == (vocab, merges), "tokenizer.json", "another",
                        "vocabulary and merges of vocab.json and merges.txt")
            for i, pair in enumerate(merges):
                require(len(pair) == 2 and isinstance(pair[0], str), f"merge {i}", pair, "two tokens")
            pad = content(config.get("pad_token") or EOS)
            max_length = config.get("model_max_length", config.get("max_len"))
            for token in added_tokens(config, whole, read_json(folder / "added_tokens.json", missing={})):
                if token not in (BOS, EOS, pad):
                    raise ValueError(f"the added token {token!r} is not supported")
            for number, token in (config.get("added_tokens_decoder") or {}).items():
                own = vocab.get(content(token), int(number))
                require(own == int(number), f"the id of {content(token)!r}", number, f"{own}, as vocab.json")
            if max_length is None or type(max_length) in (int, float) and max_length > 1e20:
                max_length = 77                        # "not set" is written as 10^30
            require(is_count(max_length) and max_length > 1, "model_max_length", max_length, "2 or more")
            return cls(vocab, merges, max_length, pad)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write vocab.json, merges.txt and the two small files, as transformers' CLIPTokenizer reads them."""
        folder = Path(folder)
        special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": self.pad}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length}
        merges = "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in self.merges)])
        write_text(folder / "vocab.json", json.dumps(self.vocab, ensure_ascii=False))
        write_text(folder / "merges.txt", merges + "\n")
        write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(config | special, indent=2) + "\n")


def content(token: str | dict) -> str:
    """What a token of a tokenizer's files is: its text, which may stand among its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    require(isinstance(text, str), "a token", token, "text, or an object with its content")
    require(text == token or not token.get("single_word"), f"single_word of {text!r}", True, "false")
    return text


def added_tokens(config: dict, whole: dict, more: dict) -> list[str]:
    """All tokens that tokenizer_config.json, tokenizer.json and added_tokens.json put beside the vocabulary.
    Raises ValueError for a setting that changes ids and is not CLIP's."""
    for key, only in SETTINGS.items():
        value = content(config.get(key) or only) if key.endswith("_token") else config.get(key) or only
        require(value == only, key, value, repr(only))
    for key in ("padding", "truncation"):
        side = (whole.get(key) or {}).get("direction", "Right")
        require(side == "Right", f"{key} of tokenizer.json", side, "Right")
    tokens = [*(config.get("added_tokens_decoder") or {}).values(), *(whole.get("added_tokens") or []), *more]
    for key, value in config.items():
        if key in ("additional_special_tokens", "extra_special_tokens"):
            tokens += value.values() if isinstance(value, dict) else value or []
        elif key.endswith("_token") and key != "pad_token" and isinstance(value, (str, dict)):   # mask_token
            tokens.append(value)
    return [content(token) for token in tokens]


def byte_level(model: BPE) -> tokenizers.Tokenizer:
    """CLIP's text preparation in front of a BPE model."""
    bpe = tokenizers.Tokenizer(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),   # keeps the matches
         pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return bpe


# -------------------------------------------------------------------------------- text transformer


@dataclass(frozen=True)
class TextConfig:
    """Names and defaults equal those of transformers' CLIP text_encoder/config.json."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77      # longest text in tokens, BOS and EOS included
    hidden_act: str = "quick_gelu"         # or gelu
    layer_norm_eps: float = 1e-5
    causal = True                          # no field: pretrained/vit.py has the same layers without the mask

    @classmethod
    def tiny(cls):
        return cls(vocab_size=1024, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
                   num_attention_heads=4, max_position_embeddings=64)

    @classmethod
    def small(cls):
        return cls(vocab_size=4096, num_hidden_layers=6, max_position_embeddings=128)

    @classmethod
    def sd15(cls):
        return cls(hidden_size=768, intermediate_size=3072, num_attention_heads=12)

    @classmethod
    def sd21(cls):
        # 23 of OpenCLIP-H's 24 layers: its last but one layer is the condition.
        return cls(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                   hidden_act="gelu")

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name == "hidden_act":
                require(value in ("quick_gelu", "gelu"), name, value, "quick_gelu or gelu")
            elif name == "layer_norm_eps":
                require(isinstance(value, float) and value > 0, name, value, "a positive number")
            else:
                require(is_count(value), name, value, "a positive integer")
        require(self.hidden_size % self.num_attention_heads == 0, "num_attention_heads",
                self.num_attention_heads, f"a divisor of hidden_size = {self.hidden_size}")


# Keys of config.json that change the computation, with the only value this file computes.
FIXED = {"model_type": "clip_text_model", "attention_dropout": 0.0, "use_attention_mask": False}


class Embeddings(nn.Module):
    """(ids: b n) -> b n d: what the token is plus where it stands."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[:ids.shape[1]]


class Attention(nn.Module):
    """(x: b n d) -> b n d; a token of a text looks at itself and at earlier ones: later ones never change it.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.causal = config.num_attention_heads, config.causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(proj(x), "b n (heads d) -> b heads n d", heads=self.heads)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(rearrange(out, "b heads n d -> b n (heads d)"))


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Layer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: TextConfig, kind: type = Layer):
        super().__init__()
        self.layers = nn.ModuleList([kind(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextModel(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """(ids: b n) -> b n d, after the final layer norm"""
        longest = self.config.max_position_embeddings
        assert ids.shape[1] <= longest, f"{ids.shape[1]} tokens, but only {longest} positions"
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "CLIPTextModel":
        """Read a text_encoder/ folder, any float type, as float32; ValueError names file and key."""
        config = read_config(folder, TextConfig, FIXED)
        weights, path = read_weights(folder, "model")
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
        weights.pop("embeddings.position_ids", None)   # 0, 1, 2, ...: a buffer of old versions
        return load_strict(lambda: cls(config), weights, path)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, with the prefix: every transformers version reads that."""
        config = {"architectures": ["CLIPTextModel"], **FIXED, **asdict(self.config),
                  "bos_token_id": self.config.vocab_size - 2, "eos_token_id": self.config.vocab_size - 1}
        weights = {f"text_model.{key}": value for key, value in self.state_dict().items()}
        write_folder(folder, weights, "model", config)


# -------------------------------------------------------------------------------- contrastive pretraining


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> tuple[Tensor, dict]:
    """(a: b d, b: b d, unit vectors of images and their reports) -> symmetric InfoNCE over all ranks' pairs,
    as in CLIP, and how often an image's own report is the nearest"""
    a, b = gather_from_ranks(a), gather_from_ranks(b)
    logits = log_scale.exp().clamp(max=100) * a @ b.T
    own = torch.arange(len(a), device=a.device)
    top1 = (logits.argmax(1) == own).float().mean()
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, {"top1": top1}


class Contrast(nn.Module):
    """Contrastive pretraining of the text encoder against latents, as CLIP's in Stable Diffusion,
    in miniature.

    Diffusion alone teaches a text encoder from scratch very slowly; one that already tells reports apart by
    their images is followed within minutes. The report's summary is the mean over its padded end, which a
    causal transformer lets see every word, and which cross-attention can read.
    """

    def __init__(self, text: CLIPTextModel, channels: int, dim: int):
        super().__init__()
        self.text = text
        self.image = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 128, 3, 2, 1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, dim))
        self.report = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, latents: Tensor, ids: Tensor) -> tuple[Tensor, dict]:
        """(latents: b c h w, ids: b n) -> symmetric InfoNCE"""
        end = (ids == ids[:, -1:]).float()[..., None]   # b n 1: the closing token and its padding
        summary = (self.text(ids) * end).sum(1) / end.sum(1)
        image, report = F.normalize(self.image(latents), dim=-1), F.normalize(self.report(summary), dim=-1)
        return info_nce(image, report, self.log_scale)
