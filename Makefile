# One venv, made by uv where it is on PATH and by Python itself elsewhere. `make help` lists the targets.
SHELL := /bin/sh
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
# What `make run` needs, and the same with the tools of development.
LOCK := requirements.lock
DEV_LOCK := requirements-dev.lock
# `make audit` has an environment of its own: what it needs isn't needed to develop.
AUDIT_LOCK := requirements-audit.lock
AUDIT_VENV := $(VENV)-audit
AUDIT_STAMP := $(AUDIT_VENV)/.installed
# So has `make docs`.
DOCS_LOCK := requirements-docs.lock
DOCS_VENV := $(VENV)-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
DOCS_OUT := build/docs
AUDIT ?= $(AUDIT_VENV)/bin/pip-audit
# Where advisories come from: pypi or osv.
AUDIT_SERVICE ?= pypi
# A version with known advisories.
CANARY := jinja2==2.10
STAMP := $(VENV)/.installed
# Minify the browser client, one after the other: a tenth smaller than what either makes of it.
MINIFIERS := esbuild@0.28.2 terser@5.51.4
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(PYTHON) -m pip --disable-pip-version-check
PINNING := --universal --generate-hashes --no-annotate --no-header --python-version 3.11
LOCKING := $(PINNING) --group build
ARGS ?=
# Half of the tests' time is waiting, so there are more workers than cores. ARGS="-n 0" runs them in one process.
WORKERS ?= 6
PYTEST := -m pytest -n $(WORKERS)
# Coverage doubles the CPU time of the tests: `make test COVERAGE=yes`. Only a whole run says something about it.
COVERAGE ?=
MEASURED = $(if $(ARGS),,$(if $(COVERAGE),--cov=pushsse --cov-branch --cov-report=term:skip-covered --cov-fail-under=90))

.DEFAULT_GOAL := help
.PHONY: help run test quick long lowest newest check audit advisories format client clients shots docs stack faults bench lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(STAMP) ## serve on http://127.0.0.1:8000 with nothing else installed; LAN=1 for a phone, too; ARGS="--port 9000"
	@exec $(VENV)/bin/pushsse serve $(if $(LAN),--lan) $(ARGS)

test: $(DEV_STAMP) ## the tests; COVERAGE=yes measures branch coverage; ARGS="tests/cli -k listen" narrows
	$(PYTHON) $(PYTEST) $(MEASURED) $(if $(ARGS),$(ARGS),-m "not long")

long: $(DEV_STAMP) ## the tests that `make test` leaves out, since they take long: before a release
	$(PYTHON) $(PYTEST) -m long $(ARGS)

quick: $(DEV_STAMP) ## the tests that take no process, no part and no time: for the work in between
	$(PYTHON) $(PYTEST) -m "not real and not slow and not long" $(ARGS)

lowest: ## the tests with the oldest versions that pyproject.toml allows; needs uv; ARGS as for test
	$(call resolved,lowest-direct,$(VENV)-lowest)

newest: ## the tests with the newest versions that pyproject.toml allows; needs uv; ARGS as for test
	$(call resolved,highest,$(VENV)-newest)

check: $(DEV_STAMP) ## format, lint, types, imports, and what bandit finds
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy --strict -p pushsse -p deploy -p bench -p faults -p tests
	$(VENV)/bin/lint-imports
	$(VENV)/bin/bandit -q -c pyproject.toml -r pushsse

audit: $(DEV_STAMP) $(AUDIT_STAMP) ## what bandit finds, and known advisories about what is locked; needs the network
	$(VENV)/bin/bandit -q -c pyproject.toml -r pushsse
	@$(MAKE) --no-print-directory advisories

# pip-audit says "No known vulnerabilities found" also where its source knows nothing, as a mirror does. So it has to
# find the canary's first.
advisories: $(AUDIT_STAMP)
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; echo '$(CANARY)' > "$$folder/canary.txt"; \
	$(AUDIT) --progress-spinner off -s $(AUDIT_SERVICE) --disable-pip --no-deps -r "$$folder/canary.txt" \
	  > "$$folder/said" 2>&1 || true; \
	if ! grep -qE '^jinja2 .*(PYSEC|GHSA|CVE)-' "$$folder/said"; then \
	  cat "$$folder/said" >&2; \
	  echo "the source of advisories ($(AUDIT_SERVICE)) can't be reached, or has none about $(CANARY): nothing was audited" >&2; \
	  exit 1; \
	fi
	$(AUDIT) --progress-spinner off -s $(AUDIT_SERVICE) --strict --disable-pip --require-hashes \
	  -r $(DEV_LOCK) -r $(AUDIT_LOCK) -r $(DOCS_LOCK)

format: $(DEV_STAMP) ## formats, and repairs what lint can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

client: ## minifies the browser client, which the service then serves, and packs it for npm into dist/; needs npm
	@cd pushsse/client && npm exec --yes $(MINIFIERS:%=--package=%) -- sh -c 'set -e; \
	  esbuild pushsse.js --minify --format=esm --target=es2022 --log-level=warning >pushsse.tmp; \
	  terser pushsse.tmp --module --ecma 2022 --compress passes=3 --mangle --output pushsse.tmp; \
	  { echo "/* pushsse.js; SHA-256 of the source: $$(sha256sum pushsse.js | cut -c1-16) */"; cat pushsse.tmp; } \
	    >pushsse.min.js; rm pushsse.tmp'
	@mkdir -p dist && npm pack --silent ./pushsse/client --pack-destination dist

shots: $(DEV_STAMP) ## makes the pictures of the page in docs/images anew, with Chromium
	SHOTS=$(CURDIR)/docs/images $(PYTHON) -m pytest -q -n 0 tests/deployed/page/test_shots.py

docs: $(DOCS_STAMP) ## renders the docs into build/docs; fails where a link, an anchor or an image leads nowhere
	@$(DOCS_VENV)/bin/python -m sphinx -q -W --keep-going -E -a -c docs -d $(DOCS_OUT)/.doctrees . $(DOCS_OUT)
	@echo "open $(DOCS_OUT)/index.html"

stack: $(DEV_STAMP) ## the whole deployment on this machine: Kafka, Redis, PostgreSQL, two nodes, nginx
	@exec $(PYTHON) -m deploy.stack $(ARGS)

faults: $(DEV_STAMP) ## parts are killed, stalled and emptied under load
	@exec $(PYTHON) -m faults.run $(ARGS)

clients: $(DEV_STAMP) ## other people's clients over what happens to streams; writes the table in docs/clients.md; ARGS="curl --quick"
	@exec $(PYTHON) -m tests.clients $(ARGS)

bench: $(DEV_STAMP) ## measures throughput, latency and memory
	@exec $(PYTHON) -m bench $(ARGS)

lock: ## pins the newest versions that pyproject.toml allows; needs uv
	uv pip compile -q $(LOCKING) --upgrade --group dev pyproject.toml -o $(DEV_LOCK)
	uv pip compile -q $(LOCKING) --constraint $(DEV_LOCK) pyproject.toml -o $(LOCK)
	uv pip compile -q $(PINNING) --upgrade --group audit -o $(AUDIT_LOCK)
	uv pip compile -q $(PINNING) --upgrade --group docs -o $(DOCS_LOCK)
	@! grep -nE '://|--(extra-)?index-url|--find-links' $(LOCK) $(DEV_LOCK) $(AUDIT_LOCK) $(DOCS_LOCK)

clean: ## removes the venv, caches and what was built
	rm -rf $(VENV) $(AUDIT_VENV) $(DOCS_VENV) $(VENV)-lowest $(VENV)-newest .parts .stack dist build htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The second time this is instant. The locks hold binary packages for Python 3.11 to 3.13, with their hashes.
# Nothing is resolved: what is locked is what is installed, whatever has been released since.
# It is compiled at once, as pip does. Where PYTHONDONTWRITEBYTECODE is set, each start would otherwise take 1.5 s
# of CPU more, for ever.
$(STAMP): pyproject.toml $(LOCK)
	@$(call install,$(LOCK))
	@touch $@

$(DEV_STAMP): pyproject.toml $(DEV_LOCK)
	@$(call install,$(DEV_LOCK))
	@touch $@ $(STAMP)

$(AUDIT_STAMP): $(AUDIT_LOCK)
	@$(call tools,$(AUDIT_LOCK),$(AUDIT_VENV))
	@touch $@

$(DOCS_STAMP): $(DOCS_LOCK)
	@$(call tools,$(DOCS_LOCK),$(DOCS_VENV))
	@touch $@

# tools LOCK VENV: makes an environment beside, and installs what LOCK lists.
define tools
set -e; if command -v uv >/dev/null 2>&1; then \
  [ -x $(2)/bin/python ] || uv venv -q --python '>=3.11,<3.14' $(2); \
  uv pip install -q --python $(2) --no-deps --require-hashes --only-binary :all: -r $(1); \
else \
  [ -x $(2)/bin/python ] || $(PYTHON3) -m venv $(2); \
  $(2)/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes --only-binary :all: -r $(1); \
fi
endef

# install LOCK: makes the environment, installs what LOCK lists and this source, and checks that the set is whole.
define install
if command -v uv >/dev/null 2>&1; then set -e; \
  echo "installing $(1) with uv"; \
  [ -x $(PYTHON) ] || uv venv -q --python '>=3.11,<3.14' $(VENV); \
  uv pip install -q --python $(PYTHON) --compile-bytecode --no-deps --require-hashes --only-binary :all: -r $(1); \
  uv pip install -q --python $(PYTHON) --no-deps --no-build-isolation -e .; \
  uv pip check -q --python $(PYTHON); \
else set -e; \
  echo "installing $(1) with pip"; \
  $(PYTHON3) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "pushsse needs Python 3.11 to 3.13")'; \
  [ -x $(PYTHON) ] || $(PYTHON3) -m venv $(VENV); \
  $(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null; \
  $(PIP) install -q --no-deps --require-hashes --only-binary :all: -r $(1); \
  $(PIP) install -q --no-deps --no-build-isolation -e .; \
  $(PIP) check; \
fi
endef

# resolved RESOLUTION VENV: runs the tests in an environment of its own, whose versions pyproject.toml alone decides.
define resolved
	uv venv -q --allow-existing --python '>=3.11,<3.14' $(2)
	uv pip install -q --python $(2) --compile-bytecode --resolution $(1) --upgrade --group build --group dev -e .
	uv pip check -q --python $(2)
	$(2)/bin/python $(PYTEST) $(ARGS)
endef
