# shellcheck shell=bash
# Sourced by scripts/test and .ci/run: prints at the end, also after a failure, how long each part took. CPU time is
# that of all processes that a part started and waited for. Two cores have twice the seconds that pass.

PART_TIMES=$(mktemp)
trap 'print_parts; rm -f "$PART_TIMES"' EXIT

# part NAME COMMAND...: runs the command and notes its time.
part() {
  local TIMEFORMAT="%0R %0U %0S $1"
  { time "${@:2}" 2>&3; } 3>&2 2>>"$PART_TIMES"
}

# attempt NAME COMMAND...: the same, and later parts run even if this one fails, so that one run shows every failure.
FAILED_PARTS=()
attempt() { part "$@" || FAILED_PARTS+=("$1"); }

# Ends the script with 1 if an attempt failed.
finish() {
  ((${#FAILED_PARTS[@]} > 0)) || exit 0
  printf 'Failed: %s\n' "${FAILED_PARTS[@]}"
  exit 1
}

print_parts() {
  [[ -s $PART_TIMES ]] || return 0
  printf '\n==> Time of each part\n%8s %8s\n' passed CPU
  awk '{ passed = $1; cpu = $2 + $3; $1 = $2 = $3 = ""; sub(/^ +/, "")
         printf "%6d s %6d s  %s\n", passed, cpu, $0 }' "$PART_TIMES"
}
