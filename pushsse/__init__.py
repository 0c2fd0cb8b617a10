"""pushsse: events from Kafka to people's open streams, through their own switches.

Kafka ─► intake ─► dispatcher ─► backplane.publish ═► Redis ═► backplane.listen ─► hub ─► subscriber ─► client
"""

__version__ = "0.1.0"
