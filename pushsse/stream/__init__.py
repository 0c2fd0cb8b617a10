"""One open stream: what is written to it, how, and why it ends."""
