#!/usr/bin/env bash
# A person's stream with curl alone: reconnects by itself and resumes after the last id.
#   listen.sh "http://127.0.0.1:8000/v1/stream?user=ann"     (or with a JWT in PUSHSSE_TOKEN)
set -u
url=${1:-"http://127.0.0.1:8000/v1/stream?user=ann"}
last=$(mktemp)
status=$(mktemp)
trap 'rm -f "$last" "$status"' EXIT
trap 'exit 130' INT TERM
while :; do
  # The call has no time limit, but after three heartbeats of 15 s without a byte the connection is dead.
  curl --silent --show-error --fail --no-buffer --connect-timeout 10 --speed-limit 1 --speed-time 45 \
    --write-out '%{stderr}%{http_code}' 2>"$status" \
    ${PUSHSSE_TOKEN:+--header "Authorization: Bearer $PUSHSSE_TOKEN"} \
    --header "Last-Event-ID: $(cat "$last")" "$url" |
    while IFS= read -r line; do
      printf '%s\n' "$line"
      case $line in
        id:\ *) printf '%s' "${line#id: }" >"$last" ;;
        data:*'"resume":"gap"'*) echo "some events were missed: reload what you show" >&2 ;;
        data:*'"retry":false'*) echo "the stream has ended for good: get a new token" >&2 && exit 3 ;;
      esac
    done
  [ "${PIPESTATUS[1]}" = 3 ] && exit 1
  # 400, 401, 403: the same call can never succeed.
  case $(tail -c 3 "$status") in 40[013]) cat "$status" >&2 && exit 1 ;; esac
  sleep $((2 + RANDOM % 3))
done
