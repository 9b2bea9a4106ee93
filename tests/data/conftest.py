"""A web server that serves parts of files, counts what it serves, and fails when it is told to."""

import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one piece: else each answer waits for an acknowledgement

    def do_GET(self):
        store = self.server.store
        if store.status != 200:
            self.send_error(store.status)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not store.gives_parts:
            super().do_GET()
            return
        try:
            whole = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return
        first, last = int(wanted[1]), int(wanted[2])
        part = whole[first : last + 1]
        store.served.append(len(part))
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self):
        if self.server.store.status != 200:
            self.send_error(self.server.store.status)
            return
        super().do_HEAD()

    def log_message(self, *_):
        pass


class Store:
    """What a test sees and changes of the server."""

    def __init__(self, url):
        self.url = url
        self.status = 200
        self.gives_parts = True
        self.served = []  # lengths of parts


@pytest.fixture
def web(tmp_path):
    """Serves tmp_path/web."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=str(folder))
    )
    server.daemon_threads = True
    server.store = Store(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.store
    server.shutdown()
    server.server_close()
    thread.join()
