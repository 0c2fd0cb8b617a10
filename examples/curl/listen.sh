#!/usr/bin/env bash
# A person's stream with curl alone: comes back by itself and goes on after the last id.
#   listen.sh "http://127.0.0.1:8000/v1/stream?user=ann"     (or with a JWT in PUSHSSE_TOKEN)
set -u
url=${1:-"http://127.0.0.1:8000/v1/stream?user=ann"}
last=$(mktemp)
trap 'rm -f "$last"' EXIT
trap 'exit 130' INT TERM
while :; do
  # No whole-time limit; a stream without a ping for a minute is gone.
  curl --silent --show-error --fail --no-buffer --speed-limit 1 --speed-time 60 \
    ${PUSHSSE_TOKEN:+--header "Authorization: Bearer $PUSHSSE_TOKEN"} \
    --header "Last-Event-ID: $(cat "$last")" "$url" |
    while IFS= read -r line; do
      printf '%s\n' "$line"
      case $line in id:\ *) printf '%s' "${line#id: }" >"$last" ;; esac
    done
  sleep $((2 + RANDOM % 3))
done
