#!/usr/bin/env bash
# lint.sh PYTHON PROJECT...: ruff over the whole tree, repeated blocks, and each project's types.
#
# The tools have an environment of their own (.tools/lint). Types are checked against the libraries of the project that
# the code belongs to, so mypy is pointed at that project's interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1; shift

. scripts/find_uv.sh
find_uv "$python"
lint=.tools/lint
if [ ! "$lint/.ready" -nt scripts/lint-requirements.txt ]; then
  "$UV" venv --quiet --clear --python "$python" "$lint" &&
    "$UV" pip install --quiet --python "$lint" --requirements scripts/lint-requirements.txt &&
    touch "$lint/.ready" || { echo "error: the environment of the lint tools could not be made" >&2; exit 1; }
fi

failed=0
check() { # title, command...
  echo "--- $1"; shift
  "$@" || failed=1
}
check "ruff check" "$lint/bin/ruff" check .
check "ruff format" "$lint/bin/ruff" format --check .
check "repeated blocks" "$python" scripts/find_repeats.py
for project in "$@"; do
  make --no-print-directory "$project-setup" || { failed=1; continue; }
  check "types of $project" "$lint/bin/mypy" --config-file pyproject.toml \
    --python-executable "$project/.venv/bin/python" --cache-dir ".mypy_cache/$project" "$project/src"
done
[ $failed = 0 ] && echo "lint: all clean"
exit $failed
