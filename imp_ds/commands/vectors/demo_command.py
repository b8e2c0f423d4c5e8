"""`imp_ds demo MODEL OUT.parquet`: a local page that shows, of each kind, the items nearest to a text or a dropped file.

It listens on the loopback address alone. Another page that is open in the same browser cannot use it: requests under another
name of this machine, or from another origin, are refused. Files are served by the number of their row, never by name.
"""

import json
import mimetypes
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq

from imp_ds.commands.vectors.demo_page import PAGE, SCRIPT, STYLE
from imp_ds.commands.vectors.encoder import Encoder
from imp_ds.commands.vectors.items import Item
from imp_ds.commands.vectors.search_command import Hit, check_vectors, file_item, nearest, query_vector
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.modality import TEXT

HOST = "127.0.0.1"
_MOST_BYTES = {"/search/text": 10_000, "/search/file": 64 << 20}
_MOST_SERVED = 256 << 20
_MOST_SHOWN = 1000  # characters of a text
_PLAYED = ("image", "video", "audio")
_FILES = {"/": ("text/html", PAGE), "/demo.css": ("text/css", STYLE), "/demo.js": ("text/javascript", SCRIPT)}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'"


def demo(model_path: Path, vectors: Path, port: int = 8000, top: int = 8) -> None:
    """Serve the page until it is interrupted. Raises UserError as `search`, and for a port that is taken."""
    server = make_server(model_path, vectors, port, top)
    print(f"http://{HOST}:{server.server_port} shows what is nearest in {vectors}; Ctrl-C ends it", flush=True)
    with server:
        server.serve_forever()


def make_server(model_path: Path, vectors: Path, port: int, top: int) -> ThreadingHTTPServer:
    """The server, bound to its port; 0: to a free one."""
    found = _Searched(model_path, vectors, top)

    class Handler(_Handler):
        searched = found

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            "the page cannot be served there", got=f"port {port}: {error}", fix="--port with another number"
        ) from None


class _Searched:
    """A model and a file of vectors, which answer one question at a time."""

    def __init__(self, model_path: Path, vectors: Path, top: int):
        self.encoder = Encoder(model_path, check_vectors(model_path, vectors)["task"])
        self.vectors, self.top, self._lock = vectors, top, threading.Lock()
        table = pq.read_table(vectors, columns=["kind", "path"])
        self.kinds, self._paths = table["kind"].to_pylist(), table["path"].to_pylist()

    def answer(self, item: Item) -> dict:
        """The nearest items of each kind that the model compares with it. Raises UserError."""
        with self._lock:
            vector_D, found = query_vector(self.encoder, item), {}
            for kind in sorted(set(self.kinds)):
                if self.encoder.scale(item.modality, Item("", kind, None).modality) is not None:
                    hits = nearest(self.encoder, self.vectors, item, vector_D, self.top, [kind])
                    found[kind] = [self._shown(hit) for hit in hits]
        return {"kind": item.kind, "found": found}

    def file(self, row: int) -> tuple[str, bytes] | None:
        """The type and the content of a row's medium; None where it is no file of this machine that a browser plays."""
        if (kind := self._played_as(row)) is None:
            return None
        try:
            with Media(self._paths[row], path=Path(self._paths[row])).open() as file:
                content = file.read(_MOST_SERVED + 1)
        except BadSample:
            return None
        return (kind, content) if len(content) <= _MOST_SERVED else None

    def _played_as(self, row: int) -> str | None:
        """The MIME type of a row's file, where its name has one of the row's kind."""
        if not 0 <= row < len(self._paths) or (path := self._paths[row]) is None or not Path(path).is_file():
            return None
        kind = mimetypes.guess_type(path)[0] or ""
        played = Path(path).is_absolute() and self.kinds[row] in _PLAYED and kind.startswith(f"{self.kinds[row]}/")
        return kind if played and kind != "image/svg+xml" else None

    def _shown(self, hit: Hit) -> dict:
        columns = {name: (hit.columns[name] or "")[:_MOST_SHOWN] for name in ("id", "kind", "text")}
        return {"row": hit.row, "cosine": hit.cosine, "playable": self._played_as(hit.row) is not None, **columns}


class _Handler(BaseHTTPRequestHandler):
    """One request. `searched` is what answers it."""

    searched: _Searched
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self):
        if not self._is_ours():
            return
        path = urlsplit(self.path).path
        if path in _FILES:
            kind, content = _FILES[path]
            self._send(200, f"{kind}; charset=utf-8", content.encode())
            return
        row = path.removeprefix("/item/")
        found = self.searched.file(int(row)) if path != row and row.isascii() and row.isdigit() and len(row) < 12 else None
        self._send(*((404, "text/plain", b"there is no such item") if found is None else (200, *found)))

    def do_POST(self):
        if not self._is_ours():
            return
        asked = urlsplit(self.path)
        length = self.headers.get("Content-Length", "")
        if asked.path not in _MOST_BYTES:
            self._answer(404, {"error": "there is no such search"})
        elif not (length.isascii() and length.isdigit()):
            self._answer(411, {"error": "the length of the request is not given"})
        elif int(length) > (most := _MOST_BYTES[asked.path]):
            self._answer(413, {"error": f"too large: more than {most} bytes"})
        else:
            name = parse_qs(asked.query).get("name", ["file"])[0]
            self._search(asked.path, name, self.rfile.read(int(length)))

    def _search(self, path: str, name: str, content: bytes) -> None:
        try:
            if path.endswith("text"):
                text = content.decode("utf-8")
                item = Item("query", TEXT, [text], text=text)
            else:
                item = file_item(Media(Path(name).name, data=content))
            self._answer(200, self.searched.answer(item))
        except ValueError as error:  # a UserError, or a text that is not UTF-8
            self._answer(400, {"error": str(error)})

    def _is_ours(self) -> bool:
        """Whether the page itself asks, under the address that it was given; else the request is refused."""
        own = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin.removeprefix("http://") in own):
            return True
        self._answer(403, {"error": "asked from elsewhere"})
        return False

    def _answer(self, status: int, value: dict) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(content))), ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"), ("Cache-Control", "no-store"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Nothing: the terminal stays as it is."""
