"""What the stages of train.py share: options.py, flags; plan.py, --dry-run; loop.py,
how stages resume; latents.py, kept latents; ranks.py, torchrun."""
