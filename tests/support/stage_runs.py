"""Runs the stages of a pipeline in this process, without Ray."""

from collections.abc import Iterable

import numpy as np

from services.pipelines.stage import Stage


def run_stages(stages: Iterable[Stage], rng: np.random.Generator) -> list[str]:
    """Each stage's chunks in random order, one of them twice; returns the names of the stages."""
    names = []
    for stage in stages:
        apply = stage.make(*stage.arguments)
        order = rng.permutation(len(stage.chunks))
        for number in [*order, order[0]]:
            apply(stage.chunks[number])
        names.append(stage.ledger.stage)
    return names
