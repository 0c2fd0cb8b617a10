#!/usr/bin/env bash
# A person's stream with curl alone: reconnects by itself and resumes after the last id. It prints whole events.
#   listen.sh "http://127.0.0.1:8000/v1/stream?user=ann"
# With a JWT: in PUSHSSE_TOKEN, or in a file that is renewed (PUSHSSE_TOKEN_FILE).
set -u
url=${1:-"http://127.0.0.1:8000/v1/stream?user=ann"}
last=$(mktemp)
status=$(mktemp)
silence=$(mktemp)
trap 'rm -f "$last" "$status" "$silence"' EXIT
trap 'exit 130' INT TERM
token() { if [ -n "${PUSHSSE_TOKEN_FILE:-}" ]; then cat "$PUSHSSE_TOKEN_FILE"; else printf '%s' "${PUSHSSE_TOKEN:-}"; fi; }
echo 45 >"$silence"
while :; do
  used=$(token)
  # The call has no time limit, but after three heartbeats without a byte the connection is dead.
  curl --silent --show-error --fail --no-buffer --connect-timeout 10 --speed-limit 1 --speed-time "$(cat "$silence")" \
    --write-out '%{stderr}%{http_code}' 2>"$status" \
    ${used:+--header "Authorization: Bearer $used"} \
    --header "Last-Event-ID: $(cat "$last")" "$url" | {
    event='' id=''
    while IFS= read -r line; do
      event+=$line$'\n'
      case $line in
        id:\ *) id=${line#id: } ;;
        # An event ends with an empty line. What is cut off before that is sent again.
        '')
          printf '%s' "$event"
          [ -n "$id" ] && printf '%s' "$id" >"$last"
          # Of `ready`; it holds from the next connection on.
          [[ $event =~ \"heartbeat_s\":([0-9]+) ]] && echo $((3 * BASH_REMATCH[1] + 1)) >"$silence"
          case $event in
            *'"resume":"gap"'*) echo "some events were missed: reload what you show" >&2 ;;
            'event: exception'*'"retry":false'* | *$'\nevent: exception'*'"retry":false'*) exit 3 ;;
          esac
          event='' id=''
          ;;
      esac
    done
  }
  ended=${PIPESTATUS[1]} code=$(tail -c 3 "$status")
  # 400, 401, 403: the same call can never succeed. With another token it may.
  case $ended$code in
    3* | 040[013])
      if [ "$(token)" = "$used" ]; then
        cat "$status" >&2
        echo "the stream has ended for good: get a new token" >&2
        exit 1
      fi
      ;;
  esac
  sleep $((2 + RANDOM % 3))
done
