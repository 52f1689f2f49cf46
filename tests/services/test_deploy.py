"""The import path of Serve's configuration files: the same application as `petavoxel serve`, from the same options."""

from __future__ import annotations

import pytest

from models.catalog import Model
from models.errors import InvalidConfig

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # in ray.serve.schema


def test_serve_finds_and_calls_the_builder(model: Model) -> None:
    from ray._common.utils import import_attr
    from ray.serve import Application
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    builder = import_attr("services.deploy:build")
    built = call_user_app_builder_with_args_if_necessary(builder, {"models": [str(model.folder)], "replicas": 2})
    assert isinstance(built, Application)


def test_unknown_and_impossible_options_are_refused() -> None:
    from services.deploy import build

    with pytest.raises(InvalidConfig, match="modles"):
        build({"modles": ["fib25-affinity"]})
    with pytest.raises(InvalidConfig, match="max_bytes"):
        build({"max_bytes": 0})
