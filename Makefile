# make demo   the Moon in 3D: a recorded drive through the ROS 2 nodes, results in out/demo
# make report   how good it is, as one page for a browser: out/evaluate/report.html
# make test   linters, types and tests; make test ROS=kilted   the nodes with ROS 2 Kilted
# make test-batch   batches on a real Ray, which is 80 MB more and takes minutes
# make fuzz   mutated inputs, for MINUTES; make sbom   what is installed; make audit   its holes
#
# All work on a machine without ROS: rclpy, Fast DDS and the messages come as wheels into a
# virtual environment. Python 3.10 to 3.13, x86-64 Linux.

PYTHON ?= python3
# ROS distribution whose wheels are used, jazzy or kilted; each has an environment of its own.
ROS ?= jazzy
VENV ?= $(if $(filter jazzy,$(ROS)),.venv,.venv-$(ROS))
# One bag to use instead of the shipped one: make demo BAG=path, make report BAG=path
BAG ?=
# Further arguments of `lunar-stereo demo` or `evaluate`, or of pytest: make test ARGS='-m "not slow"'
ARGS ?=
# Installed before everything else, so that the extras [sim] and [train] do not choose. Any newer
# torch serves as well; this is the version that the tests last ran with. Without a GPU, name a
# CPU build here (a path to a wheel will do): the default wheels bring gigabytes of CUDA.
TORCH ?= torch==2.13.0

# make fuzz: for how long, and from which start; make sbom: where to.
MINUTES ?= 60
SEED ?= 0
SBOM ?= out/sbom.json
SBOM_VENV = $(VENV)-sbom

ROS_EXTRA := $(if $(filter jazzy,$(ROS)),ros,ros-$(ROS))

# A sourced ROS would put its own rclpy in front of the wheels, often for another Python.
ifdef ROS_DISTRO
unexport PYTHONPATH LD_LIBRARY_PATH
unexport AMENT_PREFIX_PATH COLCON_PREFIX_PATH CMAKE_PREFIX_PATH
unexport ROS_DISTRO ROS_VERSION ROS_PYTHON_VERSION RMW_IMPLEMENTATION
endif

.DEFAULT_GOAL := help
.PHONY: help demo report test test-batch lint fuzz sbom audit clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '1,8s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.stamp-ros
	$(VENV)/bin/lunar-stereo demo $(if $(BAG),--bag '$(BAG)') $(ARGS)
	@echo 'The command is $(VENV)/bin/lunar-stereo; after "source $(VENV)/bin/activate" it is lunar-stereo.'

# Needs no ROS; what the last one left in out/evaluate is replaced.
report: $(VENV)/.stamp-report
	$(VENV)/bin/lunar-stereo evaluate $(if $(BAG),'$(BAG)') --overwrite $(ARGS)

# What does not touch ROS is tested once, with Jazzy; so are linters and types.
ifeq ($(ROS),jazzy)
test: lint
	$(VENV)/bin/python -m pytest $(ARGS)
else
test: $(VENV)/.stamp-test-ros
	$(VENV)/bin/python -m pytest test/ros test/commands/test_demo.py $(ARGS)
endif

# Without Ray `make test` leaves these out. Workers and drivers are killed in them.
test-batch: $(VENV)/.stamp-dev
	$(VENV)/bin/pip install -q -e '.[batch]'
	$(VENV)/bin/python -m pytest test/batch $(ARGS)

lint: $(VENV)/.stamp-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# Mutated inputs to everything that reads bytes from outside; ends with 1 where one does more than
# be refused.
fuzz: $(VENV)/.stamp-dev
	PYTHONPATH=. $(VENV)/bin/python test/fuzz/long_run.py --minutes $(MINUTES) --seed $(SEED)

# What a machine that runs the nodes has installed, as CycloneDX JSON: from an environment with the
# package and its run-time dependencies alone.
sbom: $(SBOM_VENV)/.stamp
	mkdir -p $(dir $(SBOM))
	$(VENV)/bin/cyclonedx-py environment $(SBOM_VENV)/bin/python --output-reproducible \
	    --output-format JSON --output-file $(SBOM)

# Known vulnerabilities in the same environment; asks PyPI, so it needs a network. Error 1: there
# are some; Error 3: PyPI was not reached, or knows none of the packages: nothing was audited.
AUDIT_LOG = $(SBOM_VENV)/audit.log
AUDITED = $(SBOM_VENV)/lib/python3*/site-packages
NO_NETWORK = ConnectionError|ProxyError|Max retries|[Tt]imed out|Temporary failure|HTTPError
audit: $(SBOM_VENV)/.stamp
	@status=0; $(VENV)/bin/pip-audit --progress-spinner off --path $(AUDITED) \
	    >$(AUDIT_LOG) 2>&1 || status=$$?; \
	if grep -qE '$(NO_NETWORK)' $(AUDIT_LOG); then \
	    tail -n 1 $(AUDIT_LOG) >&2; \
	    echo 'PyPI, which knows the vulnerabilities, was not reached: nothing was audited' >&2; \
	    exit 3; \
	fi; \
	cat $(AUDIT_LOG); \
	if [ "$$(grep -c 'could not be audited' $(AUDIT_LOG))" = "$$(ls -d $(AUDITED)/*.dist-info $(AUDITED)/*.egg-info | wc -l)" ]; then \
	    echo 'The index that was asked knows none of the packages: nothing was audited' >&2; \
	    exit 3; \
	fi; \
	exit $$status

$(SBOM_VENV)/.stamp: $(VENV)/.stamp-dev setup.py
	$(PYTHON) -m venv --clear --without-pip $(SBOM_VENV)
	$(VENV)/bin/pip --python $(SBOM_VENV)/bin/python install -q '.[$(ROS_EXTRA),openvino,map]'
	@touch $@

# pip is the part that fails to arrive when a distribution splits venv into a package of its own:
# a folder without it is made anew, one with it is used as it is.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.10 or newer is needed: make PYTHON=..." >&2; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.stamp-ros: $(VENV)/.stamp-venv setup.py
	@echo 'Installing the package and the ROS 2 wheels into $(VENV) (once, about 200 MB) ...'
	$(VENV)/bin/pip install -q -e '.[$(ROS_EXTRA)]'
	@touch $@

$(VENV)/.stamp-report: $(VENV)/.stamp-venv setup.py
	@echo 'Installing the package and the charts of its report into $(VENV) (once) ...'
	$(VENV)/bin/pip install -q -e '.[report]'
	@touch $@

$(VENV)/.stamp-test-ros: $(VENV)/.stamp-venv setup.py
	@echo 'Installing the package, the wheels of ROS 2 $(ROS) and the tools for tests (once) ...'
	$(VENV)/bin/pip install -q -e '.[$(ROS_EXTRA),dev]'
	@touch $(VENV)/.stamp-ros $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv setup.py
	@echo 'Installing the package with its tools for tests and training into $(VENV) (once) ...'
	$(VENV)/bin/pip install -q '$(TORCH)'
	$(VENV)/bin/pip install -q -e '.[ros,openvino,sim,map,train,dev]'
	@touch $(VENV)/.stamp-ros $@

clean:
	rm -rf build install log out *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
