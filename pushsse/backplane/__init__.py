"""What carries publications between nodes: the contract (base), Redis, and memory in a single process."""
