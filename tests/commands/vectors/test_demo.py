"""The page of `imp_ds demo`: what it finds, what it refuses, and how it looks in a browser."""

import http.client
import json
import re
import shutil
import subprocess
import threading

import pytest

from imp_ds.commands.vectors.demo_command import make_server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def server(place, embedded):
    with make_server(place[0] / "model", embedded, port=0, top=3) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """A request: (status, headers, body)."""

    def request(method: str, path: str, body: bytes | None = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    return request


def test_the_nearest_of_each_kind(place, server, ask):
    assert server.server_address[0] == "127.0.0.1"
    status, _, content = ask("POST", "/search/text", b"a red square")
    found = json.loads(content)["found"]
    assert status == 200 and {kind: len(hits) for kind, hits in found.items()} == {"audio": 1, "image": 3, "text": 1, "video": 1}
    # the file of that text itself
    assert found["text"][0]["id"] == "words.txt" and found["text"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    status, _, content = ask("POST", "/search/file?name=dropped.png", (place[0] / "files" / "p3.png").read_bytes())
    answer = json.loads(content)
    assert answer["kind"] == "image" and "audio" not in answer["found"]  # no task compares them
    hit = answer["found"]["image"][0]
    assert hit["id"] == "p3.png" and hit["playable"]
    status, headers, content = ask("GET", f"/item/{hit['row']}")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert content == (place[0] / "files" / "p3.png").read_bytes()


def test_what_is_refused(ask):
    for path in ("/item/../../etc/passwd", "/item/999", "/item/-1", "/item/8", "/item/", "/etc/passwd", "/item/%2e%2e/x"):
        assert ask("GET", path)[0] == 404, path  # row 8 is a text
    assert ask("GET", "/", Host="elsewhere.example")[0] == 403
    assert ask("POST", "/search/text", b"red", Origin="http://elsewhere.example")[0] == 403
    assert ask("POST", "/search/text", b"x" * 10_001)[0] == 413
    assert ask("POST", "/search/file", b"", Content_Length=str(65 << 20))[0] == 413
    assert ask("POST", "/search/else", b"")[0] == 404
    for path, content in (("text", b"\xff"), ("text", b" "), ("file?name=a.png", b"no picture"), ("file?name=a.bin", b"what")):
        status, _, answer = ask("POST", f"/search/{path}", content)
        assert status == 400 and json.loads(answer)["error"], path
    assert ask("POST", "/search/text", b"red")[0] == 200  # it goes on


def test_the_page_brings_nothing_from_elsewhere(ask):
    status, headers, page = ask("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert sources and all(ask("GET", source)[0] == 200 for source in sources)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at the page with")
def test_it_shows_what_is_near_in_a_browser(server, tmp_path):
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"http://127.0.0.1:{server.server_port}/#a%20red%20square"
    page = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=8000", "--dump-dom", address], check=True, capture_output=True, timeout=120,
        text=True,
    ).stdout  # fmt: skip
    assert page.count('class="hit"') == 6 and "words.txt" in page
    pictures = sum(f"p{number}.png</small>" in page for number in range(7))  # one more has no ending: not shown as a picture
    assert [page.count(f"<{medium} ") for medium in ("img", "video", "audio")] == [pictures, 1, 1]
