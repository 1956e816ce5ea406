"""Training: which tensors learn, one loop for pretraining and fine-tuning, and what the run says about itself."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed, where it is installed, would look for a GPU on import and say on stdout that it found none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
