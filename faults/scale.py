"""How much of everything: the whole run, and the fast one of the ordinary tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """`lead_s` is the load before a fault, `quiet_s` how long nothing may come until things are settled."""

    streams: int = 300
    rate: float = 200.0
    lead_s: float = 3.0
    quiet_s: float = 3.0
    fast: bool = False


WHOLE = Scale()
FAST = Scale(streams=60, rate=100.0, lead_s=1.0, quiet_s=1.0, fast=True)
