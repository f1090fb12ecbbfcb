# shellcheck shell=bash
# Sourced by scripts/run and scripts/test in the root of the checkout: makes .venv and installs the project into it, once.
#
# Packages come from requirements/run.txt or requirements/dev.txt, which scripts/lock writes: pip accepts only the
# versions and hashes listed there. requirements/dev.txt contains everything in requirements/run.txt. On Linux on x86-64
# it also accepts only wheels: a source package would download build tools, which are not locked.
#
# An install is trusted only when it has a stamp, which is written last. The stamp is a hash of everything that the
# install depends on: the locked packages, pyproject.toml, the Python version and the path of the checkout, because a
# virtual environment cannot be moved.

# To use a second Python: PYTHON=python3.13 VENV=.venv-3.13 scripts/test
VENV=${VENV:-.venv}
INSTALL_LOG=.data/logs/install.log
LOCKED=(--no-deps --require-hashes)
[[ $(uname -sm) != "Linux x86_64" ]] || LOCKED+=(--only-binary :all:)

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the first Python of 3.11 or newer that can make virtual environments. PYTHON replaces the search.
find_python() {
  local candidate found="" candidates=(python3 python3.13 python3.12 python3.11 python)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
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
  [[ -z ${PYTHON:-} ]] || fail "PYTHON: $PYTHON does not run, or is older than Python 3.11"
  fail "Ragherd needs Python 3.11 or newer, and none was found; install one, or name it: PYTHON=/path/to/python $0"
}

# A hash of what the install of requirements/$1.txt depends on. Fails when the virtual environment is not usable.
fingerprint() {
  "$VENV/bin/python" - "requirements/$1.txt" pyproject.toml 2>/dev/null <<'PYTHON'
import hashlib, pathlib, platform, sys
parts = [platform.python_version(), str(pathlib.Path.cwd()), *(pathlib.Path(name).read_text() for name in sys.argv[1:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

stamp_of() { printf '%s/.installed-%s' "$VENV" "$1"; }

is_installed() {
  local stamp wanted
  stamp=$(stamp_of "$1")
  [[ -f $stamp ]] && wanted=$(fingerprint "$1") && [[ $(<"$stamp") == "$wanted" ]]
}

# step WHAT COMMAND...: runs a command with its output in the log, and prints what it does and how long that took.
step() {
  local what=$1 began=$SECONDS
  shift
  say "==> $what"
  if ! "$@" 2>&1 | tee -a "$INSTALL_LOG" | show_downloads; then
    tail -n 15 "$INSTALL_LOG" >&2
    fail "That failed: $what. The full output is in $INSTALL_LOG. Run the same command again to start over."
  fi
  say "    done in $((SECONDS - began)) s"
}

# Filters pip's output: shows large downloads and the start of unpacking.
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

install() {
  local packages=$1
  is_installed run || make_venv # packages may be added to a complete install; any other is made again
  rm -f "$VENV"/.installed-*
  step "Installing packages (about 300 MB the first time)" \
    pip_install "${LOCKED[@]}" -r "requirements/$packages.txt"
  step "Installing Ragherd" pip_install --no-deps --no-build-isolation -e .
  fingerprint run >"$(stamp_of run)"
  fingerprint "$packages" >"$(stamp_of "$packages")"
}

# ensure_installed run|dev: .venv with the packages of requirements/run.txt or dev.txt, and the project, if not there yet.
ensure_installed() {
  is_installed "$1" && return
  mkdir -p "$(dirname "$INSTALL_LOG")"
  (
    if command -v flock >/dev/null; then
      flock --nonblock 9 || { say "Another install runs in this checkout: waiting for it"; flock 9; }
    fi
    is_installed "$1" && exit
    : >"$INSTALL_LOG"
    install "$1"
  ) 9>.data/install.lock
}

# Prints the path of Python $1 (such as 3.13), from PATH or from pyenv. Fails when it is not found.
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
