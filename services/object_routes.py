"""Hands what lies below prefixes of disks and buckets to Neuroglancer's client, by ranges, from the server of its page.

The client reads zarr and precomputed by itself, every level of detail, if something answers like a bucket that is open
to the web. Here that is the server that the page came from, so one port is enough and credentials stay in this process.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import tornado.web

from infra.objects import Folder
from models.errors import PetavoxelError

logger = logging.getLogger(__name__)

THREADS = 16
"""Objects that are read at a time; most of the time is a bucket's."""

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def add_objects(application: tornado.web.Application, folders: Mapping[str, str]) -> str:
    """Let `application` answer for `folders` (name → URL of a prefix); returns the path below which the names lie.

    It has a random part, so that no other page in the browser can guess it.
    """
    path = f"/objects/{secrets.token_hex(16)}"
    held = {
        "folders": {name: Folder(url) for name, url in folders.items()},
        "threads": ThreadPoolExecutor(THREADS, thread_name_prefix="objects"),
    }
    application.add_handlers(".*", [(rf"{path}/([a-z]+)/(.+)", _Objects, held)])
    return path


class _Objects(tornado.web.RequestHandler):
    def initialize(self, folders: Mapping[str, Folder], threads: ThreadPoolExecutor) -> None:
        self._folders, self._threads = folders, threads

    async def get(self, layer: str, name: str) -> None:
        """Answer with an object, or a range of it."""
        folder, name = self._folders.get(layer), unquote(name)
        if folder is None or any(part in ("", ".", "..") for part in name.split("/")):
            self.set_status(404)
            return
        loop, asked = asyncio.get_running_loop(), self.request.headers.get("Range")
        try:
            status, headers, content = await loop.run_in_executor(self._threads, _answer, folder, name, asked)
        except PetavoxelError as error:
            logger.warning("%s", error)
            self.set_status(error.status)
            return
        self.set_status(status)
        for key, value in headers.items():
            self.set_header(key, value)
        self.set_header("Content-Type", "application/octet-stream")
        self.write(content)

    head: Any = get

    def compute_etag(self) -> None:
        """None: a digest of every chunk would cost more than it saves."""


def _answer(folder: Folder, name: str, asked: str | None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for an object, or for the range of it that `asked` names."""
    size = folder.size(name)
    if size is None:
        return 404, {}, b""
    found = None if asked is None else _RANGE.fullmatch(asked.strip())
    if found is None or not any(found.groups()):
        return 200, {"Accept-Ranges": "bytes"}, folder.read(name)
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return 416, {"Content-Range": f"bytes */{size}"}, b""
    content = folder.read_range(name, start, stop)
    return 206, {"Content-Range": f"bytes {start}-{start + len(content) - 1}/{size}"}, content
