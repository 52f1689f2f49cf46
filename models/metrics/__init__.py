"""Scores of a segmentation against truth (numpy, without torch)."""
