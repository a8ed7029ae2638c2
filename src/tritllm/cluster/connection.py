"""Joining a Ray cluster that is already there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tritllm.errors import TritError, first_line

HOW_TO_START = (
    "start one with `ray start --head`, join other machines to it with "
    "`ray start --address=HOST:6379`, and run this command on one of them"
)
_SECONDS = 5.0  # until a machine that does not answer is given up; Ray itself takes minutes


def connect(address: str) -> bool:
    """Make this process a driver of a cluster, unless it is one already.

    address: "auto" for the cluster that this machine belongs to, or HOST:PORT.

    Returns whether it was this call that connected.

    Raises TritError where no cluster answers, or one with another version of Ray or Python.
    """
    import ray

    if ray.is_initialized():
        return False
    if "://" in address:
        raise TritError(
            f"--ray {address}: a Ray client cannot write to the cluster's folders; run the command "
            "on a machine of the cluster with --ray auto"
        )
    if (known := _address_of_this_machine() if address == "auto" else address) is not None:
        _check_answers(address, known)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        if known is None:
            raise TritError(f"--ray auto: no Ray cluster runs here; {HOW_TO_START}") from None
        raise TritError(
            f"--ray {address}: {first_line(error)}, though {known} answers; this machine must be "
            "one of the cluster's (`ray start --address=HOST:6379`), and have its token if it asks "
            "for one (RAY_AUTH_TOKEN)"
        ) from None
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        raise TritError(f"--ray {address}: {first_line(error)}") from None
    return True


def _address_of_this_machine() -> str | None:
    """Where Ray will look for the cluster of "auto": its environment variable, or the file that the
    last `ray start` left, if there is one; else it looks for processes.
    """
    if (address := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        return address
    try:
        return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/ray_current_cluster").read_text()
    except OSError:
        return None


def _check_answers(asked: str, address: str) -> None:
    """Raise TritError unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise TritError(f"--ray {asked}: {address!r} is neither auto nor HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except OSError as error:
        raise TritError(
            f"--ray {asked}: nothing answers at {address} ({error.strerror or error}); "
            f"{HOW_TO_START}"
        ) from None
