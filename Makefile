# Every target makes .venv itself; nothing but Python >= 3.11, make and a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin
# Freed memory is kept by the process: on a CPU the page faults of large activations cost several times the arithmetic.
export MALLOC_MMAP_THRESHOLD_ ?= 8589934592
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

SIZE ?= cpu
JOBS ?= 1
# processes that share the tests; each of them has one thread
TEST_JOBS ?= 2

.PHONY: install demo study bench test test-all check audit format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python recipes/demo.py

study: install
	$(BIN)/python recipes/study.py --study recipes/cifar100_plus/study.yaml --size $(SIZE) --jobs $(JOBS)
	$(BIN)/python recipes/study_report.py --study recipes/cifar100_plus/study.yaml --size $(SIZE) --output_dir docs/studies

bench: install
	$(BIN)/python -m benchmarks

test: install
	$(BIN)/python -m pytest -m 'not slow' -n $(TEST_JOBS) --dist worksteal

test-all: install
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known vulnerabilities of what is installed, by the Python Package Index; its mirrors have no advisories.
audit: install
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit; }
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv/audit/requirements.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r .venv/audit/requirements.txt

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache .mypy_cache
