#!/usr/bin/env bash
# lint.sh PYTHON PROJECT...: ruff over the whole tree, repeated blocks, and each project's types.
#
# The tools have an environment of their own (.tools/lint). Types are checked against the libraries of the project that
# the code belongs to, so mypy is pointed at that project's interpreter and takes the Python version from it; that the
# syntax suits 3.10 is ruff's to say. Goes on past a finding; exit code 1 if there was any.
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

repeats() { local said; said=$("$lint/bin/arid" --config pyproject.toml "$@" 2>&1) || { echo "$said"; return 1; }; }
bench() { if [ -d "$1/bench" ]; then echo "$1/bench"; fi; } # shared's, which is not in the wheel
failed=()
check() { # title, command...
  local title=$1; shift
  echo "--- $title"
  "$@" || failed+=("$title")
}
check "ruff check" "$lint/bin/ruff" check --quiet --output-format concise .
check "ruff format" "$lint/bin/ruff" format --check --quiet --output-format concise .
check "repeated blocks" repeats "${@/%//src}"
for project in "$@"; do
  make --no-print-directory "$project-setup" || { failed+=("environment of $project"); continue; }
  check "types of $project" "$lint/bin/mypy" --config-file pyproject.toml --no-error-summary \
    --python-executable "$project/.venv/bin/python" --cache-dir ".mypy_cache/$project" "$project/src" $(bench "$project")
done
[ ${#failed[@]} = 0 ] && { echo "lint: all clean"; exit 0; }
printf 'lint: findings in'; printf ' [%s]' "${failed[@]}"; echo
exit 1
