"""The console's files: what was taken from others is what they published, and nothing is loaded from elsewhere."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from proxy.console import files

ROOT = Path(__file__).parents[4]
STATIC = ROOT / "proxy/console/static"
VENDOR = STATIC / "vendor"
OWN = sorted([*STATIC.glob("*.js"), *STATIC.glob("*.html"), *STATIC.glob("*.css")])


def test_what_is_vendored_is_what_its_list_says() -> None:
    """`SHA256SUMS` has each file of vendor/, by the checksum of the file in its package on the npm registry."""
    rows = [line.split() for line in (VENDOR / "SHA256SUMS").read_text().splitlines()]
    assert {name: digest for digest, name in rows} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name not in {"SHA256SUMS", "README.md"}
    }
    for name in ("preact", "htm", "uplot"):
        assert (VENDOR / f"{name}.LICENSE").exists()
        assert re.search(
            rf"`{name}\.js` \| {name}[^|]* [0-9]+\.[0-9.]+ \|", (VENDOR / "README.md").read_text(), re.IGNORECASE
        )


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_our_files_need_nothing_that_the_policy_of_content_forbids(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert not re.search(r"\b(eval|innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet\w+)\b", text)
    assert not re.search(r"<script>|<style|\bstyle=\"|\bon[a-z]+=\"", text)


@pytest.mark.parametrize("path", [path for path in OWN if path.suffix == ".js"], ids=lambda path: path.name)
def test_each_import_is_of_a_file_that_is_here(path: Path) -> None:
    found = re.findall(r'from "(\./[\w./]+)"', path.read_text())
    assert found or path.name == "api.js"
    assert [name for name in found if not (STATIC / name).exists()] == []


def test_all_files_are_served_by_their_urls_with_their_types() -> None:
    served = files.load()
    assert served["/console/"] == served["/console/index.html"]
    assert served["/console/app.js"].content_type == "text/javascript; charset=utf-8"
    assert served["/console/vendor/preact.js"].body == (VENDOR / "preact.js").read_bytes()
    assert not [url for url in served if "LICENSE" in url or "SUMS" in url]
    assert len({file.etag for file in served.values()}) == len(served) - 1


def test_the_files_travel_with_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["proxy.console"]
    there = {path for pattern in data for path in (ROOT / "proxy/console").glob(pattern) if path.is_file()}
    assert there == {path for path in STATIC.rglob("*") if path.is_file()}


def luminance(colour: str) -> float:
    """Relative luminance of a colour as #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    """Contrast of level AA: 4.5 for text, 3 for the edges of what can be typed into."""
    light, dark = re.findall(r":root \{(.*?)\}", (STATIC / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    pairs = [(text, back) for text in ("text", "muted") for back in ("back", "card")]
    pairs += [(kind, f"{kind}-soft") for kind in ("good", "warn", "bad", "accent")]
    pairs += [("accent-text", "accent"), ("accent", "card"), ("bad", "card"), ("card", "bad"), ("text", "accent-soft")]
    assert [pair for pair in pairs if contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    assert contrast(colours["control"], colours["card"]) >= 3
