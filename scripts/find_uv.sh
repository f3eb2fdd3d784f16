# Sourced by the other scripts: sets UV to a working uv, installing one into .tools/uv when the machine has none.

find_uv() { # $1: the Python that makes the private environment of uv
  UV=uv
  if ! "$UV" --version >/dev/null 2>&1; then
    UV=.tools/uv/bin/uv
    if ! "$UV" --version >/dev/null 2>&1; then
      echo "no uv on this machine: installing one into .tools/uv"
      rm -rf .tools/uv
      "$1" -m venv .tools/uv || { echo "error: $1 cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }
      .tools/uv/bin/pip install --quiet --disable-pip-version-check uv ||
        { echo "error: uv could not be installed; is the package index reachable?" >&2; exit 1; }
    fi
  fi
  # The interpreter is the user's choice; a bar only on a terminal.
  export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=${UV_NO_PROGRESS:-$([ -t 2 ] || echo 1)}
}
