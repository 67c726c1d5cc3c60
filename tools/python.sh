#!/usr/bin/env bash
# Which Python an environment is made with. What is wrong is one line on standard error, exit code 2.
#
#   tools/python.sh check NAME        NAME runs, and there are wheels for its version
#   tools/python.sh agrees NAME DIR   the environment DIR, where there is one, is of NAME's version
#   tools/python.sh find 3.12         prints an interpreter: python3.12 where it runs, else one in pyenv's versions
#   tools/python.sh other NAME        prints an interpreter for the megatron-core release that NAME's Python does not take
set -euo pipefail

die() {
    echo "error: $1" >&2
    exit 2
}

version_of() { # an interpreter -> 3.12; nothing where it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

check() {
    local version selected
    version=$(version_of "$1")
    case $version in
    3.11 | 3.12 | 3.13) return ;;
    "") ;;
    3.1[4-9]) die "$1 is Python $version, for which megatron-core has no wheels: make PYTHON=python3.13 (3.11 and 3.12 will do, too)" ;;
    *) die "Python 3.11, 3.12 or 3.13 is needed; $1 is Python $version. Name another: make PYTHON=python3.12" ;;
    esac
    # pyenv's shim answers to every name and names the versions that would run.
    selected=$("$1" --version 2>&1 | grep -oE '^ +[0-9]+(\.[0-9]+)+$' | tail -n 1 | tr -d ' ' || true)
    if [ -n "$selected" ]; then die "$1 is pyenv's, and its version is not selected: PYENV_VERSION=$selected make ${MAKECMDGOALS:-quickstart} PYTHON=$1"; fi
    die "$1 does not run. Name another: make PYTHON=python3.12"
}

agrees() {
    local wanted found
    check "$1"
    if [ ! -e "$2/bin/python" ]; then return; fi
    wanted=$(version_of "$1") found=$(version_of "$2/bin/python")
    if [ "$wanted" != "$found" ]; then
        die "$2 is of Python ${found:-that is gone}, $1 is $wanted: make clean first, or make VENV=.venv-$wanted PYTHON=$1"
    fi
}

find_python() {
    local path
    for path in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [ "$(version_of "$path")" = "$1" ]; then command -v "$path" && return; fi
    done
    die "NO PYTHON $1 HERE, so the other release of megatron-core is not tested: neither python$1 nor one of ${PYENV_ROOT:-$HOME/.pyenv}/versions runs"
}

case "${1:-} $#" in
"check 2") check "$2" ;;
"agrees 3") agrees "$2" "$3" ;;
"find 2") find_python "$2" ;;
"other 2") if [ "$(version_of "$2")" = 3.11 ]; then find_python 3.12; else find_python 3.11; fi ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
