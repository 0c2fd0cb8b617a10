"""The HTTP interface: who is asking, what they may, and one module for each group of calls."""
