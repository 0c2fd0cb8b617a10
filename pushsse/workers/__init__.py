"""Several processes that share a port: the supervisor, what it hears, and its workers' side of it."""
