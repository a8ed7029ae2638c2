# make demo: the main job, from nothing. make test: every check, from nothing. make develop: an
# editable installation, which the two others then use as it is.
# torch is installed as constraints.txt pins it; a build of it that is already in VENV is kept.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
EDITABLE = $(wildcard $(VENV)/.editable)
SETTINGS = pyproject.toml constraints.txt Makefile
SOURCES = $(shell find src native -type f -not -path '*/__pycache__/*' -not -name '*.so')
PIP_INSTALL = "$(RUN)/pip" install --quiet --constraint constraints.txt

# A native core that does not build is an error here, not a reason to run without it.
export TRITLLM_REQUIRE_NATIVE = 1
# cmake, ninja, clang-format and, where the machine has no compiler, that one come from VENV.
export PATH := $(abspath $(RUN)):$(PATH)

.PHONY: demo test test-format test-types test-native test-native-built test-python test-vllm test-wheels develop install clean

demo: install
	"$(RUN)/tritllm" demo

# Two goals at a time: what the tools alone can check goes on while pip installs the rest, and then
# beside pytest.
test: $(VENV)/.tools
	"$(RUN)/python" checks/compiler.py --arm
	$(MAKE) -j2 test-python test-format test-native test-types

test-format: $(VENV)/.tools
	"$(RUN)/ruff" check .
	"$(RUN)/ruff" format --check .
	"$(RUN)/python" checks/text_files.py
	"$(RUN)/python" checks/native.py format

test-types: install
	"$(RUN)/mypy"

test-native: test-native-built install
	"$(RUN)/python" checks/native.py plain

# What compiles the native core itself, before anything is installed.
test-native-built: $(VENV)/.tools
	"$(RUN)/python" checks/native.py sanitized fuzz neon

test-python: install
	"$(RUN)/pytest" -n 2 --dist loadfile --durations 20

# A real vLLM on the CPU serves packed models; in an environment of its own, which takes 3.4 GB.
test-vllm:
	$(PYTHON) checks/vllm_serving.py

# Wheels for Linux as users get them, in environments of their own: build, repair, install, try.
test-wheels:
	$(PYTHON) checks/wheels.py

ifeq ($(EDITABLE),)
install: $(VENV)/.installed
else
install: $(VENV)/.editable
	cmake --build build/develop
endif

$(VENV)/bin/python:
	$(PYTHON) -m venv "$(VENV)"

$(VENV)/.compiler: | $(VENV)/bin/python
	"$(RUN)/python" checks/compiler.py
	touch "$@"

# What builds and formats the package; without build isolation, pip does not fetch it again.
$(VENV)/.tools: $(SETTINGS) | $(VENV)/.compiler
	$(PIP_INSTALL) clang-format cmake ninja pyyaml ruff scikit-build-core
	touch "$@"

$(VENV)/.installed: $(SOURCES) $(VENV)/.tools
	$(PIP_INSTALL) --no-build-isolation '.[demo,test]'
	touch "$@"

develop: $(VENV)/.editable
	cmake --build build/develop

$(VENV)/.editable: $(VENV)/.tools
	$(PIP_INSTALL) --no-build-isolation --config-settings build-dir=build/develop --editable '.[demo,test]'
	touch "$@"

clean:
	rm -rf "$(VENV)" .venv-vllm build dist demo-out
