# Every target of the repository. `make help` lists them.
#
# A paper is a folder with a pyproject.toml and a package of its own name; it is found here, not listed, and all of its
# targets come from the static pattern rules below. `shared` (paperkit) has setup, test, bench and clean of the same kind.

PAPERS   := $(sort $(foreach p,$(wildcard */pyproject.toml),$(if $(wildcard $(dir $p)src/$(patsubst %/,%,$(dir $p))/__init__.py),$(patsubst %/,%,$(dir $p)))))
PROJECTS := shared $(PAPERS)
PYTHON   ?= python3
# What the caller named, nothing otherwise: an environment that exists keeps its interpreter until another is asked for.
NAMED    := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint clean $(foreach p,$(PAPERS),$(addprefix $p-,train eval test bench setup clean)) \
        shared-setup shared-test shared-bench shared-clean

help:  ## this list
	@echo 'Whole repository'
	@echo '  make demo              every paper'"'"'s embedded experiment, then one page with tables and figures: report.html'
	@echo '  make test              the tests of shared and of every paper, each in its own environment, with a closing table'
	@echo '  make lint              ruff, types, repeated blocks'
	@echo '  make clean             remove every environment, every run, the tools and the report'
	@echo '  .ci/run                lint, then test: what continuous integration runs'
	@for p in $(PAPERS); do \
	  sed -n 's/^description = "\(.*\)"/\n\1/p' $$p/pyproject.toml; \
	  printf '  make %-18sembedded experiment on real digits; real data: CONFIG=FILE ARGS="--data.root DIR ..."\n' $$p-train; \
	  printf '  make %-18sevaluate the newest finished run, or CKPT=RUN_OR_FILE: table, metrics.json, figures\n' $$p-eval; \
	  printf '  make %-18sits tests\n' $$p-test; \
	  printf '  make %-18sspeed and memory against the baselines, as ratios of one run\n' $$p-bench; \
	  printf '  make %-18sits environment, %s/.venv (PYTHON=python3.12 names the interpreter)\n' $$p-setup $$p; \
	  printf '  make %-18sremove its environment, its runs and all else that it left\n' $$p-clean; \
	done
	@echo
	@echo 'paperkit, the common kit in shared/'
	@echo '  make shared-test       its tests'
	@echo '  make shared-bench      what each saving of the survey on efficient training is worth here'
	@echo '  make shared-setup      its environment, shared/.venv'
	@echo '  make shared-clean      remove its environment and what its bench wrote'

# --- environments ------------------------------------------------------------------------------------------------
# The stamp is newer than everything that decides what is installed; a call that finds it so does nothing. An interpreter
# that was named and is not the environment's makes the stamp old.

ifneq ($(NAMED),)
VERSION := $(shell '$(NAMED)' -c 'import sys; print("%d.%d" % sys.version_info[:2])')
.PHONY: $(foreach p,$(PROJECTS),$(if $(wildcard $p/.venv/lib/python$(VERSION)),,$p/.venv/.ready))
endif

$(PROJECTS:%=%-setup): %-setup: %/.venv/.ready
	@echo '$*/.venv is ready'

$(PROJECTS:%=%/.venv/.ready): %/.venv/.ready: %/constraints.txt %/pyproject.toml shared/pyproject.toml scripts/setup_env.sh
	@bash scripts/setup_env.sh $* '$(NAMED)'

# --- one paper ---------------------------------------------------------------------------------------------------

$(PAPERS:%=%-train): %-train: %/.venv/.ready
	@$*/.venv/bin/$* train $(if $(CONFIG),--config '$(CONFIG)') $(ARGS)

$(PAPERS:%=%-eval): %-eval: %/.venv/.ready
	@$*/.venv/bin/$* eval $(if $(CONFIG),--config '$(CONFIG)') $(if $(CKPT),--ckpt '$(CKPT)') $(ARGS)

$(PAPERS:%=%-bench): %-bench: %/.venv/.ready
	@$*/.venv/bin/$* bench $(ARGS)

shared-bench: shared/.venv/.ready
	@shared/.venv/bin/python shared/bench savings $(ARGS)

$(PROJECTS:%=%-test): %-test: %/.venv/.ready
	@$(PYTHON) scripts/run_tests.py $* -- $(ARGS)

# What a project leaves: its environment, what its verbs wrote (runs/<project>/<verb or name>), and what the tools keep.
$(PROJECTS:%=%-clean): %-clean:
	rm -rf $*/.venv $*/build $*/src/*.egg-info $*/.pytest_cache $*/.ruff_cache .mypy_cache/$* runs/$*
	find $* -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the whole repository ----------------------------------------------------------------------------------------

demo: shared/.venv/.ready
	@shared/.venv/bin/python scripts/demo.py $(ARGS)

test:
	@$(PYTHON) scripts/run_tests.py $(PROJECTS) -- $(ARGS)

lint:
	@bash scripts/lint.sh '$(PYTHON)' $(PROJECTS)

clean: $(PROJECTS:%=%-clean)
	rm -rf .tools .mypy_cache .ruff_cache .pytest_cache runs report.html
