"""Pays an order and tells its buyer, in one transaction, with asyncpg: both happen, or neither.

python shop.py postgres://shop@localhost/shop 981 ann
"""

import asyncio
import json
import sys

import asyncpg

ORDERS = "CREATE TABLE IF NOT EXISTS orders (id bigint PRIMARY KEY, status text NOT NULL)"
PAY = "INSERT INTO orders VALUES ($1, 'paid') ON CONFLICT (id) DO UPDATE SET status = 'paid'"
TELL = """INSERT INTO pushsse_outbox (key, type, message, recipients, description, event_id)
          VALUES ($1, 'order.paid', $2, $3, $4, $5)"""


async def pay(connection: asyncpg.Connection, order: int, buyer: str) -> None:
    """Marks the order as paid; the buyer hears of it when, and only if, that is committed."""
    async with connection.transaction():
        # First what the transactions of one order share, its row: their events are in the order of commits.
        await connection.execute(PAY, order)
        await connection.execute(
            TELL,
            f"order-{order}",
            json.dumps({"order": order, "status": "paid"}),
            json.dumps({"users": [buyer]}),
            f"Order {order} is paid",
            f"order-{order}-paid",
        )


async def main(url: str, order: int, buyer: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(ORDERS)
        await pay(connection, order, buyer)
    finally:
        await connection.close()
    print(f"order {order} is paid")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("shop.py DATABASE_URL ORDER BUYER")
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
