#!/bin/sh
# Pulls the model before Ollama serves. If the volume has it, an unreachable registry does not stop the start.
# A volume that cannot be written, such as an image, must have it.
set -eu
model=${LLM_MODEL:?must be set by the replacements of an overlay}
export OLLAMA_HOST=127.0.0.1:11435
ollama serve &
server=$!
trap 'kill "$server" 2>/dev/null || :' EXIT
trap 'exit 143' TERM # process 1 ignores TERM without a trap, and a download is long
until ollama list >/dev/null 2>&1; do
  kill -0 "$server" # exits if the server has exited
  sleep 1
done
if [ -w "${OLLAMA_MODELS:?}" ]; then
  ollama pull "$model" &
  wait "$!" && exit
fi
ollama show "$model" >/dev/null
