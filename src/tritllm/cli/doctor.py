"""tritllm doctor: what is used on this machine, and why."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tritllm.cli.console import console
from tritllm.run.doctor import doctor


def command() -> None:
    """Show what tritllm uses on this machine and what is missing."""
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in doctor():
        table.add_row("ok" if finding.ok else "--", finding.subject, Text(finding.state))
    console.print(table)
