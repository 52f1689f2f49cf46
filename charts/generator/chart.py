"""What is generated, by file; a test compares it with what is checked in."""

from __future__ import annotations

import json
from pathlib import Path

from charts.generator.dashboard import dashboard
from charts.generator.readme import readme
from charts.generator.schema import values_schema
from charts.generator.values import read_values

CHART = Path(__file__).parents[1] / "petavoxel"


def generated() -> dict[str, str]:
    """Texts of the generated files by their path below the chart's folder."""
    entries = read_values((CHART / "values.yaml").read_text())
    schema = values_schema(entries)
    examples = sorted((CHART / "examples").glob("*.yaml"))
    return {
        "values.schema.json": json.dumps(schema, indent=2) + "\n",
        "README.md": readme(entries, schema, {path.name: path.read_text() for path in examples}),
        "files/dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
    }
