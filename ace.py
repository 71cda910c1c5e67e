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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from storage.weights import is_count, load_strict, read_config, read_weights, require, write_folder


@dataclass(frozen=True)
class ACEConfig:
    tokens: int = 4   # K; the paper's figure draws 2, its value is not published
    dim: int = 768    # width d of the prompt embeddings

    def __post_init__(self):
        for name, value in asdict(self).items():
            require(is_count(value) and value < 2**16, name, value, "a positive integer below 65536")


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
    def from_pretrained(cls, folder: Path | str) -> "ACE":
        config = read_config(folder, ACEConfig, {})
        return load_strict(lambda: cls(config), *read_weights(folder, "ace"))

    def save_pretrained(self, folder: Path | str) -> None:
        write_folder(folder, self.state_dict(), "ace", asdict(self.config))
