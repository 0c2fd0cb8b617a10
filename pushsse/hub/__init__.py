"""The node's side of the logs: what it has heard lately, who is here, and how each gets to where the node is."""
