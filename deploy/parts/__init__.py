"""The real parts around nodes, as processes of our own, for `make stack`, the tests and the fault runs.

Each part has a port of loopback and a folder, and both stay the same when it is started again. `part` has
what all of them can do. Only the standard library.
"""

from deploy.parts.kafka import Kafka
from deploy.parts.missing import PartMissing
from deploy.parts.nginx import Nginx
from deploy.parts.node import Node
from deploy.parts.part import Part, PartFailed
from deploy.parts.postgres import Postgres
from deploy.parts.redis import Redis

__all__ = ["Kafka", "Nginx", "Node", "Part", "PartFailed", "PartMissing", "Postgres", "Redis"]
