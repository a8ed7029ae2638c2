"""The page that `tritllm serve` shows at `/`: one file, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

PATH = "/"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def chat_page() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """The page's bytes and its headers, as ASGI takes them.

    The policy allows the page's own script and style by their hashes, requests to the server that
    it came from, and nothing else: no other resource, frame or form, and no script that a model
    writes.
    """
    text = (files("tritllm.run") / "chat_page.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'; "
        f"script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    encoded = ((name.encode(), value.encode()) for name, value in headers.items())
    return text.encode(), tuple(encoded)
