"""What became of a client over one fault: what it lost, had twice, and how long it was away."""

from dataclasses import dataclass

from tests.clients.listening import Listening


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of events; `away_s` is None for a client that had no need to come back, or didn't."""

    lost: int
    twice: int
    back: bool
    connections: int
    gaps: int = 0
    away_s: float | None = None
    ended: bool = False

    @property
    def whole(self) -> bool:
        """Everything came, once."""
        return self.back and not self.lost and not self.twice and not self.gaps

    def __str__(self) -> str:
        if not self.back:
            return "ended" if self.ended else "silent"
        counts = ((self.lost, "lost"), (self.twice, "twice"), (self.gaps, "told of gaps"))
        wrong = [f"{count} {what}" for count, what in counts if count]
        if self.away_s is None:
            return ", ".join(wrong) or "✓"
        again = f"back in {self.away_s:.0f} s" if self.connections == 1 else f"{self.connections} reconnects"
        return ", ".join([*wrong, again])


def judge(client: Listening, numbers: range, since: float) -> Verdict:
    """`numbers` were published; the fault came at `since`, in monotonic seconds."""
    told = list(client.told)
    came = [number for number in client.numbers() if number in numbers]
    anew = [at for at, each in enumerate(told) if each.event == "ready" and each.at > since]
    away_s = None
    if anew:
        before = told[anew[0] - 1].at if anew[0] else since
        away_s = told[anew[0]].at - max(before, since)
    return Verdict(
        lost=len(numbers) - len(set(came)),
        twice=len(came) - len(set(came)),
        back=numbers[-1] in came,
        connections=len(anew),
        gaps=sum(1 for at in anew if told[at].data.get("resume") == "gap"),
        away_s=away_s,
        ended=client.over or bool(client.all("ended")),
    )
