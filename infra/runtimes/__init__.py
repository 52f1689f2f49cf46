"""Inference engines behind one `Session` protocol, one file each."""
