"""What the Hub's client library raises, in one line that says what to do."""

from __future__ import annotations

from tritllm.errors import first_line

_GIVE_TOKEN = "set HF_TOKEN or run `hf auth login`"


def hub_says(error: Exception) -> str:
    """One line on a failed call of huggingface_hub, or of the network below it.

    Also on an error that another library raised from such a one.

    The Hub answers alike for a repository that does not exist and for a private one that whoever
    asks may not see; so does this line.
    """
    from huggingface_hub import errors, get_token

    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):  # of one file's upload
        return f"{first_line(error).rstrip('.')}: {hub_says(cause)}"
    if type(error) is OSError and isinstance(cause, errors.HfHubHTTPError):  # as transformers does
        return hub_says(cause)
    told = getattr(error, "server_message", None) or ""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"access is gated: ask for it on the model's page, and {_GIVE_TOKEN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such branch, tag or commit there"
    if isinstance(error, errors.RepositoryNotFoundError):
        where = "may not read it" if get_token() else f"is missing; {_GIVE_TOKEN}"
        return f"no such repository, or a private one and the token {where}"
    if status == 401 and "credentials" in told:
        return f"401: the token is not valid; {_GIVE_TOKEN}"
    if status == 401:
        return f"401: {told.rstrip('.') or 'not allowed'}; {_GIVE_TOKEN}"
    if status == 403:
        return f"403: not allowed: {told or first_line(error)}"
    return f"{status}: {told}" if status and told else first_line(error)
