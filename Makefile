# make run    make the environment if need be, and serve the default model on port 7997 (ARGS="…" for options)
# make test   everything that CI runs: check, then all tests
# make check  formatting, lint, types, import floors
# make coverage  the tests with line coverage, against its floor
# make bench  speed as ratios to sentence-transformers, in one run
# make bench-NAME  another of benchmarks/: kinds of models, engines, the cache, dialects, overload, attack, a soak, gpu,
#              observability, front-end processes (frontends), instructions of a request, scaling, products of one short
#              text (few_rows), --compile (compiled), and roofline: the path for CUDA on paper
# make bench-peers  our server and others of the same model in turn, each in an environment of its own (ARGS="--rounds 3")
# make bench-aiperf  infinity_emb bench, NVIDIA's AIPerf and wrk in turn on one server
# make bench-newcomer  the time from git clone to the first vector, in a clean environment, and what a start spends it on
# make bench-page  requests, bytes and first paint of the page at /ui in Chromium
# make bench-compare  speed of this tree against another commit, in turn (ARGS="2f27a20 --quick")
# make test-clients  what people use as clients, all of them, each in an environment of its own
# make test-ray  models on Ray Serve and rows with Ray Data, in an environment of its own with Ray
# make bench-ray  the speed of Ray Serve as a ratio to the plain server, in that environment
# make structure  sizes and habits of the package and the path of one request, against their limits
# make docs   write docs/settings.md again
# make docs-site  build the documentation site into site/, offline and strict (ARGS=serve to edit it)
# make test-examples  examples/, those with packages of their own too, each in an environment of its own
# make release-check  compare the version, the newest heading of CHANGELOG.md and the git tag
# make container-check  build the image for CPUs without Docker, serve from it, print its size (root, Debian; see the script)
# make coverage-page  write docs/coverage.md again, from the models that mteb lists

PYTHON ?= python3
BIN := .venv/bin
# Tests of one file stay together: they share what is slow to make.
WORKERS ?= 2
# A test that hangs ends its worker, which is replaced: few times do.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 3
# Both workers and hundreds of servers would compile the package and the tests again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
MTEB := .venv-mteb
DOCS := .venv-docs
RAY := .venv-ray
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: run test coverage test-clients test-ray bench-ray check bench bench-compare structure docs docs-site test-examples coverage-page release-check container-check clean

run: .venv/served
	$(BIN)/infinity_emb v2 $(ARGS)

test: check
	@command -v chromium >/dev/null || echo "the browser tests of /docs and /ui are skipped: chromium is not installed (Debian: apt-get install chromium)"
	$(PYTEST) $(ARGS)

coverage: .venv/tested
	$(PYTEST) --cov --cov-report=term:skip-covered $(ARGS)

test-clients: .venv/tested
	$(BIN)/python -m pytest tests/clients --all-clients $(ARGS)

test-ray: $(RAY)/made
	$(RAY)/bin/python -W ignore -m pytest tests/ray -W ignore --timeout 240 $(ARGS)

check: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

bench: .venv/tested
	$(BIN)/python -m benchmarks.serve $(ARGS)

bench-compare: .venv/tested
	$(BIN)/python -m scripts.compare_commits $(ARGS)

bench-ray: $(RAY)/made
	$(RAY)/bin/python -m benchmarks.ray_serve $(ARGS)

bench-%: .venv/tested
	$(BIN)/python -m benchmarks.$* $(ARGS)

structure: .venv/tested
	$(BIN)/python -m scripts.structure --check $(ARGS)

docs: .venv/tested
	$(BIN)/python -m infinity_emb.cli.settings_page > docs/settings.md

docs-site: $(DOCS)/made
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs $(or $(ARGS),build --strict)

test-examples: .venv/tested
	$(BIN)/python -m pytest tests/docs/test_examples.py --all-examples $(ARGS)

release-check:
	$(PYTHON) -m scripts.release_check

container-check:
	$(PYTHON) -m scripts.container_check $(ARGS)

coverage-page: $(MTEB)/made
	$(MTEB)/bin/python -W ignore -m scripts.mteb_coverage > docs/coverage.md.new
	mv docs/coverage.md.new docs/coverage.md

# mteb alone, beside the packages of .venv: nothing else here needs it.
$(MTEB)/made: .venv/served
	$(BIN)/python -m venv $(MTEB)
	$(BIN)/python $(PURELIB) > "$$($(MTEB)/bin/python $(PURELIB))/served.pth"
	$(MTEB)/bin/pip install --quiet --constraint constraints.txt mteb==2.26.24
	touch $@

# Ray, beside the packages of .venv.
$(RAY)/made: .venv/tested
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python $(PURELIB) > "$$($(RAY)/bin/python $(PURELIB))/served.pth"
	$(RAY)/bin/pip install --quiet --constraint constraints.txt 'ray[serve,data]==2.60.0'
	touch $@

# MkDocs and its theme, beside the packages of .venv, whose code the reference is generated from.
$(DOCS)/made: .venv/served
	$(BIN)/python -m venv $(DOCS)
	$(BIN)/python $(PURELIB) > "$$($(DOCS)/bin/python $(PURELIB))/served.pth"
	$(DOCS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --group docs
	touch $@

.venv/served: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(INSTALL) --editable '.[all]'
	touch $@

.venv/tested: .venv/served
	$(INSTALL) --group dev
	touch $@

clean:
	rm -rf .venv .venv-clients .venv-peers $(MTEB) $(DOCS) $(RAY) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
