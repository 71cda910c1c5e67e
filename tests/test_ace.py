"""ace.py: appended condition vectors."""
import pytest
import torch

from ace import ACE, ACEConfig


def test_vectors_are_appended_and_the_prompt_is_untouched():
    """[c_p ; c_s]: n tokens become n + K, the first n unchanged, the last K the same for every prompt."""
    ace, context = ACE.start(3, torch.randn(5, 8)), torch.randn(2, 5, 8)
    out = ace(context)
    assert out.shape == (2, 8, 8) and torch.equal(out[:, :5], context) and torch.equal(out[0, 5:], out[1, 5:])


def test_start_is_near_the_empty_prompts_mean_and_no_two_vectors_are_equal():
    """c_s starts around the mean of the empty prompt's embeddings; equal vectors would stay equal."""
    empty = 3 * torch.randn(5, 8) + 1
    c_s = ACE.start(200, empty).c_s.detach()
    assert torch.allclose(c_s.mean(0), empty.mean(0), atol=0.2)
    assert (c_s - empty.mean(0)).std().item() == pytest.approx(0.1 * empty.std().item(), rel=0.1)
    assert torch.equal(c_s, ACE.start(200, empty).c_s)


def test_gradient_reaches_the_vectors():
    """c_s is a policy parameter: a loss on any appended token moves it."""
    ace = ACE.start(2, torch.randn(5, 8))
    ace(torch.randn(4, 5, 8)).square().sum().backward()
    assert ace.c_s.grad.abs().min() > 0


def test_folder_round_trip_and_damage(tmp_path):
    """What is saved is read back exactly; a truncated file gives one error that names the file."""
    ace = ACE.start(2, torch.randn(5, 8))
    ace.save_pretrained(tmp_path)
    assert torch.equal(ACE.from_pretrained(tmp_path).c_s, ace.c_s)
    assert ACE.from_pretrained(tmp_path).config == ACEConfig(2, 8)
    (tmp_path / "config.json").write_text('{"tokens": 3, "dim": 8}')
    with pytest.raises(ValueError, match="c_s has shape .2, 8., but config.json says .3, 8."):
        ACE.from_pretrained(tmp_path)
    path = tmp_path / "ace.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ace.safetensors: missing, truncated, damaged"):
        ACE.from_pretrained(tmp_path)
