# Everything is made inside this directory: virtual environments in .venv and .venv-3.X, with a
# stamp file in them for each set of packages, so that nothing is installed twice.

# An older python3 may come first on the PATH: take the first that will do.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3; \
	do $$name -c '$(NEW_ENOUGH)' 2>/dev/null && break; done; echo $$name)
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 10))
VENV ?= .venv
# What is given to pytest by `make test`, and to the benchmarks: make test ARGS="-k tls -x".
ARGS ?=
# Tests run in one process more than there are cores, as many of them wait, and in four at most;
# ARGS="-n 0" runs them in one. If one of them crashes the run ends, as it would wait for the lost
# tests for ever.
CORES = $$(getconf _NPROCESSORS_ONLN)
IN_PARALLEL = -n $$(($(CORES) < 4 ? $(CORES) + 1 : 4)) --dist loadgroup --max-worker-restart 0

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
SOURCES = tao tests examples setup.py
RUFF_SETTINGS = --isolated --line-length 100 --target-version py310
# On top of the usual: tests in pytest's style (PT), plain control flow (RET, SIM, PIE), aware times
# (DTZ), no shadowed builtins (A), ignores that name what they ignore (PGH). Not: contextlib.suppress
# in place of try and pass, which is slower, one assert per condition, and one statement that raises.
RUFF_RULES = --select E,F,W,I,UP,B,RUF,A,C4,DTZ,EXE,FLY,G,ISC,LOG,PGH,PIE,PLE,PT,RET,SIM,SLOT,T10,TID,YTT \
	--ignore SIM105,PT011,PT012,PT017,PT018,PT030,PT031

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test interrupt check format coverage test-all test-free-threaded chaos storm pairs crowd cluster sessions soak fuzz bench bench-quick docs dist clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F'|' '{ printf "%-26s %s\n", $$1, $$2 }'

run: $(VENV)/.run ## start the chat server on port 12345; ARGS="--port N" for another
	@echo 'The chat server starts; Ctrl-C stops it.'
# On a terminal Ctrl-C would end make too, with an error, however gracefully the server stops. With
# job control (set -m) the server alone gets it.
	@if [ -t 0 ]; then set -m; $(BIN)/python -m examples.chat.server $(ARGS); \
		else exec $(BIN)/python -m examples.chat.server $(ARGS); fi

test: $(VENV)/.test ## run the tests; ARGS="..." goes to pytest
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not interrupted' $(ARGS)

interrupt: export EACH_BYTECODE = $(EACH)
interrupt: $(VENV)/.test ## run those that interrupt calls at many bytecodes, EACH=1 at each
	$(BIN)/python -m pytest $(IN_PARALLEL) -m interrupted $(ARGS)

check: $(VENV)/.test ## check format, lint and types
	$(BIN)/ruff format $(RUFF_SETTINGS) --check $(SOURCES)
	$(BIN)/ruff check $(RUFF_SETTINGS) $(RUFF_RULES) $(SOURCES)
	$(BIN)/mypy --strict tao examples

format: $(VENV)/.test ## format the code and repair what the linter can
	$(BIN)/ruff check $(RUFF_SETTINGS) $(RUFF_RULES) --fix-only $(SOURCES)
	$(BIN)/ruff format $(RUFF_SETTINGS) $(SOURCES)

# Processes that the tests start are counted as well, wherever they run.
coverage: export COVERAGE_PROCESS_START = $(CURDIR)/setup.cfg
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage: $(VENV)/.test ## run the tests and report the branch coverage of tao, at least 95 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(IN_PARALLEL) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-all: ## run the tests on every CPython from 3.10 to 3.14 that is found
	@report=; status=0; \
	for version in 3.10 3.11 3.12 3.13 3.14; do \
		python=; \
		for candidate in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python; do \
			if "$$candidate" -c 'import sys; sys.exit(sys.implementation.name != "cpython")' \
				2>/dev/null; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then result='not found'; \
		elif $(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$$version; then \
			result='passed'; \
		else result='FAILED'; status=1; fi; \
		report="$$report$$version $$result\n"; \
	done; \
	printf "\n$$report"; exit $$status

# A build without the interpreter lock: make test-free-threaded FREE_THREADED=/path/to/python3.14t
# For 3.13t there is no cryptography: what it needs cannot be built there.
FREE_THREADED ?= $(firstword $(shell for name in python3.14t \
	"$$HOME"/.pyenv/versions/3.14t*/bin/python; do command -v $$name; done))

test-free-threaded: ## run the tests on a free-threaded CPython; FREE_THREADED=... names it
	@test -n '$(FREE_THREADED)' || { \
		echo 'No free-threaded CPython is found. Name one, of 3.14 or newer:' >&2; \
		echo '  make test-free-threaded FREE_THREADED=/path/to/python3.14t' >&2; exit 2; }
	@'$(FREE_THREADED)' -c 'import sys; sys.exit(sys._is_gil_enabled())' 2>/dev/null || { \
		echo '$(FREE_THREADED) has an interpreter lock.' >&2; exit 2; }
	PYTHON_GIL=0 $(MAKE) --no-print-directory test PYTHON='$(FREE_THREADED)' \
		VENV=.venv-free-threaded EXTRAS='[monitor,test-free-threaded]'

chaos: $(VENV)/.test ## run a random mix of faults, SECONDS=30, ARGS="--seed N --sessions"
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),30) $(ARGS)

storm: $(VENV)/.test ## have exceptions and finalizers strike at random, SECONDS=60
	$(BIN)/python -m tests.chaos.storm --seconds $(or $(SECONDS),60) $(ARGS)

# A test of these targets may take longer than one of the test run.
pairs crowd cluster sessions: PATIENT = --quiet -o faulthandler_timeout=900

pairs: export PAIRS = $(or $(TIMES),20)
pairs: $(VENV)/.test ## have events meet in pairs, TIMES=20 as often as in a test run
	$(BIN)/python -m pytest $(PATIENT) tests/connection/test_pairs.py tests/connection/test_request_pairs.py \
		tests/connection/test_request_matrix.py tests/connection/test_session_events.py \
		tests/server/test_login.py tests/server/test_stops_under_load.py $(ARGS)

crowd: export CROWD = $(or $(COUNT),10000)
crowd: $(VENV)/.test ## connect COUNT=10000 peers to one server that shares its reading
	$(BIN)/python -m pytest $(PATIENT) tests/connection/test_crowd.py $(ARGS)

cluster: export RELOADS = $(or $(TIMES),20)
cluster: export PUBLICATIONS = 100000
cluster: export PAUSE = 30
cluster: $(VENV)/.test ## replace processes TIMES=20 times under load; kill and stop Redis
	$(BIN)/python -m pytest $(PATIENT) tests/cluster/test_supervisor.py -k reload $(ARGS)
	$(BIN)/python -m pytest $(PATIENT) tests/cluster/test_redis.py -k 'restarts or stop' $(ARGS)
	$(BIN)/python -m pytest $(PATIENT) tests/cluster/test_machines.py $(ARGS)

sessions: export SESSION_MESSAGES = $(or $(COUNT),100000)
sessions: $(VENV)/.test ## send COUNT=100000 messages each way over connections that are cut
	$(BIN)/python -m pytest $(PATIENT) tests/session tests/connection/test_session_mixes.py \
		tests/connection/test_session_races.py tests/connection/test_sessions.py \
		tests/cluster/test_passed_links.py tests/cluster/test_session_moves.py \
		tests/cluster/test_moved_sessions.py $(ARGS)

soak: $(VENV)/.test ## run all kinds of traffic, MINUTES=5, and look for what grows
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),5) $(ARGS)

fuzz: $(VENV)/.test ## feed decoder and server with garbage, SECONDS=60
	$(BIN)/python -m tests.chaos.fuzz --seconds $(or $(SECONDS),60) $(ARGS)

bench: $(VENV)/.bench ## compare the speed with that of others; takes a while
	$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(VENV)/.bench ## the same, shorter
	$(BIN)/python -m tests.bench --quick $(ARGS)

docs: $(VENV)/.docs ## build the guide and the reference as HTML in build/docs
	$(BIN)/python -m sphinx -W --keep-going --quiet --doctree-dir build/doctrees examples/guide build/docs
	@echo 'It begins at build/docs/index.html'

dist: $(VENV)/.dist ## build the wheel and the source distribution in dist/
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --outdir dist

clean: ## remove all that was made here, the virtual environments too
	rm -rf .venv .venv-* build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis
	find tao tests examples -name __pycache__ -prune -exec rm -rf {} +

# The virtual environment; made anew when the interpreter it was made with is gone.
$(BIN)/python:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo 'tao needs CPython 3.10 or newer, and "$(PYTHON)" is not that.' >&2; \
		echo 'Install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make a virtual environment: its venv module is incomplete.' >&2; \
		echo 'On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Making a virtual environment in $(VENV) ...'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: EXTRAS = [monitor]
$(VENV)/.test: EXTRAS = [monitor,test]
$(VENV)/.bench: EXTRAS = [monitor,bench]
$(VENV)/.docs: EXTRAS = [monitor,docs]

$(VENV)/.run $(VENV)/.test $(VENV)/.bench $(VENV)/.docs: $(BIN)/python setup.cfg setup.py
	@echo 'Installing tao$(EXTRAS) in $(VENV) ...'
	@$(PIP) install --editable '.$(EXTRAS)'
	@touch $@

$(VENV)/.dist: $(BIN)/python
	@$(PIP) install build
	@touch $@
