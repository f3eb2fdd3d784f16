#!/usr/bin/env bash
# setup_env.sh PROJECT PYTHON: make PROJECT/.venv from its constraints (the lock) and its pyproject.
#
# PROJECT is `shared` or a paper. The stamp .ready is written last, so an interrupted set-up is simply done again.
set -euo pipefail
cd "$(dirname "$0")/.."
project=$1 python=$2
venv=$project/.venv

. scripts/find_uv.sh
command -v "$python" >/dev/null || { echo "error: no interpreter $python; name one with PYTHON=..." >&2; exit 1; }
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
  { echo "error: $("$python" --version) is not supported; 3.10 to 3.13 are. Name one with PYTHON=python3.12" >&2; exit 1; }
find_uv "$python"

echo "making $venv ($("$python" --version))"
# An environment of the same interpreter is brought up to date in place: whatever runs in it keeps running.
wanted=$("$python" -c 'import sys; print(sys.version)')
[ "$("$venv/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null)" = "$wanted" ] ||
  "$UV" venv --quiet --clear --python "$python" "$venv"
if [ "$project" = shared ]; then
  packages=(--editable './shared[lightning,test]')
else
  packages=(--editable ./shared --editable "./$project[test]")
fi
# OpenMMLab's forks need a dependency dropped; a [tool.uv] table would be read only inside the project's folder.
[ -f "$project/overrides.txt" ] && packages+=(--override "$project/overrides.txt")
"$UV" pip install --quiet --exact --python "$venv" --constraint "$project/constraints.txt" "${packages[@]}"
touch "$venv/.ready"
