"""Networks of others, to bring along: densenet.py, DenseNet-121; vit.py, CLIP's and DINOv2's transformers."""
