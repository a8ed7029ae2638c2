"""Every command is a function of the same name, parameters and defaults."""

from __future__ import annotations

import importlib
import inspect

import pytest

import tritllm
from tritllm.cli.main import COMMANDS

ONLY_PRINTED = {"as_json"}  # how a result is shown
# Text or options on the command line, sequences in Python.
LISTS = {
    "configs",
    "context",
    "write",
    "include",
    "exclude",
    "depth",
    "nested",
    "tasks",
    "evaluation",
}
FUNCTIONS = {"eval": "evaluate"}  # where the word is another in Python


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_function(name):
    module = importlib.import_module(f"tritllm.cli.{name}")
    command = inspect.signature(module.command).parameters
    function = {
        key: parameter
        for key, parameter in inspect.signature(
            getattr(tritllm, FUNCTIONS.get(name, name))
        ).parameters.items()
        if not key.startswith("on_")
    }
    assert set(command) - ONLY_PRINTED == set(function)
    for key, parameter in function.items():
        if key not in LISTS and (name, key) != ("eval", "planes"):  # there, several
            assert command[key].default == parameter.default, key
