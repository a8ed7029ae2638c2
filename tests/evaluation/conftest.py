"""A packed model with a tokenizer, made once."""

from support.torch_fixtures import speaking  # noqa: F401
