# make demo         set up, then watch a real model decode in fewer passes with identical output
# make test         set up, then run the tests        (PYTEST_ARGS="--slow tests/decode")
# make lint         ruff and mypy
# make check-real   MODEL=folder: parity, doctor and bench on a checkpoint of yours
# make readme       write the README's figures from docs/ledger-decoding.jsonl
# make engines      lithe beside transformers and llama.cpp, into docs/engines.md; some minutes, on a quiet machine
# make decoding     every decoding method on real tasks, into docs/decoding.md; needs $LITHE_DATA, half an hour, a quiet machine
# make identity     is every lossless method token for token plain decoding, in every precision; hours, resumes, a busy machine will do
# make zoo          train the shipped models anew; takes hours, and resumes where it was interrupted
# make clean        remove what the above made, .lithe/ excepted
#
# Another torch, or other arguments to pip:   make demo TORCH="torch==2.8.0" PIP_ARGS="--no-cache-dir"

TORCH ?= torch==2.13.0
PIP_ARGS ?=
PYTEST_ARGS ?=
VENV ?= .venv
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: demo test lint check-real readme engines decoding identity zoo clean
.DELETE_ON_ERROR:

demo: $(VENV)/.lithe
	$(BIN)/lithe demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

check-real: $(VENV)/.test
	@test -n "$(MODEL)" || { echo "usage: make check-real MODEL=folder" >&2; exit 2; }
	$(BIN)/python tools/check_real.py "$(MODEL)"

zoo: $(VENV)/.lithe
	$(BIN)/python tools/zoo/make.py

readme: $(VENV)/.lithe
	$(BIN)/python tools/readme.py

engines: $(VENV)/.engines
	$(BIN)/python tools/engines.py --measure

decoding: $(VENV)/.plots $(VENV)/.engines
	$(BIN)/python tools/decoding/measure.py
	$(BIN)/python tools/decoding/rivals.py
	$(BIN)/python tools/decoding/page.py

identity: $(VENV)/.lithe
	$(BIN)/python tools/decoding/identity.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lithe tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is remembered by empty files, so that a second call starts at once. Torch comes first and alone: lithe
# asks for any recent one, and the one asked for here must not be replaced.
$(VENV)/.venv:
	@test -n "$(PYTHON)" || { echo "lithe needs Python 3.11 or newer; say where: make PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.venv
	$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.lithe: $(VENV)/.torch pyproject.toml
	$(PIP) --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) --quiet --editable ".[test]"
	@touch $@ $(VENV)/.lithe

$(VENV)/.dev: $(VENV)/.lithe
	$(PIP) --quiet --editable ".[dev]"
	@touch $@

$(VENV)/.plots: $(VENV)/.lithe
	$(PIP) --quiet --editable ".[plots]"
	@touch $@

$(VENV)/.engines: $(VENV)/.lithe
	$(PIP) --quiet --editable ".[engines]"
	@touch $@
