"""`make bench`: what the product costs on this machine, beside the least that any server could cost.

`__main__` runs the measurements one after another; `rows` makes the table of them. A server runs on one
processor, the load on another. Linux only, since CPU time and memory are read from /proc.
"""
