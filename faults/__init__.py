"""The guarantees under real faults on real parts. `make faults` runs all of it, and writes docs/faults.md."""
