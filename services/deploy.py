"""What a Ray cluster imports to run the endpoints: the `import_path` of Serve's configuration files.

`petavoxel serve` and the Helm chart so start the same application from the same typed configuration; the chart's values
have it as `serve.config`, and `serve deploy` takes it as the application's `args`.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from services.endpoints.app import build_app
from services.endpoints.config import ServeConfig


def build(args: dict[str, Any]) -> serve.Application:
    """The application that `args`, the fields of a `ServeConfig`, describe; names it does not know are refused.

    `host` and `port` are not used: on a cluster they belong to Serve's `http_options`.

    Raises `InvalidConfig` for unknown or impossible values, and what `build_app` raises.
    """
    return build_app(ServeConfig.read(args))
