"""Segmentation kernels (numpy and numba, without torch), written so that no result depends on the chunking."""
