#!/usr/bin/env bash
# setup_env.sh PROJECT [PYTHON]: make PROJECT/.venv from its constraints (the lock) and its pyproject.
#
# PROJECT is `shared` or a paper. Without PYTHON an environment keeps the interpreter it has, and a new one takes the first
# that is supported. The stamp .ready is written last, so an interrupted set-up is simply done again.
set -euo pipefail
cd "$(dirname "$0")/.."
project=$1 named=${2:-}
venv=$project/.venv

. scripts/find_uv.sh
supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }
candidates=("$venv/bin/python" python3 python3.13 python3.12 python3.11 python3.10)
[ -n "$named" ] && candidates=("$named")
python=
for candidate in "${candidates[@]}"; do
  supported "$candidate" && { python=$candidate; break; }
done
if [ -z "$python" ]; then
  found=${named:-python3}
  echo "error: $found is $("$found" --version 2>/dev/null || echo 'no interpreter that runs'); Python 3.10 to 3.13 is needed, name one with PYTHON=/path/to/python3.12" >&2
  exit 1
fi
find_uv "$python"

echo "setting up $venv ($("$python" --version)); the first time downloads some gigabytes"
# An environment of the same interpreter is brought up to date in place: whatever runs in it keeps running.
[ "$(version "$venv/bin/python")" = "$(version "$python")" ] ||
  "$UV" venv --quiet --clear --python "$("$python" -c 'import sys; print(sys.executable)')" "$venv"
if [ "$project" = shared ]; then
  packages=(--editable './shared[lightning,test]')
else
  packages=(--editable ./shared --editable "./$project[test]")
fi
# OpenMMLab's forks need a dependency dropped; a [tool.uv] table would be read only inside the project's folder.
[ -f "$project/overrides.txt" ] && packages+=(--override "$project/overrides.txt")
quiet=$([ -t 2 ] || echo --quiet) # on a terminal uv shows how far the downloads are
# Compiled here once: where Python may not write its caches (read-only trees, PYTHONDONTWRITEBYTECODE), every command and
# every worker of a test would else compile torch and Lightning for itself, for six seconds.
"$UV" pip install $quiet --compile-bytecode --exact --python "$venv" --constraint "$project/constraints.txt" "${packages[@]}"
touch "$venv/.ready"
