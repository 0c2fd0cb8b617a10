"""The node's side of the logs: what it heard lately, who is here, how each gets to where it is."""
