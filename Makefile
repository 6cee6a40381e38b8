# Accordion: `make run` and `make test` set up all they need. `make help` lists every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PROFILE ?= smoke
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup run test lint format up down doctor data lock package clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: ## make the environments (.venv, .venv-triton); a second call does nothing
	@infra/setup.sh

run: setup ## the whole pipeline, from data to a model served by Triton (PROFILE=smoke)
	@accordion up
	pyflyte -c flyte.config run workflows/end_to_end.py end_to_end --profile $(PROFILE)
	@accordion status --latest

test: setup ## every test
	$(PYTHON) -m pytest

lint: setup ## formatter, linter and type checker
	ruff format --check .
	ruff check .
	mypy

format: setup ## format the code and mend what the linter can
	ruff format .
	ruff check --fix .

up: setup ## start MLflow and Triton
	@accordion up

down: setup ## stop them
	@accordion down

doctor: setup ## check this machine and name what is missing
	@accordion doctor

package: setup ## serialize every workflow and launch plan for a Flyte cluster
	pyflyte -c flyte.config --pkgs workflows package --force --output runs/flyte-package.tgz

data: setup ## the full tier of the data, for PROFILE=workstation and cluster (PARTS=tuxpaint adds 161 MB)
	@$(PYTHON) data/build.py full $(if $(PARTS),--parts $(PARTS))

lock: setup ## resolve requirements.in into requirements.lock
	@infra/lock.sh

clean: down ## stop the services and remove everything that runs made (not the environments)
	rm -rf runs
