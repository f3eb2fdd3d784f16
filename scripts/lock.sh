#!/usr/bin/env bash
# lock.sh PROJECT [UV ARGUMENTS]: write PROJECT/constraints.txt anew, one version of every package for Python 3.10 to 3.13.
#
# Versions that stand there already are kept where they still fit; `--upgrade` or `--upgrade-package NAME` lets them move.
set -euo pipefail
cd "$(dirname "$0")/.."
project=$1; shift

. scripts/find_uv.sh
find_uv python3
if [ "$project" = shared ]; then
  wanted='./shared[lightning,test]'
else
  wanted="./shared
./$project[test]"
fi
overrides=()
[ -f "$project/overrides.txt" ] && overrides=(--override "$project/overrides.txt")
"$UV" pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url \
  --no-emit-package paperkit --no-emit-package "$project" \
  "${overrides[@]}" "$@" --output-file "$project/constraints.txt" - <<<"$wanted"
sed -i.before "/^#/d;/^$/d;/== 'never'/d" "$project/constraints.txt" && rm "$project/constraints.txt.before"
