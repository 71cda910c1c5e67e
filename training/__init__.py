"""What every stage of train.py shares: loop.py, the resumable loop, the run folder and torchrun's ranks."""
