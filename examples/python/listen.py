"""A person's stream in Python, with httpx and httpx-sse: comes back by itself, shows nothing twice.

python listen.py http://127.0.0.1:8000/v1/stream?user=ann        (or with a JWT in PUSHSSE_TOKEN)
"""

import json
import os
import random
import sys
import time

import httpx
from httpx_sse import connect_sse


def main(url: str) -> None:
    token = os.environ.get("PUSHSSE_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    retry_s = 3.0
    seen: dict[str, None] = {}
    # Three heartbeats of 15 s, and some: the default of 5 s would end every quiet stream.
    with httpx.Client(timeout=httpx.Timeout(10, read=60)) as client:
        while True:
            try:
                with connect_sse(client, "GET", url, headers=headers) as source:
                    source.response.raise_for_status()
                    for event in source.iter_sse():
                        data = json.loads(event.data)
                        if event.retry is not None:
                            retry_s = event.retry / 1000
                        if event.event == "ready" and data["resume"] == "gap":
                            print("some events were missed", file=sys.stderr)
                        elif event.event == "exception" and not data["retry"]:
                            sys.exit(f"the stream has ended: {data['code']}")
                        elif "message" in data and data["id"] not in seen:
                            seen[data["id"]] = None
                            if len(seen) > 10_000:
                                del seen[next(iter(seen))]
                            print(
                                data["ts"],
                                data["type"],
                                json.dumps(data["message"], ensure_ascii=False),
                                flush=True,
                            )
                        if event.id:
                            headers["last-event-id"] = event.id
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    sys.exit(str(error))
            except httpx.TransportError as error:
                print(f"{error}: coming back", file=sys.stderr)
            time.sleep(retry_s * random.uniform(0.8, 1.2))


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1/stream?user=ann")
    except KeyboardInterrupt:
        pass
