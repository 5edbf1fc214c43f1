# The doors of this repository. Each works alone on a fresh machine: it sets up what it needs.
.PHONY: setup demo test bench soak lint lock

PYTHON := .venv/bin/python
PHOTOS ?=

setup: ## a virtual environment with the locked packages, and Java
	@scripts/setup

demo: setup ## near-duplicates among real photographs whose truth is known
	@$(PYTHON) -m benchmarks demo

test: ## lint, types and every test
	@scripts/setup --tests
	@$(MAKE) --no-print-directory lint
	@$(PYTHON) -m pytest -n 2 --dist loadfile

lint: setup ## ruff and mypy
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench: setup ## figures against peers; PHOTOS=folder of photographs
	@test -n "$(PHOTOS)" || { echo "give a folder of photographs: make bench PHOTOS=~/photos" >&2; exit 2; }
	@$(PYTHON) -m benchmarks codec
	@.venv/bin/neardup evaluate "$(PHOTOS)"
	@$(PYTHON) -m benchmarks batch --images 100000 --peers flat,ivf
	@$(PYTHON) -m benchmarks dedup "$(PHOTOS)"

soak: setup ## ten minutes of three replicas on one Redis under load, while a replica and Redis are killed
	@$(PYTHON) -m benchmarks soak

lock: ## pin the dependencies again
	uv pip compile -q --universal --python-version 3.11 pyproject.toml --extra cpu --extra bench --extra dev \
		--no-emit-index-url --generate-hashes --custom-compile-command "make lock" -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 pyproject.toml --extra gpu \
		--no-emit-index-url --generate-hashes --custom-compile-command "make lock" -o requirements-gpu.lock
