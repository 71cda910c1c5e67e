"""ace.py: appended condition vectors."""
import pytest
import torch

from ace import ACE, ACEConfig


def test_vectors_are_appended_and_the_prompt_is_untouched():
    """[c_p ; c_s]: n tokens become n + K, the first n unchanged, the last K the same for every prompt."""
    ace, context = ACE.start(3, torch.randn(5, 8)), torch.randn(2, 5, 8)
    out = ace(context)
    assert out.shape == (2, 8, 8) and torch.equal(out[:, :5], context) and torch.equal(out[0, 5:], out[1, 5:])


def test_start_copies_the_padding_embedding():
    """c_s starts as copies of the empty prompt's last embedding, which cross-attention already knows."""
    empty = torch.randn(5, 8)
    assert torch.equal(ACE.start(2, empty).c_s, empty[-1].expand(2, 8))


def test_gradient_reaches_the_vectors():
    """c_s is a policy parameter: a loss on any appended token moves it."""
    ace = ACE.start(2, torch.randn(5, 8))
    ace(torch.randn(4, 5, 8)).square().sum().backward()
    assert ace.c_s.grad.abs().min() > 0


def test_folder_round_trip_and_damage(tmp_path):
    """What is saved is read back exactly; a truncated file gives one error that names the folder."""
    ace = ACE.start(2, torch.randn(5, 8))
    ace.save_pretrained(tmp_path)
    assert torch.equal(ACE.from_pretrained(tmp_path).c_s, ace.c_s)
    assert ACE.from_pretrained(tmp_path).config == ACEConfig(2, 8)
    path = tmp_path / "ace.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not an ACE folder"):
        ACE.from_pretrained(tmp_path)
