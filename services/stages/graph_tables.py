"""Region graphs as Parquet tables."""

from __future__ import annotations

from dataclasses import fields

from infra.objects import Folder
from infra.written import Written
from models.segmentation.region_graph import RegionGraph


def write_graph(folder: Folder, name: str, graph: RegionGraph) -> Written:
    """Store a region graph, a column per field."""
    return folder.write_table(name, {field.name: getattr(graph, field.name) for field in fields(RegionGraph)})


def read_graph(folder: Folder, name: str) -> RegionGraph:
    """Read what `write_graph` wrote."""
    table = folder.read_table(name)
    return RegionGraph(**{field.name: table[field.name] for field in fields(RegionGraph)})
