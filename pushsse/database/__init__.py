"""The database. Used by the stores of preferences and questions, and by nobody else.

A Database's `session` and `transaction` hand out one connection; Tortoise's models use it by themselves
inside the block, and `rows` runs a statement directly. Whatever means that the database is away becomes
DatabaseUnavailable here. Blocks don't nest: SQLite has one connection.
"""

from pushsse.database.configuration import TORTOISE
from pushsse.database.database import Database
from pushsse.database.session import Session, Statement
from pushsse.database.witness import WitnessTable

__all__ = ["TORTOISE", "Database", "Session", "Statement", "WitnessTable"]
