"""How close a question is to the phrasings that somebody wrote down, from 0 to 100.

Used by the FAQ. Words are compared where a language has them between spaces, characters where it hasn't
(Chinese, Japanese); a question is only compared with phrasings of its own kind.
"""

import re
import unicodedata
from dataclasses import dataclass

from rapidfuzz import fuzz, utils

THRESHOLD = 70.0
# Words that any question has: left in, they'd make "How do I bake bread?" look like half of the file.
# "on" and "off" aren't among them: they decide the meaning.
_FILLERS = frozenset(
    """
    a an and are at be by can could d did do does for from get have how i if in into is it its just
    ll m may me my of or please re s so some t tell that the their them there this to us ve was we
    what when where which who will with would you your
    """.split()  # noqa: SIM905
)
_CHINESE_FILLERS = re.compile(
    r"请问|请|一下|怎么样|怎么|如何|怎样|怎|什么|吗|呢|啊|吧|的|了|我|您|你|要|想|能|可以|一种|某个|某类|这个|这些|一个"
)
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Text:
    """A text ready to be compared: all of it, what is left without fillers, and which kind it is."""

    whole: str
    essence: str
    ideographic: bool


def prepared(text: str) -> Text:
    """Folds widths and case, and drops punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    whole = " ".join(utils.default_process(folded).split())
    if is_ideographic(text):
        whole = whole.replace(" ", "")
        return Text(whole, _CHINESE_FILLERS.sub("", whole) or whole, ideographic=True)
    words = [_stem(word) for word in whole.split() if word not in _FILLERS]
    return Text(whole, " ".join(words) or whole, ideographic=False)


def is_ideographic(text: str) -> bool:
    """Whether words have no spaces between them: a third of the letters are ideographs or kana."""
    return len(_IDEOGRAPH.findall(text)) * 3 >= max(1, len(_LETTER.findall(text)))


def closeness(question: Text, phrasing: Text) -> float:
    """How close the whole of a question is to a phrasing: 100 for the same."""
    if question.ideographic != phrasing.ideographic:
        return 0.0
    if question.whole == phrasing.whole:
        return 100.0
    whole = fuzz.ratio(question.whole, phrasing.whole)
    if question.ideographic:
        # As a bag of characters too, since the order of clauses is free.
        bag = fuzz.token_sort_ratio(" ".join(question.essence), " ".join(phrasing.essence))
        return 0.3 * whole + 0.3 * fuzz.ratio(question.essence, phrasing.essence) + 0.4 * bag
    return 0.2 * whole + 0.8 * fuzz.token_sort_ratio(question.essence, phrasing.essence)


def _stem(word: str) -> str:
    """Enough for plurals and the like: alarms, alarm; switched, switching, switch."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word.removesuffix(ending)
    return word
