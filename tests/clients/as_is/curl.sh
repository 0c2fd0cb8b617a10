#!/usr/bin/env bash
# curl with its defaults: one connection.
exec curl --silent --no-buffer --header "Authorization: Bearer $(cat "$PUSHSSE_TOKEN_FILE")" "$1"
