"""The page that serve shows: what it is made of, and, in a browser that is there, what it does."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient
from support.browser import browser, chromium
from support.fake_chat import FakeChat, running

from tritllm.run.served_app import ServedApp

MODEL = "/some/where/out/uniform-d2/packed-for-the-test"
needs_browser = pytest.mark.skipif(chromium() is None, reason="needs chromium")


@pytest.fixture(scope="module")
def page_itself():
    """What a browser gets; the server asks for a key, and the page for none."""
    with TestClient(ServedApp(Starlette(), "model", "secret")) as http:
        answer = http.get("/")
        assert answer.status_code == 200
        assert http.head("/").headers["content-length"] == str(len(answer.content))
        assert http.post("/").status_code == 401
    return answer


def test_its_headers(page_itself):
    headers = page_itself.headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for kind, name in (("script-src", "script"), ("style-src", "style")):
        content = re.findall(rf"<{name}[^>]*>(.*?)</{name}>", page_itself.text, re.DOTALL)
        hashes = [hashlib.sha256(each.encode()).digest() for each in content]
        named = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
        assert policy.pop(kind).split() == named
        assert len(named) == 1
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip


def test_it_needs_nothing_from_elsewhere(page_itself):
    """No address but the two it asks, no way to put text in as HTML, nothing kept for long."""
    text = page_itself.text
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)""", text) == ["data:,"]
    assert set(re.findall(r"""fetch\(["']([^"']+)""", text)) == {"v1/models", "v1/chat/completions"}
    for word in ("//cdn", "http:", "https:", "@import", "url(", "innerHTML", "outerHTML",
                 "insertAdjacentHTML", "document.write", "eval(", "localStorage", "cookie",
                 "style="):  # fmt: skip
        assert word not in text, word


def test_a_model_without_a_template_says_so():
    with TestClient(ServedApp(Starlette(), "model", None, chats=False)) as http:
        answer = http.post("/v1/chat/completions", json={"messages": []})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "no_chat_template"
        assert http.post("/v1/completions", json={}).status_code == 404  # passed on


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


@pytest.fixture
def fake():
    return FakeChat()


@pytest.fixture
def opened(chrome, fake):
    """opened(api_key=None, **how): the page of a server in front of `fake`, in a new window.

    At the end, nothing else may have been asked for, and no script may have failed.
    """
    made, requests, errors = [], [], []

    def open_page(api_key=None, **how):
        server = running(ServedApp(fake.app, MODEL, api_key))
        url = server.__enter__()
        context = chrome.new_context(**how)
        context.set_default_timeout(20_000)
        page = context.new_page()
        made.append((server, context, url))
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda said: errors.append(said.text) if "Content Security" in said.text else None,
        )
        page.goto(url)
        return page

    yield open_page
    for server, context, url in made:
        context.close()
        server.__exit__(None, None, None)
        assert {request.removeprefix(url) for request in requests} <= {
            "/", "/v1/models", "/v1/chat/completions", "data:,",
        }  # fmt: skip
    assert errors == []


def say(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


def status(page):
    from playwright.sync_api import expect

    return expect(page.locator("#status"))


@needs_browser
def test_a_conversation(opened, fake):
    page = opened()
    label = page.locator("#model option")
    assert label.text_content() == "\N{HORIZONTAL ELLIPSIS}/uniform-d2/packed-for-the-test"
    page.click("summary")
    page.fill("#system", "Be brief.")
    html = "<img src=x onerror=alert(1)> & <b>bold</b>"
    fake.pieces = ["So ", "it ", "is:\n", html]
    page.fill("#text", "first line")
    page.press("#text", "Shift+Enter")
    page.type("#text", "second line")
    page.press("#text", "Enter")
    status(page).to_contain_text(re.compile(r"^4 tokens(, \S+ tokens/s)?, the first after \S+ s$"))
    assert page.input_value("#text") == ""
    assert page.locator(".said").all_text_contents() == [
        "first line\nsecond line", f"So it is:\n{html}",
    ]  # fmt: skip
    assert page.locator("#log img, #log b").count() == 0
    say(page, "and?")
    status(page).to_contain_text("the first after")
    roles = [message["role"] for message in fake.asked[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert fake.asked[1]["messages"][2]["content"] == f"So it is:\n{html}"
    assert fake.asked[1]["model"] == MODEL
    page.click("#new")
    assert page.locator(".said").count() == 0
    say(page, "anew")
    status(page).to_contain_text("the first after")
    assert [m["content"] for m in fake.asked[2]["messages"]] == ["Be brief.", "anew"]


@needs_browser
def test_stop_ends_the_request_and_keeps_what_came(opened, fake):
    from playwright.sync_api import expect

    page = opened()
    fake.pieces = ["half ", "of it", None]
    say(page, "Tell me.")
    expect(page.locator(".waits .said")).to_have_text("half of it")
    assert page.text_content("#send") == "Stop"
    page.click("#send")
    status(page).to_contain_text(re.compile("^stopped; about 2 tokens"))
    assert fake.left.wait(20)
    assert page.text_content("#send") == "Send"
    fake.pieces = ["fine"]
    say(page, "Go on.")
    status(page).to_contain_text("1 token,")
    assert [m["content"] for m in fake.asked[1]["messages"]] == [
        "Tell me.", "half of it", "Go on.",
    ]  # fmt: skip


@needs_browser
def test_errors_are_one_line_and_the_message_comes_back(opened, fake):
    page = opened()
    for fails, says in (
        (JSONResponse({"error": {"message": "no\nroom"}}, 400), "No answer: no (HTTP 400)"),
        (JSONResponse({"detail": "bad field"}, 422), "No answer: bad field (HTTP 422)"),
        (PlainTextResponse("Internal Server Error", 500), "No answer: Internal Server Error (HTTP"),
        (
            PlainTextResponse('data: {"error": "no "room""}\n\n'),
            'No answer: {"error": "no "room""}',
        ),
    ):
        fake.fails = fails
        say(page, "Hello?")
        status(page).to_contain_text(says)
        assert page.locator("#status.error").count() == 1
        assert page.locator(".turn").count() == 0
        assert page.input_value("#text") == "Hello?"
    fake.fails, fake.pieces = None, ["yes"]
    page.press("#text", "Enter")
    status(page).to_contain_text("1 token,")
    assert len(fake.asked[-1]["messages"]) == 1


@needs_browser
def test_the_key_is_asked_for_and_stays_in_the_tab(opened, fake):
    from playwright.sync_api import expect

    page = opened("secret")
    form = page.locator("#key-form")
    expect(form).to_be_visible()
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    status(page).to_contain_text("refuses this key")
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    expect(form).to_be_hidden()
    fake.pieces = ["yes"]
    say(page, "Hello?")
    status(page).to_contain_text("1 token,")
    kept = "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
    assert page.evaluate(kept) == [["secret"], [], ""]
    page.reload()
    expect(page.locator("#model option")).to_have_count(1)
    expect(form).to_be_hidden()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened, fake, scheme):
    page = opened(viewport={"width": 320, "height": 560}, color_scheme=scheme)
    fake.pieces = ["word " * 200, "x" * 300]
    say(page, "y" * 300)
    status(page).to_contain_text("2 tokens")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for name in ("#model", "#new", "#text", "#send", "#status"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
        assert box["y"] + box["height"] <= 560
    assert _contrast(page) > 4.5


def _contrast(page):
    """WCAG 2's ratio of the text's luminance and its ground's."""
    colours = page.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
    )

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)
