"""`python -m charts.generator`, from the root of the repository."""

from __future__ import annotations

from charts.generator.chart import CHART, generated

if __name__ == "__main__":
    for name, text in generated().items():
        (CHART / name).write_text(text)
