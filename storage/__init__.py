"""How things lie on disk: files.py, JSON and tensors; weights.py, pretrained folders; pictures.py, PNGs.
And command.py: how every command prints and ends."""
