"""The schema's changes, oldest first. They only add, so that two versions of pushsse can run side by side.

There is no 0007; 0008 follows 0005 beside 0006.
"""
