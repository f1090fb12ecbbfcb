#!/bin/sh
# Before Ollama serves: the model is on the volume. A registry that can not be reached is no reason not to start when it is.
set -eu
export OLLAMA_HOST=127.0.0.1:11435
ollama serve &
server=$!
trap 'kill "$server"' EXIT
until ollama list >/dev/null 2>&1; do sleep 1; done
ollama pull "$LLM_MODEL" || ollama show "$LLM_MODEL" >/dev/null
