"""Training: which tensors learn, one loop for pretraining and fine-tuning, and what the run says about itself."""
