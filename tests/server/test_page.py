"""The page at /: its files over HTTP. What it does in a browser: tests/page_in_browser.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from support.http_requests import Reply, get, send

from llama_cffi import LlamaPool
from llama_cffi.errors import ValidationError
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.settings import Settings

_HTML = re.compile(r'\b(?:href|src)="([^"]+)"')
_OTHER = re.compile(r"""^(?:import|export)\b[^;]*"([^"]+)";$|url\(["']?([^"')]+)""", re.M)


@pytest.fixture(scope="module")
def files(server: HttpServer) -> dict[str, Reply]:
    """Every file that the page loads, by path, found from `/` on."""
    found: dict[str, Reply] = {}
    wanted = ["/"]
    while wanted:
        path = wanted.pop()
        if path not in found:
            found[path] = get(server.url + path)
            pattern = _HTML if path == "/" else _OTHER
            for match in pattern.finditer(found[path].body.decode()):
                reference = next(filter(None, match.groups()))
                if not reference.startswith("#"):  # a part of the same page
                    wanted.append(urljoin(path, reference))
    return found


@pytest.fixture(scope="module")
def guarded(pool: LlamaPool) -> Iterator[HttpServer]:
    with pool.serve(api_keys=["secret"]) as server:
        yield server


def test_all_that_the_page_refers_to_is_there(files: dict[str, Reply]) -> None:
    assert {"/", "/page/app.js", "/page/style.css", "/page/icon.svg", "/page/api.js"} < files.keys()
    assert {path: reply.status for path, reply in files.items()} == dict.fromkeys(files, 200)


def test_types_are_those_that_browsers_require(files: dict[str, Reply]) -> None:
    types = {
        "/": "text/html",
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
    }
    for path, reply in files.items():
        assert reply.headers["content-type"].split(";")[0] == types[path[path.rfind(".") :]], path
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_scripts_styles_and_connections_are_this_servers_only(files: dict[str, Reply]) -> None:
    for reply in files.values():
        policy = dict(
            part.strip().split(" ", 1)
            for part in reply.headers["content-security-policy"].split(";")
        )
        for name in ("script-src", "style-src", "img-src", "connect-src"):
            assert policy.pop(name) == "'self'"
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert set(policy.values()) == {"'none'"}
        assert {"default-src", "base-uri", "form-action", "frame-ancestors"} < policy.keys()


def test_nothing_comes_from_elsewhere(files: dict[str, Reply]) -> None:
    for path, reply in files.items():
        text = reply.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"\b(https?|wss?):?//\w", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", text)


def test_html_has_no_inline_script_or_style(files: dict[str, Reply]) -> None:
    html = files["/"].body.decode()
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.S) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)


def test_every_field_has_a_label_and_every_button_a_name(files: dict[str, Reply]) -> None:
    html = files["/"].body.decode()
    labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', html))
    for field in re.findall(r"<(?:input|select|textarea)\b[^>]*>", html):
        name = re.search(r'\bid="([^"]+)"', field)
        in_label = re.search(r"<label[^>]*>" + re.escape(field), html)
        assert in_label or (name and name[1] in labelled), field
    for attributes, content in re.findall(r"<button([^>]*)>(.*?)</button>", html, re.S):
        is_named_later = 'id="theme"' in attributes  # after what is chosen
        assert "aria-label=" in attributes or is_named_later or re.sub("<[^>]*>", "", content)


def test_ids_are_unique_and_icons_exist(files: dict[str, Reply]) -> None:
    html = files["/"].body.decode()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#(icon-[a-z]+)"', html))
    for reply in files.values():
        used |= {
            f"icon-{name}" for name in re.findall(r'icon(?:Button)?\("(\w+)"', reply.body.decode())
        }
    assert used <= {*ids}
    assert len(used) > 10


def test_browsers_keep_files_until_they_change(server: HttpServer, files: dict[str, Reply]) -> None:
    for path, reply in files.items():
        etag = reply.headers["etag"]
        assert re.fullmatch(r'"\w+"', etag)
        assert reply.headers["cache-control"] == "no-cache"
        for known in (etag, f'"other", W/{etag}'):
            again = get(server.url + path, **{"if-none-match": known})
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        assert get(server.url + path, **{"if-none-match": '"other"'}).status == 200
    assert len({reply.headers["etag"] for reply in files.values()}) == len(files)


def test_a_head_request_tells_the_length(server: HttpServer, files: dict[str, Reply]) -> None:
    reply = send("HEAD", f"{server.url}/")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) == len(files["/"].body)


@pytest.mark.parametrize(
    "name", ["", "routes.py", "__init__.py", "..%2froutes.py", "%2e%2e/app.py"]
)
def test_other_files_are_not_served(server: HttpServer, name: str) -> None:
    reply = get(f"{server.url}/page/{name}")
    assert reply.status == 404
    assert reply.error["type"] == "not_found_error"


@pytest.mark.behaviour(
    "security: the page needs no key",
)
def test_the_page_needs_no_key(guarded: HttpServer, files: dict[str, Reply]) -> None:
    for path, reply in files.items():
        assert get(guarded.url + path).body == reply.body
    assert get(f"{guarded.url}/props").status == 401


@pytest.mark.behaviour(
    "basics: the page is 404 when it is off, and HTML when it is on",
)
def test_page_off(pool: LlamaPool) -> None:
    with pool.serve(page=False) as server:
        for path in ("/", "/page/app.js"):
            reply = get(server.url + path)
            assert reply.status == 404
            assert reply.error["message"] == f"GET {path} does not exist on this server"
    with pytest.raises(ValidationError, match="page"):
        Settings(page="no")  # type: ignore[arg-type]
