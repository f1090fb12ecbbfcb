#!/bin/sh
# Before Ollama serves: the model is on the volume. A registry that can not be reached is no reason not to start when it is.
set -eu
model=${LLM_MODEL:?is put in by the replacements of an overlay}
export OLLAMA_HOST=127.0.0.1:11435
ollama serve &
server=$!
trap 'kill "$server" 2>/dev/null || :' EXIT
trap 'exit 143' TERM # a process 1 without it would be deaf; a download lasts
until ollama list >/dev/null 2>&1; do
  kill -0 "$server" # ends this where the server has ended
  sleep 1
done
ollama pull "$model" &
wait "$!" || ollama show "$model" >/dev/null
