"""Training: which tensors learn, one loop for pretraining and fine-tuning, and what the run says about itself."""

import os

import torch

# Large tensors of a CPU in large pages: a small model's step spends 7 to 9 % of its time on getting small ones.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
if not torch.cuda.is_available():
    # DeepSpeed, where it is installed, would look for a GPU on import and say on stdout that it found none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
