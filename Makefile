# leadline: `make serve` and `make test` set everything up in .venv and run; a second call is quick.
# Written for GNU make 3.81, which macOS ships.

MODEL =
# int4, int8 or mixed: run the model in fewer bits; a hub's model is then pulled one shard at a time.
QUANTIZE =
PORT  = 8000
# What to do about PyTorch: auto, cpu (PyTorch's CPU index), cuda (the default index), skip (leave it to you).
TORCH = auto
# Any python from 3.11 on; the first that works is taken.
PYTHONS = python3.13 python3.12 python3.11 python3.14 python3 python
ARGS  =

VENV   = .venv
PYTHON = $(VENV)/bin/python
PIP    = $(PYTHON) -m pip --disable-pip-version-check
STAMP  = $(VENV)/.leadline
SHELL  = /bin/sh

# What the CPU kernels are built from: after an update that changed them they are built again.
KERNELS = $(wildcard leadline/ops/cpu/csrc/CMakeLists.txt leadline/ops/cpu/csrc/*.cpp leadline/ops/cpu/csrc/*.h \
  leadline/ops/cpu/csrc/*/*.h)

CPU_INDEX = https://download.pytorch.org/whl/cpu
PROBE_SECONDS = 5

.PHONY: help setup serve chat test test-slow browser screenshots gpu lint docs web clean

help:
	@echo "make serve      set up and serve website and API on 127.0.0.1:$(PORT)   MODEL=folder-or-hub-id QUANTIZE=int4 PORT=n ARGS='...'"
	@echo "make chat       set up and chat in the terminal              MODEL=folder-or-hub-id ARGS='...'"
	@echo "make test       set up and run the tests                     ARGS='-k name'"
	@echo "make test-slow  kills, loads, soaks, full-width shapes; writes benchmarks/test-slow.txt"
	@echo "make browser    the website's tests, in a Chromium that is installed"
	@echo "make screenshots  pictures of the website into docs/screenshots/"
	@echo "make gpu        the tests that need a GPU"
	@echo "make lint       ruff, formatting, types"
	@echo "make docs       write docs/cli.md anew"
	@echo "make web        build the website anew from web/ (needs Node 20 or newer)"
	@echo "make setup      only set up; TORCH=auto|cpu|cuda|skip says which PyTorch"
	@echo "make clean      remove .venv, caches and builds"

serve: $(STAMP)-app
	@$(PYTHON) -m leadline serve --port $(PORT) $(if $(MODEL),--model "$(MODEL)") $(if $(QUANTIZE),--quantize $(QUANTIZE)) $(ARGS)

chat: $(STAMP)-app
	@$(PYTHON) -m leadline chat $(if $(MODEL),--model "$(MODEL)") $(if $(QUANTIZE),--quantize $(QUANTIZE)) $(ARGS)

setup: $(STAMP)-app

test: $(STAMP)-test
	@$(PYTHON) -m pytest -ra $(ARGS)

# What ran and how it ended is kept, for claims that rest on it.
test-slow: $(STAMP)-test
	@mkdir -p benchmarks; status=0; \
	$(PYTHON) -m pytest -m slow -ra --durations=0 $(ARGS) > benchmarks/test-slow.txt 2>&1 || status=$$?; \
	cat benchmarks/test-slow.txt; exit $$status

# A Chromium of the system's (Debian's `chromium`, or CHROMIUM=/path/to/one): none is downloaded.
browser: $(STAMP)-test
	@$(PYTHON) -m pytest -m browser -ra $(ARGS)

screenshots: $(STAMP)-test
	@$(PYTHON) -m tests.e2e.screenshots

gpu: $(STAMP)-test
	@$(PYTHON) -m pytest -m gpu -ra $(ARGS)

lint: $(STAMP)-test
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

docs: $(STAMP)-test
	@$(PYTHON) -m tests.cli.reference

web:
	@cd web && npm ci && npm run check && npm run build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf leadline/ops/cpu/*.so leadline/ops/cpu/csrc/CMakeFiles leadline/ops/cpu/csrc/.cmake leadline/ops/cpu/csrc/.ninja_* \
	  leadline/ops/cpu/csrc/CMakeCache.txt leadline/ops/cpu/csrc/CMakeInit.txt leadline/ops/cpu/csrc/build.ninja \
	  leadline/ops/cpu/csrc/cmake_install.cmake leadline/ops/cpu/csrc/*.a leadline/ops/cpu/csrc/.skbuild-info.json
	find leadline tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate counts when it starts, is new enough and can make environments: shims and stripped pythons often cannot.
$(STAMP)-venv:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "leadline: $$($$python --version) in $(VENV)"; \
	    $$python -m venv $(VENV) && touch $@ && exit 0; exit 1; \
	  fi; \
	done; \
	echo "leadline: no Python 3.11 or newer with venv was found (tried: $(PYTHONS)); install one," \
	  "or name it: make PYTHONS=/path/to/python3" >&2; exit 2

# The environment's own torch is kept when it is new enough.
$(STAMP)-torch: $(STAMP)-venv requirements/torch.txt
	@has() { $(PYTHON) -c 'import sys, torch; v = torch.__version__.split("."); sys.exit((int(v[0]), int(v[1])) < (2, 11))' 2>/dev/null; }; \
	reachable() { $(PYTHON) -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=$(PROBE_SECONDS))' \
	  $(CPU_INDEX)/torch/ >/dev/null 2>&1; }; \
	from_cpu_index() { echo "leadline: downloading PyTorch for the CPU, about 200 MB"; \
	  $(PIP) install --quiet --index-url $(CPU_INDEX) -r requirements/torch.txt; }; \
	from_default() { echo "leadline: downloading PyTorch, $$1"; $(PIP) install --quiet -r requirements/torch.txt; }; \
	cuda_size="about 2.7 GB with CUDA (make TORCH=cpu takes 200 MB)"; \
	case "$(TORCH)" in auto|cpu|cuda|skip) ;; *) \
	  echo "leadline: TORCH must be auto, cpu, cuda or skip, not '$(TORCH)'" >&2; exit 2;; esac; \
	if [ "$(TORCH)" = skip ] || has; then :; \
	elif [ "$(TORCH)" = cpu ]; then from_cpu_index; \
	elif [ "$$(uname -s)" = Darwin ]; then from_default "about 100 MB"; \
	elif [ "$(TORCH)" = cuda ] || nvidia-smi -L >/dev/null 2>&1; then from_default "$$cuda_size"; \
	elif reachable; then from_cpu_index; \
	else from_default "200 MB for the CPU to $$cuda_size: $(CPU_INDEX) was not reached in $(PROBE_SECONDS) s"; fi \
	&& touch $@

# Without torch, as TORCH=skip may leave it, the platform is installed and the engine is not.
$(STAMP)-app: $(STAMP)-torch pyproject.toml $(KERNELS)
	@command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 || \
	  echo "leadline: no C++ compiler was found; leadline runs on the PyTorch path" >&2
	@if $(PYTHON) -c 'import torch' >/dev/null 2>&1; then extras=engine,server; else extras=server; \
	  echo "leadline: no torch in $(VENV): only the client and the server are installed" >&2; fi; \
	echo "leadline: downloading what leadline[$$extras] needs, about 40 MB"; \
	$(PIP) install --quiet -e ".[$$extras]" && touch $@

$(STAMP)-test: $(STAMP)-app
	@echo "leadline: downloading what the tests need, about 170 MB"; \
	$(PIP) install --quiet -e ".[test]" && touch $@
