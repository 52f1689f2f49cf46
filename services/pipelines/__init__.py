"""Stages in order, run over the chunks of a volume with Ray Data."""
