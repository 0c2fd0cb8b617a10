"""People's questions, and the answers that stream back to all their devices.

api ─► service (ask, cancel, read) ─► answerer ─► growing (deltas) ─► life (status, events) ─► backplane
"""
