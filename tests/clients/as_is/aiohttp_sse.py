"""aiohttp-sse-client with a header, and nothing around it."""

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp_sse_client.client import EventSource  # type: ignore[import-not-found]


async def main(token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with EventSource(sys.argv[1], headers=headers) as source:
        async for event in source:
            print(json.dumps({"event": event.type, "data": json.loads(event.data)}), flush=True)


asyncio.run(main(Path(os.environ["PUSHSSE_TOKEN_FILE"]).read_text()))
