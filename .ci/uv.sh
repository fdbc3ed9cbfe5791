# shellcheck shell=bash
# Sourced. uv does not read pip's configuration: `uv_from_pip PYTHON` turns it (pip.conf and PIP_*)
# into uv's options, in the array uv_arguments, so that both look in the same places.
# `uv_from_pip PYTHON --index-only` leaves extra places out: locks are made from one index.

uv_arguments=()

uv_from_pip() {
  local python=$1 only=${2:-} item certificate
  _from_pip() {
    local variable=$2
    printf '%s\n' "${!variable:-$("$python" -m pip config get "global.$1" 2>/dev/null || true)}"
  }
  uv_arguments=()
  for item in $(_from_pip index-url PIP_INDEX_URL); do
    uv_arguments+=(--default-index "$item")
  done
  if [ "$only" != --index-only ]; then
    for item in $(_from_pip extra-index-url PIP_EXTRA_INDEX_URL); do
      uv_arguments+=(--index "$item")
    done
    for item in $(_from_pip find-links PIP_FIND_LINKS); do
      uv_arguments+=(--find-links "$item")
    done
    # pip takes the best version of all its indexes; uv stops at the first that has the name.
    uv_arguments+=(--index-strategy unsafe-best-match)
  fi
  certificate=$(_from_pip cert PIP_CERT)
  [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
}
