"""One thread for all tests: their tensors are too small to share, and more threads only wait for each other."""

import torch

torch.set_num_threads(1)
