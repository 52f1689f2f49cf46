"""A self-contained HTML page: sections of text, tables and pictures; nothing is fetched when it is opened."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from models.errors import RuntimeUnavailable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e22; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; border-bottom: 1px solid #ddd; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr + tr td { border-top: 1px solid #eee; }
img, svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #6e727a; }
pre { background: #f6f7f8; padding: .8rem; overflow: auto; max-height: 30rem; }
"""


@dataclass
class Page:
    """A page that is being written, section by section."""

    title: str
    subtitle: str = ""
    parts: list[str] = field(default_factory=list)

    def section(self, heading: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{escape(heading)}</h2>")

    def text(self, words: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{escape(words)}</p>")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; numbers are aligned to the right."""
        cells = "".join(f"<th>{escape(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
        self.parts.append(f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>")

    def preformatted(self, words: str) -> None:
        """Text as it is, e.g. a configuration."""
        self.parts.append(f"<pre>{escape(words)}</pre>")

    def picture(self, content: bytes, caption: str, kind: str = "jpeg") -> None:
        """An image inside the page, with a caption that also stands in for it."""
        data = base64.b64encode(content).decode()
        self.parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def curves(self, title: str, axis: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> None:
        """A plot of named lines (name, x, y); raises `RuntimeUnavailable` without matplotlib."""

        def draw(axes: Any) -> None:
            for name, x, y in lines:
                axes.plot(x, y, label=name, marker="." if len(x) < 60 else None)
            axes.set(title=title, xlabel=axis)
            if len(lines) > 1:
                axes.legend()

        self.picture(plotted(draw), f"{title}: {', '.join(name for name, _, _ in lines)}", "png")

    def html(self) -> str:
        """The whole page."""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>\n"
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )


def plotted(draw: Callable[[Any], None]) -> bytes:
    """A PNG of one set of axes, 7 x 3.6 inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailable(f"plot: expected the package matplotlib to be installed ({error})") from error
    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    draw(figure.add_subplot())
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{escape(str(value))}</td>"
