"""Objects over HTTP as the viewer's client asks for them: whole, by ranges, missing, and not outside the prefixes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web

from infra.objects import Folder
from services.object_routes import add_objects

CONTENT = bytes(range(256)) * 4


@contextmanager
def answering(folders: dict[str, str]) -> Iterator[httpx.Client]:
    """A client of an application that has the routes, in a thread."""
    application = tornado.web.Application(log_function=lambda _: None)
    path = add_objects(application, folders)
    (socket,) = tornado.netutil.bind_sockets(0, "127.0.0.1")
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = tornado.httpserver.HTTPServer(application)
        server.add_sockets([socket])
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(30)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}{path}") as client:
            yield client
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)


@pytest.mark.parametrize("place", ["disk", "gs", "s3"])
def test_objects_and_their_ranges(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "data")
    if place != "disk":
        url = request.getfixturevalue({"gs": "gcs_bucket", "s3": "s3_bucket"}[place])
    Folder(url).write("s0/c/0/a b", CONTENT)
    with answering({"segmentation": url}) as client:
        whole = client.get("segmentation/s0/c/0/a%20b")
        assert (whole.status_code, whole.content) == (200, CONTENT)
        for asked, start, stop in (
            ("0-9", 0, 10),
            ("1000-", 1000, 1024),
            ("-16", 1008, 1024),
            ("1020-2000", 1020, 1024),
        ):
            part = client.get("segmentation/s0/c/0/a b", headers={"Range": f"bytes={asked}"})
            assert (part.status_code, part.content) == (206, CONTENT[start:stop])
            assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/1024"
        assert client.get("segmentation/s0/c/0/a b", headers={"Range": "bytes=1024-"}).status_code == 416
        head = client.head("segmentation/s0/c/0/a b")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "1024", b"")
        for missing in ("segmentation/s0/c/0", "segmentation/s0/c/1", "image/s0/c/0/a b", "segmentation/"):
            assert client.get(missing).status_code == 404


def test_nothing_outside_is_reached(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("secret", b"outside")
    Folder(str(tmp_path / "data")).write("known", b"inside")
    with answering({"image": str(tmp_path / "data")}) as client:
        assert client.get("image/known").content == b"inside"
        for path in ("image/%2e%2e/secret", "image/..%2fsecret", "image//secret", f"image/{tmp_path}/secret"):
            assert client.get(path).status_code == 404, path
        other = f"{str(client.base_url).rstrip('/').rpartition('/')[0]}/{'0' * 32}/image/known"
        assert httpx.get(other).status_code == 404
