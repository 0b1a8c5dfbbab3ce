"""The page: what is served, what the policy allows, and the page itself in a headless Chromium where one is installed."""

import functools
import json
import re
import shutil

import pytest

from lithe import registry
from lithe.serve import page
from lithe.serve.engine import Engine
from tests.serve.http_live import Live, tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
URLS = re.compile(r"""https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|<style|style=|javascript:|\son\w+=""")


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    for path in page.FILES:
        text, kind = page.page(path)
        assert kind.startswith("text/") and not URLS.search(text.decode()), path
    html = page.page("/")[0].decode()
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.S) == [""]
    assert page.page("/other") is None
    assert "default-src 'none'" in page.POLICY and "unsafe" not in page.POLICY


def test_the_catalogue_has_every_method_with_its_figures():
    told = page.methods()
    assert [m["name"] for m in told] == [e.name for e in registry.entries()]
    assert json.loads(json.dumps(told)) == told
    for method in told:
        assert method["summary"] and (method["row"] is None) == (method["status"] == "baseline")
    if page.LEDGER.is_file():
        measured = [m for m in told if m["measured"]]
        assert len(measured) > 10 and all(m["measured"]["speed"] > 0 for m in measured)


@functools.cache
def server():
    return Live(Engine(tiny(), sequences=8, queue=64), pages=page.routes)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()
    server().close()


@pytest.fixture
def tab(browser):
    made = browser.new_page(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(60_000)
    made.faults, made.asked = [], []
    made.on("pageerror", lambda fault: made.faults.append(str(fault)))
    made.on("console", lambda said: made.faults.append(said.text) if said.type == "error" else None)
    made.on("request", lambda request: made.asked.append(request.url))
    made.goto(server().url)
    made.wait_for_selector("#methods li", state="attached")
    yield made
    assert all(url.startswith((server().url, "data:")) for url in made.asked), "the page asked elsewhere"
    made.close()


def ask(tab, text, tokens=24):
    tab.fill("#most", str(tokens))
    tab.fill("#prompt", text)
    tab.press("#prompt", "Enter")
    tab.wait_for_selector("#send:not([hidden])")  # which Stop replaces meanwhile


def test_two_sides_say_the_same_and_tell_their_sources(tab):
    tab.select_option("#method", index=0)
    ask(tab, "Tell me a story about a robot. Tell me a story about a robot.")
    plain, fast = tab.query_selector_all(".side")
    assert plain.query_selector(".text").inner_text() == fast.query_selector(".text").inner_text() != ""
    assert "The same text" in tab.inner_text(".same")
    facts = dict(zip(*([each.inner_text() for each in fast.query_selector_all(kind)] for kind in ("dt", "dd")), strict=True))
    assert int(facts["tokens"]) == 24 and int(facts["passes"]) <= 24 and facts["first after"].endswith("ms")
    assert len(fast.query_selector_all(".rounds rect")) >= 1
    assert plain.query_selector_all(".text span[class]") == []
    ask(tab, "And then?", 8)
    assert len(tab.query_selector_all(".turn")) == 2
    tab.click("#anew")
    assert tab.query_selector_all(".turn") == [] and tab.faults == []


def test_a_constraint_and_a_refusal(tab):
    tab.click("summary")
    tab.select_option("#constraint", "choice")
    tab.fill("#constraint-text", '["yes indeed", "no"]')
    ask(tab, "Is it so?")
    assert tab.inner_text(".side .text") in ("yes indeed", "no") and tab.faults == []
    tab.fill("#constraint-text", "no list")
    ask(tab, "Is it so?")
    assert "no JSON" in tab.inner_text("#say")
    tab.select_option("#constraint", "json_schema")
    tab.fill("#constraint-text", '{"type": "array", "uniqueItems": true}')
    ask(tab, "Is it so?")
    assert "uniqueItems" in tab.inner_text("#say")


def test_the_catalogue_is_found_and_used_by_keyboard(tab):
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("/")
    tab.wait_for_selector("#catalogue:not([hidden])")
    tab.keyboard.type("prompt lookup")
    names = [each.inner_text() for each in tab.query_selector_all("#methods h3")]
    assert 1 <= len(names) < 20 and any(name.startswith("prompt lookup") for name in names)
    assert tab.inner_text("#found").startswith(f"{len(names)} of {len(registry.entries())}")
    first = next(card for card in tab.query_selector_all("#methods li") if card.inner_text().startswith("prompt lookup"))
    first.query_selector("summary").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#watch:not([hidden])")
    assert tab.input_value("#method").startswith("prompt_lookup") and tab.faults == []


@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_its_width(tab, width):
    tab.set_viewport_size({"width": width, "height": 740})
    ask(tab, "a" * 90, 8)
    for part, place in (("#watch", "#/watch"), ("#catalogue", "#/methods")):
        tab.evaluate(f"location.hash = '{place}'")
        tab.wait_for_selector(f"{part}:not([hidden])")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{part} is wider than the screen"
    tab.evaluate("location.hash = '#/watch'")
    tab.wait_for_selector("#watch:not([hidden])")
    boxes = [each.bounding_box() for each in tab.query_selector_all(".side")]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 700)
