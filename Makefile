# make run GOAL="..."   one sprint, from whatever state the machine is in
# make test             the whole suite, likewise
# make check            only the static checks
# make test-gpu         the tests that need an NVIDIA device, on a machine that has one; writes docs/gpu-report.md
# make bench            how fast everything is, beside plain Docker; writes benchmarks/latest.json
#                       (OTHERS=PYTHON: beside llm-sandbox and autogen-ext too, where that Python has them)

.PHONY: run test test-gpu check bench
PYTHON ?= .venv/bin/python
export GOAL

run:
	@test -n "$$GOAL" || { echo 'usage: make run GOAL="Compare AdamW vs. Lion optimizer on small transformer training"' >&2; exit 2; }
	@./setup.sh run
	@.venv/bin/labsandbox run "$$GOAL"

test:
	@./setup.sh test
	@$(MAKE) --no-print-directory check
	@.venv/bin/python -m pytest -n 2 --dist loadfile

# With PYTHON set, the machine is taken as it is: that Python has labsandbox's packages, and runc is on PATH.
test-gpu:
	@test "$(origin PYTHON)" != file || ./setup.sh test-gpu
	@$(PYTHON) -m tests.gpu_report

check:
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache >/dev/null || .venv/bin/lint-imports --no-cache

bench:
	@OTHERS="$(OTHERS)" .venv/bin/python -m benchmarks
