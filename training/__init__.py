"""What the stages of train.py share: options.py, flags; loop.py, how stages resume; ranks.py, torchrun."""
