"""transformers' own OpenAI-compatible server on a packed model."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritllm.errors import TritError
from tritllm.extras import require
from tritllm.integrations.registration import register_with_libraries
from tritllm.run.drafting import drafting
from tritllm.run.loading import (
    check_dtype,
    check_kv_cache,
    check_packed,
    load_tokenizer,
    one_line,
    quiet,
    set_threads,
    shown,
)
from tritllm.run.served_app import ServedApp

API_KEY = "TRITLLM_API_KEY"


def serve(
    folder: str | Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    api_key: str | None = None,
    device: str = "auto",
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    draft: str | None = None,
    kv_cache: str | None = None,
) -> None:
    """Serve chat, completions and responses over HTTP until it is stopped.

    There is no encryption, and no authentication but the key: whoever reaches the port may use the
    model. `/v1/models` lists the folder, and `/` is a page to chat with it.

    Args:
        folder: a packed folder, or a Hub id of one; loaded before the first request.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        api_key: what requests must send as a bearer token; default is the environment variable
            TRITLLM_API_KEY, and none where that is not set. Visible ASCII.
        device: "auto", "cpu", "cuda:0", ...
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        dtype: of activations and unquantized weights; "auto" is the file's.
        threads: torch's; default is torch's own choice.
        draft: draft tokens that the whole model then verifies, which changes the speed alone: with
            "planes=N" of its own planes, with what pays of them ("auto"), or with a second packed
            folder of the same model.
        kv_cache: "int8" keeps keys and values in 9 bits an element; default is the model's dtype.

    Raises TritError where the model breaks the format, the port cannot be had or a package is
    missing.
    """
    require("serve", "serve", "torch", "transformers", "fastapi", "uvicorn", "openai")
    check_dtype(dtype)
    check_kv_cache(kv_cache)
    key = _checked_key(os.environ.get(API_KEY) if api_key is None else api_key)
    _check_address(host, port)
    if key is None and not _is_local(host):
        print(
            f"warning: without a key, whoever reaches {host} may use the model; "
            f"set {API_KEY} or --api-key",
            file=sys.stderr,
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    from tritllm.integrations.transformers.compat import server_class
    from tritllm.integrations.transformers.config import reading
    from tritllm.integrations.transformers.load_model import class_that_generates, packed_config

    set_threads(threads)
    quiet()
    register_with_libraries()
    check_packed(folder, planes)
    with one_line(folder):
        class_that_generates(folder, packed_config(folder))
    # Without one, the server would start and fail at every request.
    chats = bool(load_tokenizer(folder).chat_template)
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)  # the server looks at it, and fails else
    drafting_with = drafting(draft, folder, device=device, lm_head_depth=lm_head_depth, dtype=dtype)

    def loaded(model: Any) -> None:
        model.set_draft(drafting_with(model))
        model.set_kv_cache(kv_cache)

    asked = reading(planes=planes, lm_head_depth=lm_head_depth, loaded=loaded)
    with one_line(folder), asked, _wrapped(str(folder), key, chats):
        server_class()(
            force_model=str(folder),
            host=host,
            port=port,
            device=device,
            dtype=dtype,
            log_level="error",
        )


@contextmanager
def _wrapped(model: str, key: str | None, chats: bool) -> Iterator[None]:
    """Put ServedApp around the application of the next server.

    transformers' Serve makes its application and runs it within its constructor, so that there is
    no moment between the two but the making of uvicorn's configuration.
    """
    import uvicorn

    original = uvicorn.Config

    def config(app: Any, *args: Any, **kwargs: Any) -> Any:
        return original(ServedApp(app, model, key, chats=chats), *args, **kwargs)

    uvicorn.Config = config  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        uvicorn.Config = original  # type: ignore[misc]


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key and all("!" <= letter <= "~" for letter in key)):
        raise TritError(f"--api-key or {API_KEY}: a key is visible ASCII letters without spaces")
    return key


def _check_address(host: str, port: int) -> None:
    """Raise TritError where nothing can listen there; known before the model is loaded."""
    if not 0 <= port <= 65535:
        raise TritError(f"--port {shown(port)} is not 0..65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[-1]  # IPv4 where a name has both
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, ValueError) as error:  # ValueError: a name that no encoding has
        reason = getattr(error, "strerror", None) or "not an address"
        raise TritError(f"cannot listen on {host} port {port}: {reason}") from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
