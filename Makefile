# `make study` and `make test` do all their own set-up, and are quick when it is there.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= nbs/studies/embedded.yaml
JUDGED ?= nbs/studies/embedded_full.yaml nbs/studies/imagenet_small.yaml
BENCH ?=

# README.md is nbs/index.ipynb, with links from the top
README = $(BIN)/jupyter nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | sed 's|](\.\./|](|g'

.PHONY: study test faults setup report bench compression readme check-readme

study: setup  ## run the embedded study (what has no record yet) and build its report
	$(BIN)/vpstudy run $(STUDY)

test: setup  ## everything CI checks
	$(BIN)/python .ci/test.py

faults: setup  ## kill, fill, damage and interrupt a small study, and see that nothing finished is lost
	$(BIN)/python .ci/faults.py

report: setup  ## build the site that judges the claims, figures/report/index.html, from the records and the tables that are there
	$(foreach study,$(JUDGED),$(BIN)/vpstudy report $(study) &&) true

bench: setup  ## time every step of the fast path against the published loop (half an hour, nothing beside it); BENCH="-p nets resnet18" for a part
	mkdir -p data/reports
	$(BIN)/papermill nbs/bench/bench_frozen.ipynb data/reports/bench_frozen.ipynb -p figures $(CURDIR)/figures $(BENCH)
	cat figures/bench_frozen.md

compression: setup  ## compress the glyphs networks by one method after the other and measure them upstream (what has no file yet)
	mkdir -p data/reports
	$(BIN)/papermill nbs/reports/report_compression.ipynb data/reports/report_compression.ipynb -p figures $(CURDIR)/figures

readme: setup  ## write README.md from nbs/index.ipynb
	$(README) > README.md

check-readme: setup
	$(README) | diff README.md -

setup: $(VENV)/.ready  ## a virtual environment with the exact versions of constraints.txt

$(VENV)/.ready: settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "vpstudy needs Python 3.11, 3.12 or 3.13; none was found (say where: make PYTHON=/path/to/python3)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	mkdir -p $(VENV)/etc/ipython && echo "c.IPKernelApp.log_level = 'ERROR'" > $(VENV)/etc/ipython/ipython_kernel_config.py # or each kernel warns that it talks over TCP
	touch $@
