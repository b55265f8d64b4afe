# make run GOAL="..."   one sprint, from whatever state the machine is in
# make test             the whole suite, likewise
# make check            only the static checks
# make bench-audit      how fast the audit log is written and verified

.PHONY: run test check bench-audit
export GOAL

run:
	@test -n "$$GOAL" || { echo 'usage: make run GOAL="Compare AdamW vs. Lion optimizer on small transformer training"' >&2; exit 2; }
	@./setup.sh run
	@.venv/bin/labsandbox run "$$GOAL"

test:
	@./setup.sh test
	@$(MAKE) --no-print-directory check
	@.venv/bin/python -m pytest

check:
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache >/dev/null || .venv/bin/lint-imports --no-cache

bench-audit:
	@.venv/bin/python -m benchmarks.audit_log
