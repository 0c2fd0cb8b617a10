"""Run as ``python -m pushsse``."""

from pushsse.cli import main

main()
