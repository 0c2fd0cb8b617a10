"""People's questions, and the answers that stream back to all their devices."""
