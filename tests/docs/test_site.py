"""The built site: no warning, no network, every link and anchor leads somewhere, search, and phones."""

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from helpers import ROOT

PHONE, DESKTOP = 390, 1400

WITHOUT_NETWORK = """
import socket, sys
def refuse(*arguments): raise OSError("the documentation must build without a network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from mkdocs.__main__ import cli
cli(sys.argv[1:])
"""

pytest.importorskip("mkdocs", reason="mkdocs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors and without a network."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-c", WITHOUT_NETWORK, "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@dataclass
class Page(HTMLParser):
    """What a built page refers to."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def __hash__(self):
        return hash(self.path)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("prev", "next"):
            self.assets.append(found["href"])
        elif "src" in found:
            self.assets.append(found["src"])


@pytest.fixture(scope="module")
def built(site) -> dict[Path, Page]:
    """Every page by its path."""
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_and_anchor_leads_somewhere(built):
    broken = []
    for page in built.values():
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                assert target.startswith(("https://", "http://", "mailto:", "javascript:")), link
                continue
            path = (page.path.parent / unquote(target)).resolve() if target else page.path
            if page.path.name == "404.html":
                path = page.path.parent / unquote(target).lstrip("/")
            if path.is_dir():
                path /= "index.html"
            known = built[path].ids if path in built else None
            if not path.exists() or (anchor and known is not None and unquote(anchor) not in known):
                broken.append(f"{page.path.name}: {link}")
    assert broken == []


def test_every_asset_is_the_sites_own(site, built):
    for page in built.values():
        for asset in page.assets:
            assert not re.match(r"([a-z]+:)?//", asset), f"{page.path}: {asset}"
            target = asset.partition("?")[0].partition("#")[0]
            base = page.path.parent if page.path.name != "404.html" else site
            assert (base / unquote(target).lstrip("/")).exists(), f"{page.path}: {asset}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.fixture(scope="module")
def served(site) -> Iterator[str]:
    """The site's address on a port of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def show(browser, width: int, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})


@pytest.mark.parametrize("by", ["server", "folder"])
def test_search_finds_without_a_network(by, site, browser, request):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, DESKTOP)
    base = request.getfixturevalue("served") if by == "server" else site.as_uri()
    browser.get(f"{base}/index.html")
    browser.get_log("browser")
    browser.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("error feedback")
    results = WebDriverWait(browser, 20).until(
        lambda opened: opened.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    assert any("experiment.html" in one.get_attribute("href") for one in results)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_pages_fit_a_phone(served, site, built, browser):
    show(browser, PHONE)
    too_wide = []
    for path in built:
        browser.get(f"{served}/{path.relative_to(site)}")
        if browser.execute_script("return document.documentElement.scrollWidth") > PHONE:
            too_wide.append(path.name)
    assert too_wide == []


def test_light_and_dark(served, browser):
    colour = "return getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        show(browser, DESKTOP, scheme)
        browser.get(f"{served}/index.html")
        browser.execute_script("localStorage.clear()")
        browser.get(f"{served}/index.html")
        seen.append(browser.execute_script(colour))
    assert seen[0] == "rgb(255, 255, 255)"
    assert seen[1] != seen[0]
