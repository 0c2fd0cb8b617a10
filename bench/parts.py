"""The parts around a node, for the rows that need them, on the load's processor."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processors import LOAD
from bench.usage import pin
from deploy.parts import Kafka, Part, PartFailed, PartMissing, Postgres, Redis

Missing = (PartMissing, PartFailed, OSError)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is there; None for what this machine doesn't have."""

    redis: Redis | None
    kafka: Kafka | None
    postgres: Postgres | None
    missing: tuple[str, ...]


@contextmanager
def parts(folder: Path) -> Iterator[Parts]:
    """Starts Redis, Kafka and PostgreSQL, as far as they can be had."""
    found: dict[str, Part] = {}
    missing: list[str] = []
    with ExitStack() as stack:
        for name, part in (
            ("redis", Redis(folder / "redis")),
            ("postgres", Postgres(folder / "postgres")),
            ("kafka", Kafka(folder / "kafka")),
        ):
            try:
                found[name] = stack.enter_context(part)
                pin(part.pid, LOAD)
            except Missing as error:
                missing.append(f"{name}: {str(error).splitlines()[0]}")
        redis, kafka, postgres = found.get("redis"), found.get("kafka"), found.get("postgres")
        yield Parts(
            redis if isinstance(redis, Redis) else None,
            kafka if isinstance(kafka, Kafka) else None,
            postgres if isinstance(postgres, Postgres) else None,
            tuple(missing),
        )
