"""The first hop of the path: events come in, from Kafka or by HTTP, and leave as drafts to be dispatched."""
