"""What tritllm adds around transformers' server: a key, and the model's name in the list."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REFUSAL = {
    "error": {
        "message": "Incorrect API key, or none: send the server's key as 'Authorization: Bearer'.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
}


class ServedApp:
    """An ASGI application around the server's own.

    Args:
        app: the application that answers.
        model: the served folder or Hub id, as requests name it and `/v1/models` lists it.
        api_key: what requests must send as a bearer token, but for /health; None asks for none.
    """

    def __init__(self, app: App, model: str, api_key: str | None) -> None:
        self._app, self._api_key = app, api_key
        listed = {
            "id": model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "tritllm",
        }
        self._models = {"object": "list", "data": [listed]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            if not self._is_allowed(scope):
                await _answer(send, 401, _REFUSAL, (b"www-authenticate", b"Bearer"))
                return
            if scope["method"] in ("GET", "HEAD") and scope["path"] == "/v1/models":
                await _answer(send, 200, self._models)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._api_key is None or scope["path"] == "/health":
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # In constant time, so that a key cannot be guessed letter by letter.
        same = hmac.compare_digest(token.strip(), self._api_key.encode())
        return same and scheme.lower() == b"bearer"


async def _answer(send: Send, status: int, body: Any, *headers: tuple[bytes, bytes]) -> None:
    data = json.dumps(body).encode()
    own = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)))
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": data})
