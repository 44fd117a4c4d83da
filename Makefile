# `make quickstart` and `make test` need nothing but Python >= 3.10 and make.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := outputs/quickstart
# Images of containers set this, and every process then compiles all that it imports: 16 s of CPU time in place of 7.
unexport PYTHONDONTWRITEBYTECODE
# Without this, `accelerate launch` gives a process on a CPU one thread.
CPU_THREADS := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: quickstart test test-fast test-lowest docs fuzz lint style clean

quickstart: .venv/installed
	$(BIN)/python examples/write_digits.py outputs/digits
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(CPU_THREADS) \
		examples/pretrain.py --config quickstart_digits \
		--train_data outputs/digits/train.parquet --eval_data outputs/digits/test.parquet \
		--output_dir $(QUICKSTART) --overwrite_output_dir

# No network and no accelerator are needed: the tests make their own images and models. The tests of a file share what
# they made, so a process takes whole files.
TEST_PROCESSES ?= 2
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile
test: .venv/installed
	$(PYTEST)

# What a change needs again and again: all but whole runs, launches, uploads, exports, wheels, browsers and pages, and
# all but the single tests that are marked `slow`.
SLOW_TESTS := conversion/exports conversion/test_cards.py conversion/test_outputs.py \
	$(addprefix curation/test_,builder.py cluster_executors.py curate.py increments.py launch.py stages_in_store.py stores.py) \
	demo distributed docs/test_snippets.py examples fake_gpu hub packaging pretraining/test_compilation.py \
	test_feature_files.py transformers_suite
test-fast: .venv/installed
	$(PYTEST) -m "not slow" $(addprefix --ignore=tests/,$(SLOW_TESTS))

# A part of the tests, with the lowest versions that setup.py names, in an environment of their own.
LOWEST := .venv-lowest
LOWEST_TESTS ?= models pretraining/test_losses.py pretraining/test_centering.py training/test_schedules.py \
	training/test_optimizer.py data/test_multi_crop.py data/test_masking.py test_features.py cli/test_recipes.py
test-lowest: $(LOWEST)/installed
	HF_HUB_OFFLINE=1 $(LOWEST)/bin/python -m pytest $(addprefix tests/,$(LOWEST_TESTS))

$(LOWEST)/installed: setup.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check setuptools
	$(LOWEST)/bin/python -m tests.packaging.lowest_versions > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
		--constraint $(LOWEST)/lowest.txt --editable . "pytest>=8.0"
	touch $@

# The site of the documents, with warnings as errors: links, anchors, pictures, and names of the reference that are gone.
docs: .venv/installed
	$(BIN)/zensical build --strict --clean
	@echo "open outputs/site/index.html, or: $(BIN)/zensical serve"

# Damaged image files, for so many seconds of each format; the suite has a short round of it.
FUZZ_SECONDS ?= 60
fuzz: .venv/installed
	HF_HUB_OFFLINE=1 DINOV2_HF_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/data/decoding/test_decoders_fuzzed.py

# Style, and the types of what the package exports: half a minute the first time, seconds after that.
lint: .venv/installed
	$(BIN)/ruff check src tests examples setup.py
	$(BIN)/ruff format --check src tests examples setup.py
	$(BIN)/mypy

style: .venv/installed
	$(BIN)/ruff check --fix src tests examples setup.py
	$(BIN)/ruff format src tests examples setup.py

.venv/installed: setup.py
	@if [ -d .venv ] && [ ! -f .venv/made_by_make ]; then \
		echo "error: .venv is there already and was not made by make; move it away, or use it yourself." >&2; exit 1; fi
	mkdir -p .venv && touch .venv/made_by_make
	$(PYTHON) -m venv .venv
	# Python compiles what it imports, which is a small part of this.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable ".[docs,quickstart,test]"
	touch $@

# Removes the environment that `make` made, and nothing else: `outputs` is where people train.
clean:
	if [ -f .venv/made_by_make ]; then rm -rf .venv; fi
	if [ -f $(LOWEST)/installed ]; then rm -rf $(LOWEST); fi
