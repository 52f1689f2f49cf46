from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import AccessDenied, InvalidInput
from services.endpoints.problems import Problem, descriptions
from services.endpoints.references import Prefixes


def test_nothing_is_allowed_by_default(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="--volumes"):
        Prefixes((), "--volumes").resolve(str(tmp_path / "a.zarr"))


def test_prefixes_end_at_slashes(tmp_path: Path) -> None:
    prefixes = Prefixes((f"{tmp_path}/data/", "gs://bucket/em", "s3://all"), "--volumes")
    for url in (f"{tmp_path}/data/a.zarr", "gs://bucket/em/a.zarr", "s3://all/b/c.zarr", "gs://bucket/em"):
        assert prefixes.resolve(url).endswith(url)
    assert prefixes.resolve(f"precomputed://{tmp_path}/data/a") == f"precomputed://{tmp_path}/data/a"
    assert prefixes.resolve(f"{tmp_path}/data/a.h5:/raw") == f"{tmp_path}/data/a.h5:/raw"
    for url in (
        f"{tmp_path}/database/a.zarr",
        "gs://bucket/emu/a.zarr",
        "gs://bucket/a.zarr",
        "s3://all2/a",
        "gs://all/a",
    ):
        with pytest.raises(AccessDenied, match="does not open"):
            prefixes.resolve(url)


def test_no_way_up_and_no_links_out(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path)
    (inside / "in").symlink_to(inside)
    (tmp_path / "alias").symlink_to(inside)
    prefixes = Prefixes((str(inside), "gs://bucket/em"), "--volumes")
    for url in (f"{inside}/../secret.npy", f"{inside}/out/secret.npy", "gs://bucket/em/../x", "gs://bucket/em/./x"):
        with pytest.raises(AccessDenied):
            prefixes.resolve(url)
    assert prefixes.resolve(f"{inside}/in/a.npy") == f"{inside}/a.npy"
    assert Prefixes((str(tmp_path / "alias"),), "").resolve(f"{inside}/a.npy") == f"{inside}/a.npy"


@pytest.mark.parametrize("url", ["a\nb.zarr", "a\0.npy", "x" * 3000, "http://host/a.zarr", ""])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidInput):
        Prefixes(("/",), "--volumes").resolve(url)


def test_problem_types_are_described() -> None:
    problem = Problem.of(AccessDenied("a:\n  b"))
    assert problem.document()["detail"] == "a: b"
    assert problem.document()["type"] == "/problems/access-denied"
    known = descriptions()
    assert known["access-denied"]["status"] == problem.status == 403
    assert {"payload-too-large", "overloaded", "deadline-exceeded", "invalid-model"} <= set(known)
    assert all(item["title"] for item in known.values())
