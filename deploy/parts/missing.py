"""What a machine lacks. Raised by `packages` and `java`; the tests skip on it."""


class PartMissing(Exception):
    """A part isn't on this machine, and can't be installed. The message says what to do."""
