"""Kafka: the client, a producer, a consumer with its partitions, and the dead-letter topic."""
