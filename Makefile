# Two commands for users: `make demo` and `make test`. The rest is for those who change the code.
# Everything lives in .venv; the first run installs it (see README for minutes and bytes).
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CORE := $(shell find embedding_store/native freshrank/native -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt 2>/dev/null)
ARGS ?=
PIP_ARGS ?=

.PHONY: demo test check lint types layers fix prove bench browser servers clean

demo: $(VENV)/ready ## Run the whole loop with a simulated audience; ARGS="--headless --seconds 30 --json"
	@$(BIN)/freshrank demo $(ARGS)

test: $(VENV)/ready browser servers ## Run every test
	$(BIN)/python -m pytest $(ARGS)

check: lint types layers test ## What CI runs

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.hpp' | xargs -r $(BIN)/clang-format --dry-run -Werror

types: $(VENV)/ready
	$(BIN)/mypy freshrank service trainer embedding_store
	$(BIN)/mypy --explicit-package-bases tests benchmarks

layers: $(VENV)/ready
	$(BIN)/lint-imports

fix: $(VENV)/ready ## Format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.hpp' | xargs -r $(BIN)/clang-format -i

prove: $(VENV)/ready ## The long proofs, in full; writes docs/proof.md; ARGS="--only flood,memory"
	$(BIN)/python -m tests.prove $(ARGS)

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

# The page is tested in a real browser. Debian's headless Chromium is installed where that is possible;
# elsewhere the page's tests say why they skip.
browser:
	@command -v chromium-headless-shell >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium-headless-shell >/dev/null; } \
	  || echo "no headless Chromium: the tests of /ui will be skipped (apt-get install chromium-headless-shell)"

# Tests of the real transports start a Kafka broker, whose jars Maven resolves once, and Redis; those
# of metrics and rules ask Prometheus' promtool.
servers:
	@{ command -v java && command -v mvn && command -v redis-server && command -v promtool; } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jre-headless maven redis-server >/dev/null \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } \
	  || echo "no Java, Maven, Redis or promtool: the tests that need them will be skipped (apt-get install default-jre-headless maven redis-server prometheus)"

$(VENV)/ready: pyproject.toml $(CORE)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: install python3, or make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version): make PYTHON=/path/to/python"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "A C++20 compiler is needed to build the native core: apt-get install g++ (Debian), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): 2 to 5 minutes and 7 GB, most of it PyTorch"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) --upgrade pip
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -e '.[train,baselines,kafka,redis,docs,dev]'
	@touch $@

clean:
	rm -rf build dist $(VENV)/ready .mypy_cache .ruff_cache .pytest_cache artifacts
