"""As much of Kafka's protocol as `kafka` needs: is it ready, make a topic, delete a topic, list them.

aiokafka's admin client could do the same, but parts use the standard library only (`make stack` runs them
with any Python), and block, inside a running event loop as well as outside. Kafka's own tools start a Java
per call. The versions used are those that every Kafka from 2.1 to 4 speaks (kafka.apache.org/protocol).
"""

import socket
import struct
from collections.abc import Sequence

_METADATA, _CREATE_TOPICS, _DELETE_TOPICS = 3, 19, 20
_LIMIT_S = 10.0
_NO_TOPICS = struct.pack(">i", 0)
_TOPIC_EXISTS, _UNKNOWN_TOPIC = 36, 3


class KafkaRefused(Exception):
    """The broker answered with an error code, which is in the message."""


def has_controller(port: int) -> bool:
    """Whether the broker serves and knows its controller."""
    try:
        answer = _call(port, _METADATA, 1, _NO_TOPICS, limit_s=2.0)
    except (OSError, struct.error):
        return False
    brokers, at = _after_brokers(answer)
    (controller,) = struct.unpack_from(">i", answer, at)
    return bool(brokers > 0 and controller >= 0)


def create_topic(port: int, name: str, partitions: int) -> None:
    """Makes a topic of one replica; one that is there is left as it is. Raises KafkaRefused, OSError."""
    topic = _string(name) + struct.pack(">ihii", partitions, 1, 0, 0)
    body = struct.pack(">i", 1) + topic + struct.pack(">i?", int(_LIMIT_S * 1000), False)
    answer = _call(port, _CREATE_TOPICS, 2, body)
    # throttle, count, name, code
    _check(answer, name, allowed=_TOPIC_EXISTS)


def delete_topic(port: int, name: str) -> None:
    """Deletes a topic; that there is none is fine. Raises KafkaRefused, OSError."""
    body = struct.pack(">i", 1) + _string(name) + struct.pack(">i", int(_LIMIT_S * 1000))
    _check(_call(port, _DELETE_TOPICS, 1, body), name, allowed=_UNKNOWN_TOPIC)


def topics(port: int) -> Sequence[str]:
    """The names of all topics. Raises OSError."""
    answer = _call(port, _METADATA, 1, struct.pack(">i", -1))
    _, at = _after_brokers(answer)
    (count,) = struct.unpack_from(">i", answer, at + 4)
    at += 8
    names: list[str] = []
    for _ in range(count):
        end = _after_string(answer, at + 2)
        names.append(answer[at + 4 : end].decode())
        (partitions,) = struct.unpack_from(">i", answer, end + 1)
        at = end + 5
        for _ in range(partitions):
            at += 10
            for _ in ("replicas", "in sync"):
                (length,) = struct.unpack_from(">i", answer, at)
                at += 4 + 4 * length
    return names


def _after_brokers(answer: bytes) -> tuple[int, int]:
    """How many brokers there are, and where the list ends: each is a number, a host, a port and a rack."""
    (brokers,) = struct.unpack_from(">i", answer)
    at = 4
    for _ in range(brokers):
        at = _after_string(answer, at + 4)
        at = _after_string(answer, at + 4)
    return brokers, at


def _after_string(answer: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">h", answer, at)
    return at + 2 + max(int(length), 0)


def _check(answer: bytes, name: str, *, allowed: int) -> None:
    (code,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name.encode()))
    if code not in (0, allowed):
        raise KafkaRefused(f"{name}: error {code}")


def _call(port: int, call: int, version: int, body: bytes, limit_s: float = 2 * _LIMIT_S) -> bytes:
    """One request and its answer, without their headers."""
    request = struct.pack(">hhi", call, version, 1) + _string("pushsse-deploy") + body
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", _exactly(connection, 4))
        return _exactly(connection, length)[4:]


def _exactly(connection: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        piece = connection.recv(count - len(read))
        if not piece:
            raise ConnectionResetError("the broker closed the connection")
        read += piece
    return read


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()
