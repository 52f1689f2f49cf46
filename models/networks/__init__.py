"""Torch modules of the network families, one file each."""
