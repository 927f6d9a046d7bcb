# Every command of the project; `make` lists them. All but help set up .venv first, once, and again when the lock changes;
# those of the service, serving/.venv as well.

PY := .venv/bin/python
SERVING_PY := serving/.venv/bin/python
TOOLS := .github/.venv/bin
PORT ?= $(or $(SERVING_PORT),8000)
SBOM ?= .cache/sbom.json
export HOST_PATH := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export DVC_SITE_CACHE_DIR := $(CURDIR)/.cache/dvc
export ORT_DISABLE_TELEMETRY := 1
export PRE_COMMIT_HOME := $(CURDIR)/.cache/pre-commit
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV # of other projects

.PHONY: help repro test check check-workflows check-deploy audit rules bench bench-serving ui schedule serve image smoke test-image sbom lock check-lock clean clone again

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

repro: .venv/.ready ## pull the data, run the whole pipeline, compare with what is recorded
	@$(PY) -m flows.repro

test: .venv/.ready serving/.venv/.ready ## run every test, but for those of the image
	@$(PY) -m pytest -n auto --dist loadfile --cov=src/pipeline --cov-fail-under=100 --cov-report=term:skip-covered
	@$(SERVING_PY) -m pytest tests/serving

check: .venv/.ready serving/.venv/.ready ## format, lint, types, layers: what a pull request must pass
	@$(PY) -m pre_commit run --all-files

check-workflows: check-deploy .github/.venv/.ready ## what .github/ must pass; zizmor asks GitHub too where GH_TOKEN is set
	@$(TOOLS)/actionlint -shellcheck= -pyflakes=
	@$(TOOLS)/zizmor --quiet $(if $(GH_TOKEN),,--offline) .
	@$(TOOLS)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(TOOLS)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

check-deploy: .github/.venv/.ready ## hold deploy/ against Kubernetes' schemas; needs kubectl
	@mkdir -p .cache && for overlay in staging production; do \
		kubectl kustomize deploy/$$overlay > .cache/$$overlay.yaml || exit; \
		said=$$($(TOOLS)/kubernetes-validate --strict --quiet .cache/$$overlay.yaml) && [ ! "$$said" ] || { echo "$$said"; exit 1; }; \
	done

audit: .github/.venv/.ready ## look every locked package up among the known vulnerabilities
	@$(TOOLS)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes $(addprefix -r ,$(LOCKS))

rules: ## let the repository on GitHub have the rules of .github/rulesets; needs gh, logged in as an administrator
	@for file in .github/rulesets/*.json; do \
		name=$$(basename $$file .json); \
		id=$$(gh api 'repos/{owner}/{repo}/rulesets?includes_parents=false' --jq ".[] | select(.name == \"$$name\").id") || exit; \
		gh api --silent --method $$([ "$$id" ] && echo PUT || echo POST) "repos/{owner}/{repo}/rulesets$${id:+/$$id}" --input $$file || exit; \
		echo "$$file: in force"; \
	done

bench: .venv/.ready ## measure what the pipeline costs, as in docs/benchmarks.md
	@$(PY) -m tests.bench

bench-serving: .venv/.ready serving/.venv/.ready serving/.venv-sklearn/.ready ## measure what a prediction costs, beside its rivals; needs wrk
	@PYTHONPATH=src $(PY) -m tests.bench_serving

ui: .venv/.ready ## show MLflow's and Prefect's interfaces
	@$(PY) -m flows.ui

schedule: .venv/.ready ## deploy what prefect.yaml declares, and work it off
	@$(PY) -m flows.pipeline

# A model on scikit-learn is served by an environment that has it.
SERVED := serving/.venv$(if $(findstring "runtime": "sklearn",$(if $(wildcard bundle/contract.json),$(file < bundle/contract.json))),-sklearn)
serve: $(SERVED)/.ready ## answer predictions with the model that was just made, inspected or not (PORT=8000)
	@SERVING_INSPECTED=0 SERVING_OPEN=$(if $(SERVING_KEYS_FILE),0,1) SERVING_PORT=$(PORT) $(SERVED)/bin/python -m serving

image: $(SERVED)/.ready ## build the container of a model that passed its inspection (ENGINE=, IMAGE=, BUILD_FLAGS=)
	@$(SERVED)/bin/python -m serving --check
	@$(PY) -m serving.image

smoke: .venv/.ready ## run the image that was built, and ask it what the model is known to answer (RUN='podman run')
	@$(PY) -m pytest tests/container/test_service.py -k golden

test-image: image ## build it, run it and test it from outside (RUN='podman run')
	@$(PY) -m pytest tests/container

sbom: .github/.venv/.ready ## the bill of materials of that container, as CycloneDX (IMAGE=, RUN=, SBOM=.cache/sbom.json)
	@mkdir -p $(dir $(SBOM)) && $(TOOLS)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o $(SBOM) \
		$(SERVED:serving/.venv%=serving/requirements%.lock)
	@$(PY) -m serving.sbom $(SBOM)

UPGRADE := --upgrade
COMPILE = $(PY) -m uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate
LOCKS := requirements.lock serving/requirements.lock serving/requirements-sklearn.lock tests/serving/requirements.lock \
	.github/requirements.lock
lock: .venv/.ready ## renew every lock: the service has what the pipeline has
	@$(COMPILE) --group dev -o requirements.lock pyproject.toml
	@for name in serving/requirements serving/requirements-sklearn tests/serving/requirements; do \
		$(COMPILE) -c requirements.lock -o $$name.lock $$name.in || exit; done
	@$(COMPILE) -o .github/requirements.lock .github/requirements.in

check-lock: UPGRADE :=
check-lock: lock ## whether the locks still satisfy what they are made from
	@git diff --exit-code --stat -- $(LOCKS) || { echo "make: expected the locks to satisfy pyproject.toml and *.in;" \
		"now they do: commit them" >&2; exit 1; }

clean: ## remove what the project made; data that only this folder holds stays
	@if [ -x $(PY) ] && $(PY) -m dvc status --quiet --cloud --all-commits data.dvc 2>/dev/null; \
	then rm -rf data .dvc/cache; \
	else echo "data/ and .dvc/cache stay: no remote holds all of them, see \`dvc push\`"; fi
	@rm -rf .venv serving/.venv* .github/.venv .serving .prefect .cache .tuning prepared tuning bundle reports inspection mlartifacts mlflow.db* .dvc/tmp .*_cache .coverage
	@find src flows serving tests -name __pycache__ -prune -exec rm -rf {} +

clone:
	@[ -e .git ] || { echo "make: expected a git clone, found a folder without .git, which DVC needs;" \
		"use git clone rather than a downloaded archive" >&2; exit 1; }

ifneq ($(shell $(PY) -c 'print(1)' 2>/dev/null),1)
.venv/.ready: again
endif
.venv/.ready: requirements.lock | clone
	@sh -euc "$$SETUP"
serving/.venv/.ready: tests/serving/requirements.lock
serving/.venv-sklearn/.ready: serving/requirements-sklearn.lock
.github/.venv/.ready: .github/requirements.lock
serving/.venv/.ready serving/.venv-sklearn/.ready .github/.venv/.ready: .venv/.ready
	@sh -euc "$$SETUP_SERVING" make $(@D) $(filter %.lock,$^)

define INSTALL
PATH=$$HOST_PATH
fail() { echo "make: expected $$1" >&2; exit 1; }
install() {
    if [ ! "$$uv" ] || ! "$$uv" pip sync --quiet --require-hashes --compile-bytecode --python "$$1/bin/python" "$$2"; then
        echo "uv did not install them; trying pip"
        "$$1/bin/python" -m ensurepip > "$$1/ensurepip.log" 2>&1 || true
        "$$1/bin/python" -m pip install --quiet --no-deps --require-hashes -r "$$2" ||
            fail "a package index that answers and holds what $$2 names; see the lines above, then make again"
    fi
}
endef

define SETUP
$(INSTALL)
usable() { "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ -e .venv/.unfinished ] || ! usable .venv/bin/python; then
    if [ "$${PYTHON:-}" ]; then set -- "$$PYTHON"; else set -- python3.13 python3.12 python3.11 python3 python; fi
    python= found=
    for name; do
        if usable "$$name"; then python=$$name; break; fi
        if version=$$("$$name" --version 2>&1); then found="$$found $$name ($$version)"; fi
    done
    [ "$$python" ] || fail "Python 3.11 to 3.13 on the path, found$${found:- none}; install one, or name it: make PYTHON=/its/path"
    rm -rf .venv
    mkdir .venv
    touch .venv/.unfinished
    pip=
    if command -v uv > /dev/null; then pip=--without-pip; fi
    "$$python" -m venv $$pip .venv ||
        fail "Python's venv module, $$python has none that works; on Debian or Ubuntu: apt install python3-venv"
fi

echo "installing the locked packages into .venv, once"
uv=$$(command -v uv) || {
    sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
    if .venv/bin/python -m pip install --quiet --no-deps --require-hashes -r .venv/uv.txt; then uv=.venv/bin/uv; else uv=; fi
}
install .venv requirements.lock
# A bare `dvc` or `pytest` of this environment writes no cache and sends no reports outside either (see flows/__init__.py),
# and DVC's queue finds the `dvc` that it starts by name.
packages=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat > "$$packages/inside.pth" <<'END'
import os, sys; env = os.environ; env.setdefault("DVC_SITE_CACHE_DIR", os.path.dirname(sys.prefix) + "/.cache/dvc"); env.setdefault("ORT_DISABLE_TELEMETRY", "1"); env.setdefault("MLFLOW_DISABLE_TELEMETRY", "true"); env.setdefault("DO_NOT_TRACK", "1"); sys.prefix in env.get("PATH", "") or env.update(PATH=env.get("PATH", os.defpath) + os.pathsep + sys.prefix + "/bin")
END
rm -f .venv/.unfinished
touch .venv/.ready
endef
export SETUP

define SETUP_SERVING
$(INSTALL)
if [ "$$("$$1/bin/python" --version 2>&1)" != "$$(.venv/bin/python --version)" ]; then
    rm -rf "$$1"
    .venv/bin/python -m venv --without-pip "$$1"
fi
echo "installing the packages of $$2 into $$1, once"
uv=$$(command -v uv) || uv=.venv/bin/uv
install "$$1" "$$2"
touch "$$1/.ready"
endef
export SETUP_SERVING
