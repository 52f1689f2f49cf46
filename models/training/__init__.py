"""Samplers, augmentation, losses and the training loop (torch)."""
