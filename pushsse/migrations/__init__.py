"""The schema's changes, oldest first. They only add, so that two versions of pushsse can run side by side."""
