"""Keeps a node out of a consumer group whose offsets belong to another backplane.

Called by the Kafka intake before it joins the group. Two backplanes in one group each publish only the
records of their own nodes' partitions: half of the people would get nothing, and no log would say so. Every
commit carries the backplane's identity as its metadata, so a node can tell before it takes a partition.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError

from pushsse.errors import SettingsError
from pushsse.intake.base import Fences
from pushsse.kafka import Connection

log = logging.getLogger(__name__)
PREFIX = "pushsse-backplane="
_LIMIT_S = 10.0
# Running nodes put an identity that Redis has lost back every two seconds.
_PUT_BACK_S = 6.0
_LOOK_S = 0.5


@dataclass(slots=True)
class SameBackplane:
    """What this node's backplane is known by, once `check` has returned."""

    connection: Connection
    fences: Fences
    topic: str
    group: str
    identity: str = field(default="", init=False)

    async def check(self) -> None:
        """Returns when the group's offsets are this backplane's, or nobody's.

        Raises SettingsError where they are another's; KafkaError, BackplaneUnavailable, TimeoutError.
        """
        found = await self._committed_by()
        self.identity = await self.fences.identity(self.identity)
        if not self.identity and found:
            self.identity = await self._adopted(found)
        elif not self.identity:
            self.identity = await self.fences.identity(secrets.token_hex(8))
        if found - {self.identity}:
            raise SettingsError(
                f"PUSHSSE_KAFKA_GROUP: the group {self.group!r} reads {self.topic} for another backplane"
                " (another Redis, or a node without one). Set PUSHSSE_REDIS_URL to the Redis of its nodes,"
                " or PUSHSSE_KAFKA_GROUP to a group of this deployment's own"
            )

    async def keep(self) -> None:
        """Puts the identity back where Redis has lost it. Raises BackplaneUnavailable."""
        if self.identity:
            await self.fences.identity(self.identity)

    def marked(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, tuple[int, str]]:
        """Offsets as they are committed, with the identity as metadata."""
        return {at: (offset, PREFIX + self.identity) for at, offset in offsets.items()}

    async def _adopted(self, found: set[str]) -> str:
        """The identity of a Redis that has none: new, or emptied, or restored from before it had one."""
        until = time.monotonic() + self.connection.session_timeout_ms / 1000 + _PUT_BACK_S
        while others := await self._members():
            # They put it back if this is their Redis; a member that was killed is one until its session ends.
            if identity := await self.fences.identity(""):
                return identity
            if time.monotonic() > until:
                log.warning("the group %s has %d members at another backplane", self.group, others)
                return await self.fences.identity(secrets.token_hex(8))
            await asyncio.sleep(_LOOK_S)
        log.warning(
            "the backplane knows nothing of the offsets that the group %s has committed: it is new, or was"
            " emptied. The group has no other member, so this node goes on from them",
            self.group,
        )
        return await self.fences.identity(min(found))

    async def _committed_by(self) -> set[str]:
        """The identities of the backplanes whose nodes committed the group's offsets of this topic."""
        async with asyncio.timeout(_LIMIT_S), self.connection.admin() as admin:
            offsets = await admin.list_consumer_group_offsets(self.group)
        words = {each.metadata for at, each in offsets.items() if at.topic == self.topic and each.metadata}
        return {word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)}

    async def _members(self) -> int:
        """How many members the group has; 0 where that may not be asked."""
        try:
            async with asyncio.timeout(_LIMIT_S), self.connection.admin() as admin:
                answers = await admin.describe_consumer_groups([self.group])
        except GroupAuthorizationFailedError:
            return 0
        return sum(len(members) for answer in answers for _, _, _, _, _, members, *_ in answer.groups)
