"""transformers' own OpenAI-compatible server on a packed model."""

from __future__ import annotations

from pathlib import Path

from tritllm.extras import require
from tritllm.integrations.registration import register_with_transformers
from tritllm.run.generate import check_dtype


def serve(
    folder: str | Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    device: str = "auto",
    planes: int | None = None,
    lm_head_depth: int | None = None,
    dtype: str = "auto",
    threads: int | None = None,
) -> None:
    """Serve chat, completions and responses over HTTP until it is stopped.

    Args:
        folder: a packed folder, or a Hub id of one; loaded before the first request.
        host: address to listen on.
        port: port to listen on.
        device: "auto", "cpu", "cuda:0", ...
        planes: read only so many of the trit planes.
        lm_head_depth: quantize lm_head, too, at this depth.
        dtype: of activations and unquantized weights; "auto" is the file's.
        threads: torch's; default is torch's own choice.

    Raises TritError where the model breaks the format or a package is missing.
    """
    require("serve", "serve", "torch", "transformers", "fastapi", "uvicorn", "openai")
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.cli.serve import Serve

    from tritllm.integrations.transformers.config import reading
    from tritllm.integrations.transformers.load_model import packed_config

    check_dtype(dtype)
    if threads:
        torch.set_num_threads(threads)
    register_with_transformers()
    packed_config(folder)  # one line about a folder that is none, before the server's many
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)  # /v1/models scans it, and fails without
    with reading(planes=planes, lm_head_depth=lm_head_depth):
        Serve(force_model=str(folder), host=host, port=port, device=device, dtype=dtype)
