"""The HTTP interface: who is asking, what they may do, and one module for each group of calls."""
