"""Serves a folder as a bucket serves a web page: with ranges and for pages from elsewhere."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of the folder, and the paths that were answered, until the block ends."""
    answered: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = folder / self.path.split("?")[0].lstrip("/")
            content = path.read_bytes() if path.is_file() else None
            first, last, status = 0, len(content or b""), 200 if content is not None else 404
            given = self.headers.get("Range", "")
            if content is not None and given.startswith("bytes="):
                begin, _, end = given.removeprefix("bytes=").partition("-")
                first = int(begin) if begin else max(0, len(content) - int(end))
                last = min(len(content), int(end) + 1) if begin and end else len(content)
                status = 206
            self.send_response(status)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
            self.send_header("Content-Length", str(last - first))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content or b'')}")
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content[first:last])
                answered.append(self.path)

        def log_message(self, *given: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answered
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
