"""Commands in processes of their own that start quickly."""

from support.forked_commands import forked_command_line  # noqa: F401
