"""Lists of names come page by page, and whole."""

from pathlib import Path

import pytest

from infra.objects import Folder
from infra.volumes import stores
from infra.volumes.metering import metered


@pytest.mark.parametrize("bucket", ["gcs_bucket", "s3_bucket"])
def test_a_bucket_is_listed_in_pages(
    bucket: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LIST_PAGE", 3)
    folder = Folder(f"{request.getfixturevalue(bucket)}/stage")
    names = sorted(f"{number}_0_0.key.json" for number in range(8))
    for name in [*names, "below/0_0_0.key.json"]:
        folder.write(name, b"{}")
    with metered() as requests:
        assert sorted(folder.each_name()) == names
    assert requests["list"] == 3
    assert folder.names() == names
    assert (folder / "below").names() == ["0_0_0.key.json"]
    assert folder.names("nothing") == []


def test_a_folder_is_listed_without_its_folders(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "b.json").touch()
    (tmp_path / "a.json").touch()
    assert Folder(str(tmp_path)).names() == ["a.json", "b.json"]
    assert Folder(str(tmp_path)).names("nothing") == []
