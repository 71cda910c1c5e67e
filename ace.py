"""Adaptive condition embeddings (ACE): K learnable vectors c_s appended to the prompt embeddings c_p
(CXRL, Fig. 2).

The policy denoises under [c_p ; c_s], the anchor under c_p alone. c_s belongs to the policy: it is trained by
the same policy gradient as the denoiser and kept at inference. The UNet needs no change; cross-attention sees
n + K tokens.

Two decisions that the paper leaves open:

* Start. Appended vectors are never inert: even zero vectors have key 0, hence logit 0, and take softmax mass
  from the prompt. The mean of the empty prompt's embeddings is nearest to the anchor of all starts tried
  (docs/experiments.md). A little noise tells the K vectors apart: equal ones would get equal gradients, and
  stay one vector for ever.
* Guidance. c_s is appended in both branches, [c_p ; c_s] and [c_empty ; c_s]. What guidance amplifies is the
  difference of the branches, so it stays a matter of the report alone, while c_s acts on every image with
  weight 1.
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class ACEConfig:
    tokens: int = 4   # K; the paper's figure draws 2, its value is not published
    dim: int = 768    # width d of the prompt embeddings


class ACE(nn.Module):
    """forward(context: b n d) -> b n+K d, the prompt embeddings followed by c_s."""

    def __init__(self, config: ACEConfig):
        super().__init__()
        self.config = config
        self.c_s = nn.Parameter(torch.zeros(config.tokens, config.dim))

    @classmethod
    def start(cls, tokens: int, empty: Tensor) -> "ACE":
        """c_s: mean of the empty prompt's embeddings, empty: n d, with noise of a tenth of their spread."""
        ace = cls(ACEConfig(tokens, empty.shape[-1]))
        noise = torch.randn(ace.c_s.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ace.c_s.copy_(empty.mean(0).cpu() + 0.1 * empty.std().cpu() * noise)
        return ace.to(empty.device)

    def forward(self, context: Tensor) -> Tensor:
        return torch.cat([context, self.c_s.expand(len(context), -1, -1)], dim=1)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ACE":
        try:
            config = ACEConfig(**json.loads((Path(folder) / "config.json").read_text()))
            ace = cls(config)
            ace.load_state_dict(load_file(Path(folder) / "ace.safetensors"))
        except Exception as error:
            # missing file, bad JSON, truncated or foreign weights: one message for all
            message = f"{folder}: not an ACE folder (config.json + ace.safetensors): {error}"
            raise ValueError(message) from error
        return ace

    def save_pretrained(self, folder: Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"c_s": self.c_s.detach().cpu().contiguous()}, folder / "ace.safetensors.tmp")
        except SafetensorError as error:   # a full disk
            raise OSError(f"{folder}: cannot be written: {error}") from error
        (folder / "ace.safetensors.tmp").replace(folder / "ace.safetensors")
        (folder / "config.json.tmp").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        (folder / "config.json.tmp").replace(folder / "config.json")
