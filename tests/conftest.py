"""What every test shares: one thread, so that a run takes one core and adds numbers in one order; and Ctrl-C."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for processes that tests start

import torch

torch.set_num_threads(1)
# In the background of a shell SIGINT is ignored, under nohup SIGHUP, and programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
