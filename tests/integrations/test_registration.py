"""`import tritllm` registers with transformers, whenever that is imported, and costs no torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap

HEAD = "from tritllm.integrations.registration import register_with_transformers as register\n"


def run(code: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_registering_imports_neither_torch_nor_transformers():
    code = """
        import sys
        register(); register()
        print(sum("registration" in type(finder).__module__ for finder in sys.meta_path))
        print("torch" in sys.modules, "transformers" in sys.modules)
    """
    assert run(HEAD + textwrap.dedent(code)) == "1\nFalse False"


def test_before_and_after_transformers():
    table = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as table\n"
    say = "print(table['tritllm'].__name__)"
    assert run(HEAD + "register()\n" + table + say, "-W", "error::RuntimeWarning") == (
        "TritQuantizer"
    )
    assert run(HEAD + table + "register(); register()\n" + say) == "TritQuantizer"
    ours_first = "import tritllm.integrations.transformers\n"
    assert run(HEAD + "register()\n" + ours_first + table + say) == "TritQuantizer"


def test_the_hooked_module_keeps_its_loader():
    code = """
        register()
        import inspect, sys
        import transformers.quantizers.auto as table
        print("def register_quantizer" in inspect.getsource(table))
        print(any("registration" in type(f).__module__ for f in sys.meta_path))
    """
    assert run(HEAD + textwrap.dedent(code)) == "True\nFalse"


def test_a_failure_is_a_warning_and_transformers_still_imports():
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
