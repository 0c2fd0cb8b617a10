"""httpx-sse with its defaults: one connection, ended by httpx's read timeout of 5 s."""

import json
import os
import sys
from pathlib import Path

import httpx
from httpx_sse import connect_sse

headers = {"Authorization": f"Bearer {Path(os.environ['PUSHSSE_TOKEN_FILE']).read_text()}"}
with (
    httpx.Client(http2=True) as client,
    connect_sse(client, "GET", sys.argv[1], headers=headers) as source,
):
    for event in source.iter_sse():
        print(json.dumps({"event": event.event, "data": json.loads(event.data)}), flush=True)
