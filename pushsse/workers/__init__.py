"""`serve --workers`: several processes that share one port, and the supervisor that keeps them running."""
