"""What every test shares: one thread, so that a run takes one core and adds numbers in one order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for processes that tests start

import torch

torch.set_num_threads(1)
