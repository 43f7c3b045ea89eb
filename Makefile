# make run    make the environment if need be, and serve the default model on port 7997 (ARGS="…" for options)
# make test   everything that CI runs: check, then all tests
# make check  formatting, lint, types, import floors
# make bench  speed as ratios to sentence-transformers, in one run
# make bench-NAME  another of benchmarks/: kinds of models, engines, the cache, dialects, overload, a soak, gpu
# make test-clients  what people use as clients, all of them, each in an environment of its own
# make docs   write docs/settings.md again
# make coverage-page  write docs/coverage.md again, from the models that mteb lists

PYTHON ?= python3
BIN := .venv/bin
# Tests of one file stay together: they share what is slow to make.
WORKERS ?= 2
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
MTEB := .venv-mteb
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: run test test-clients check bench docs coverage-page system-packages clean

run: .venv/served
	$(BIN)/infinity_emb v2 $(ARGS)

test: check system-packages
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-clients: .venv/tested
	$(BIN)/python -m pytest tests/clients --all-clients $(ARGS)

check: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

bench: .venv/tested
	$(BIN)/python -m benchmarks.serve $(ARGS)

bench-%: .venv/tested
	$(BIN)/python -m benchmarks.$* $(ARGS)

docs: .venv/tested
	$(BIN)/python -m infinity_emb.cli.settings_page > docs/settings.md

coverage-page: $(MTEB)/made
	$(MTEB)/bin/python -W ignore -m scripts.mteb_coverage > docs/coverage.md.new
	mv docs/coverage.md.new docs/coverage.md

# mteb alone, beside the packages of .venv: nothing else here needs it.
$(MTEB)/made: .venv/served
	$(BIN)/python -m venv $(MTEB)
	$(BIN)/python $(PURELIB) > "$$($(MTEB)/bin/python $(PURELIB))/served.pth"
	$(MTEB)/bin/pip install --quiet --constraint constraints.txt mteb==2.26.24
	touch $@

.venv/served: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(INSTALL) --editable '.[all]'
	touch $@

.venv/tested: .venv/served
	$(INSTALL) --group dev
	touch $@

# The docs page is tested in a real browser where there is one, or where Debian's can be installed.
system-packages:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null \
			|| echo "chromium could not be installed; its test is skipped"; fi

clean:
	rm -rf .venv .venv-clients $(MTEB) .mypy_cache .ruff_cache .pytest_cache .hypothesis
