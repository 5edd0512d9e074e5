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
BIN := .venv/bin
APP := apps/totalspineseg
READY := .venv/.ready

.PHONY: setup serve serve-ohif test test-browser test-ohif check demo bench bench-numbering bench-real bench-cli bench-runtimes \
  bench-starter bench-retrain lock wheelhouse clean

setup: $(READY) $(BIN)/totalspineseg

$(READY): requirements.lock Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python 3.11 or 3.12 is required, got {v[0]}.{v[1]}; run make with PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(FROM_WHEELS) uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python $(FROM_WHEELS) requirements.lock
	@# Byte code now, so that the first start of the server takes 10 s rather than 50.
	-@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1
	@touch $@

# The command's code is the app's lib: a launcher, no second copy and no package "lib" in site-packages.
$(BIN)/totalspineseg: $(READY)
	@printf '#!%s\nimport sys\n\nsys.path.insert(0, %s)\nfrom lib.cli import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n' \
	  "$(abspath $(BIN))/python" "'$(abspath $(APP))'" > $@
	@chmod +x $@

serve: setup
	$(BIN)/totalspineseg serve --studies "$(STUDIES)" --host $(HOST) --port $(PORT) $(if $(NAME),--name "$(NAME)") \
	  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(RUNTIME),--runtime $(RUNTIME))

# Needs Debian's packages orthanc, orthanc-dicomweb; another PACS with DICOMWEB=address.
serve-ohif: setup
	$(BIN)/python tools/serve_ohif.py --folder "$(OHIF_STUDIES)" --host $(HOST) --port $(PORT) $(if $(NAME),--name "$(NAME)") \
	  $(if $(DICOMWEB),--dicomweb "$(DICOMWEB)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# A process for each file (5: none of its tests runs here): with every native library of the tests in one process, it
# crashed after the last test.
test: setup
	@set -e; for file in tests/test_*.py; do $(BIN)/python -m pytest $$file || [ $$? -eq 5 ]; done

# Needs Debian's package chromium.
test-browser: setup
	$(BIN)/python -m pytest -m browser

# Needs Debian's packages orthanc, orthanc-dicomweb, chromium.
test-ohif: setup
	$(BIN)/python -m pytest -m ohif

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	$(BIN)/python tools/demo.py

bench: setup
	$(BIN)/python tools/bench.py

bench-numbering: setup
	$(BIN)/python tools/bench_numbering.py

# REAL=folder of real scans with truth, SPIDER=folder of its slabs; either may be left out.
bench-real: setup
	$(BIN)/python tools/bench_real.py $(if $(REAL),--real "$(REAL)") $(if $(SPIDER),--spider "$(SPIDER)")

bench-cli: setup
	$(BIN)/python tools/bench_cli.py

bench-runtimes: setup
	$(BIN)/python tools/bench_runtimes.py

# CASES=synthetic spines, REAL=folder of real scans with labels, PICTURES=folder for their results; each may be left out.
bench-starter: setup
	$(BIN)/python tools/bench_starter.py $(if $(CASES),--cases "$(CASES)") $(if $(REAL),--real "$(REAL)") \
	  $(if $(PICTURES),--pictures "$(PICTURES)")

bench-retrain: setup
	$(BIN)/python tools/bench_retrain.py

# For machines without internet: every package of the lock, and what builds those that come as source.
wheelhouse: setup
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d wheelhouse uv==$(UV_VERSION) setuptools wheel
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation -d wheelhouse \
	  -r requirements.lock

# Rewrites the lock from the pins; the tested set changes only through this.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header requirements-dev.txt -o requirements.lock

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
