# Users need two targets, quickstart and test; both set up the virtual environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FAMILY ?= gpt
FAMILIES := gpt bert t5 vit mae
ifeq ($(filter $(FAMILY),$(FAMILIES)),)
$(error FAMILY=$(FAMILY): no such family; there are $(FAMILIES))
endif
VOCABULARY := $(if $(filter gpt,$(FAMILY)),512,384)
OUT ?= quickstart/$(FAMILY)
TEXT = $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('stdlib'))")

.PHONY: quickstart test check golden models parity any-checkpoint resume any-signal soak test-slurm hostile gpu-check convergence convergence-optimizers setup \
	bench bench-trainer bench-accumulation bench-checkpoint bench-loss-memory bench-optimizers bench-tokenizer-memory \
	bench-agreement bench-scale bench-start-up bench-adapter

quickstart: setup $(OUT)/data/manifest.json
	$(BIN)/pretrain experiment=quickstart_$(FAMILY) data.path=$(OUT)/data run_dir=$(OUT)/run
	$(BIN)/pretrain-show run_dir=$(OUT)/run
ifeq ($(FAMILY),vit)
	$(BIN)/pretrain experiment=quickstart_mae data.path=$(OUT)/data run_dir=$(OUT)/mae
	$(BIN)/pretrain-show run_dir=$(OUT)/mae
endif

ifneq ($(filter $(FAMILY),vit mae),)
$(OUT)/data/manifest.json: | setup
	$(BIN)/python -m data_pipeline.sources.digits $(OUT)/digits
	$(BIN)/pretrain-data corpus=images "corpus.inputs=[$(OUT)/digits]" output=$(OUT)/data valid_fraction=0.15
else
$(OUT)/data/manifest.json: | setup
	$(BIN)/pretrain-data corpus=text "corpus.inputs=[$(TEXT)]" \
		"corpus.exclude=['*/test/*','*/tests/*','*/site-packages/*','*/lib2to3/*']" \
		output=$(OUT)/data tokenizer.vocab_size=$(VOCABULARY) valid_fraction=0.02
endif

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=5

# Lint, format and types
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The values that tests/golden pins, recomputed: for an intended change, with a line in CHANGELOG.md
golden: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden.rewrite

# The table of docs/models.md, read off the code
models: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.models.catalog

parity: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.distributed.parity
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.distributed.relatives
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.distributed.adapter
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hub.round_trip

any-checkpoint: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.distributed.any_checkpoint

# Every layout resumed on four ranks, bit for bit; `make test` tries one of each engine
resume: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.distributed.resume

# pretrain-data is stopped at 50 random moments; `make test` tries a few
any-signal: setup
	$(BIN)/python -m tests.data_pipeline.any_signal

# Files, folders and arguments that strangers may hand over, each with its promised end; `make test` tries some
hostile: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile

# A run of two ranks is killed and hung at 30 random moments, and rolled back under every layout; `make test` does some
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak

# slurm/pretrain.sbatch on a real SLURM of virtual nodes; as root it installs Debian's packages, elsewhere it is skipped
test-slurm: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.slurm

gpu-check: setup
	$(BIN)/python -m tests.distributed.gpu_check

# All that need no peers; each is a target of its own, as is bench-optimizers, which times peers that PYTHONPATH names
bench: bench-trainer bench-accumulation bench-checkpoint bench-loss-memory bench-tokenizer-memory bench-agreement bench-scale \
	bench-start-up

bench-trainer bench-accumulation bench-checkpoint bench-loss-memory bench-optimizers bench-scale bench-start-up bench-adapter: bench-%: setup
	$(BIN)/python -m benchmarks.$(subst -,_,$*)

bench-agreement: setup
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m benchmarks.agreement

bench-tokenizer-memory: setup
	$(BIN)/python -m benchmarks.tokenizer_memory bpe 8192 8 $(TEXT)

# Learning beside a plain loop of transformers' models, on two cores; the tables go into docs/benchmarks.md
convergence: setup
	$(BIN)/python -m benchmarks.convergence

convergence-optimizers: setup
	$(BIN)/python -m benchmarks.convergence.optimizers

setup: $(VENV)/installed

# torch first: DeepSpeed's source package looks for it while it is built
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
