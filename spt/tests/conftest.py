"""One torch thread: bit-exact comparisons hold for one thread count only."""

import torch

torch.set_num_threads(1)
