"""`import tritllm` registers with transformers, whenever that is imported, and costs no torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from support.forked_programs import forked_programs

HEAD = "from tritllm.integrations.registration import register_with_libraries as register\n"


# Most of what the table of quantizers imports; the table itself each program imports anew.
AHEAD = """
import transformers.models.auto.configuration_auto

assert not {"transformers.quantizers", "tritllm"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(code, strict): what a program prints. strict: a RuntimeWarning is an error in it."""
    with forked_programs(tmp_path_factory.mktemp("registration"), AHEAD) as forked:

        def program(code: str, strict: bool = False) -> str:
            done = forked(code, strict=strict)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        yield program


def test_registering_imports_neither_torch_nor_transformers():
    code = """
        import sys
        register(); register()
        print(sum("registration" in type(finder).__module__ for finder in sys.meta_path))
        print("torch" in sys.modules, "transformers" in sys.modules)
    """
    line = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "1\nFalse False\n"


def test_before_and_after_transformers(run, forked_program):
    table = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as table\n"
    say = "print(table['tritllm'].__name__)"
    anew = forked_program(HEAD + "register()\n" + table + say, strict=True)  # transformers as well
    assert (anew.returncode, anew.stdout.strip()) == (0, "TritQuantizer"), anew.stderr
    assert run(HEAD + table + "register(); register()\n" + say) == "TritQuantizer"
    ours_first = "import tritllm.integrations.transformers\n"
    assert run(HEAD + "register()\n" + ours_first + table + say) == "TritQuantizer"


def test_the_hooked_module_keeps_its_loader(run):
    code = """
        register()
        import inspect, sys
        import transformers.quantizers.auto as table
        print("def register_quantizer" in inspect.getsource(table))
        print(table.__loader__.name, table.__spec__.origin == table.__file__)
    """
    assert run(HEAD + textwrap.dedent(code)) == "True\ntransformers.quantizers.auto True"


@pytest.mark.parametrize(
    "before",
    [
        "importlib.util.find_spec(table)",
        "importlib.util.find_spec(table); importlib.util.find_spec(table)",
        "sys.meta_path[0].find_spec(table, importlib.import_module('transformers').__path__)",
        "pkgutil.resolve_name('transformers'); importlib.util.find_spec(table).loader",
        "pickle.dumps(copy.copy(importlib.util.find_spec(table).loader))",
        "importlib.reload(registration); register(); registration.register_with_libraries()",
    ],
)
def test_who_merely_looks_takes_nothing_away(run, before):
    code = f"""
        import copy, importlib.util, pickle, pkgutil, sys
        from tritllm.integrations import registration
        table = "transformers.quantizers.auto"
        register()
        {before}
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as mapping
        print(mapping["tritllm"].__name__)
    """
    assert run(HEAD + textwrap.dedent(code), strict=True) == "TritQuantizer"


def test_reloading_the_table_registers_again(run):
    code = """
        import importlib
        register()
        import transformers.quantizers.auto as table
        for _ in range(2):
            importlib.reload(table)
            print(table.AUTO_QUANTIZER_MAPPING["tritllm"].__name__,
                  table.AUTO_QUANTIZATION_CONFIG_MAPPING["tritllm"].__name__)
    """
    expected = "TritQuantizer TritConfig\nTritQuantizer TritConfig"
    assert run(HEAD + textwrap.dedent(code), strict=True) == expected


def test_an_import_that_fails_first_is_registered_with_later(run):
    code = """
        import sys
        register()
        sys.modules["transformers.quantizers.base"] = None
        try:
            import transformers.quantizers.auto
        except ImportError:
            print("failed")
        del sys.modules["transformers.quantizers.base"]
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as mapping
        print(mapping["tritllm"].__name__)
    """
    assert run(HEAD + textwrap.dedent(code)) == "failed\nTritQuantizer"


def test_threads_that_import_at_once(run):
    code = """
        import importlib, threading
        register()
        names = ["transformers.quantizers.auto", "tritllm.integrations.transformers"] * 3
        threads = [threading.Thread(target=importlib.import_module, args=(n,)) for n in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as mapping
        print(mapping["tritllm"].__name__)
    """
    assert run(HEAD + textwrap.dedent(code), strict=True) == "TritQuantizer"


def test_a_failure_is_a_warning_and_transformers_still_imports(run):
    code = """
        import sys, warnings
        sys.modules["tritllm.integrations.transformers"] = None
        register()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import transformers.quantizers.auto as table
        print("tritllm" in table.AUTO_QUANTIZER_MAPPING)
        print(any("could not register" in str(w.message) for w in caught))
    """
    assert run(HEAD + textwrap.dedent(code)) == "False\nTrue"
