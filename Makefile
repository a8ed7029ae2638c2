# make demo: the main job, from nothing. make test: every check, from nothing.
# torch is installed as constraints.txt pins it; a build of it that is already in VENV is kept.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
SOURCES = $(shell git ls-files src native pyproject.toml constraints.txt 2>/dev/null)

.PHONY: demo test install clean

demo: install
	$(RUN)/tritllm demo

test: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest

install: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out
