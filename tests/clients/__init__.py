"""The matrix of clients: other people's libraries through nginx, over what happens to streams.

`make clients` runs all of them and writes the table in docs/clients.md; test_matrix.py runs a few, quickly.
"""
