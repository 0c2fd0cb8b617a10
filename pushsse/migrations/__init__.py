"""The schema's changes, oldest first. They only add, so that two versions of pushsse can run side by side.

There is no 0007. 0008 follows 0005 beside 0006, so a database with either gets the other; `makemigrations`
lets the next one follow both. What a table is for is its model's docstring: where that changes, the text
changes in the migration that made the table, since no database needs it.
"""
