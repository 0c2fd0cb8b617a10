"""`faq:FILE`: the best match from a question file, TOML or JSON; without FILE the one that pushsse ships.

Asked by `answering`, which supervises `run`. Loaded when the process starts, and again when the file has
changed. Never calls anything: for what isn't in the file it has the closest questions to suggest.

`Matcher` says how close a question is to the phrasings of the file, from 0 to 100. A text becomes features:
stems of words where a language has them between spaces, single characters and pairs of them where it hasn't
(Chinese, Japanese); words that the file calls the same are one feature. A feature weighs the more the fewer
entries have it, the most if none has: "How do I turn the light off?" isn't about notifications.
Deliberate: the work is bounded, whatever the length of question and file (`_MAX_...`).
"""

import asyncio
import gc
import heapq
import logging
import math
import re
import tomllib
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from pushsse import strictjson
from pushsse.errors import InvalidInput, SettingsError
from pushsse.questions import Answered, By, Link, Question
from pushsse.questions.answerers import Answers, Delta, NotSure, Piece

SHIPPED = Path(__file__).parent.parent / "faq.toml"
logger = logging.getLogger(__name__)
LOOK_S = 2.0
_SUGGESTED = 3
_MAX_FILE_BYTES = 4 * 1024 * 1024
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|[。！？]|\Z)\s*", re.DOTALL)
T = TypeVar("T")
Line = Annotated[str, Meta(min_length=1, max_length=500)]
Word = Annotated[str, Meta(min_length=1, max_length=40)]
Language = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*\Z",
        description="a language tag (BCP 47)",
        examples=["zh-CN"],
    ),
]


class Wording(Struct, frozen=True, forbid_unknown_fields=True):
    """A question in one language: how people ask it, and its answer."""

    ask: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=100)]
    answer: Annotated[str, Meta(min_length=1, max_length=20_000)]
    links: Annotated[tuple[Link, ...], Meta(max_length=10)] = ()


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One way to ask, with what it leads to."""

    text: str
    language: str
    wording: Wording


@dataclass(frozen=True, slots=True)
class Faq:
    """Answers from a file; sentences follow each other at `pace_s`."""

    name: str
    phrasings: tuple[Phrasing, ...]
    matcher: "Matcher"
    nothing: dict[str, str]
    pace_s: float = 0.06

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The answer of the closest question by sentences; else it isn't sure, and has suggestions."""
        found = self.match(question.text)
        if isinstance(found, Answered):
            yield NotSure(found)
            return
        for sentence in _SENTENCE.findall(found.answer):
            yield Delta(sentence)
            await asyncio.sleep(self.pace_s)
        yield Answered(By("bot", self.name), found.answer, found.links)

    def match(self, text: str) -> Wording | Answered:
        """The wording that a question is close enough to, or what is said when there is none."""
        close = self.matcher.closest(text)
        found = [self.phrasings[each.place] for each in close]
        if is_answer(close):
            return found[0].wording
        language = self._language(text)
        closest = [phrasing for phrasing in found if phrasing.language == language]
        # Where little is close, what the file begins with: its most common questions.
        others = (phrasing for phrasing in self.phrasings if phrasing.language == language)
        suggested: dict[str, None] = {}
        for phrasing in (*closest, *others):
            suggested.setdefault(phrasing.wording.ask[0])
            if len(suggested) == _SUGGESTED:
                break
        return Answered(By("bot", self.name), self.nothing[language], suggestions=tuple(suggested))

    def _language(self, text: str) -> str:
        """Of the file's languages the first that is written the way the question is."""
        kind = is_ideographic(text)
        fitting = (language for language, word in self.nothing.items() if is_ideographic(word) == kind)
        return next(fitting, next(iter(self.nothing)))


class FaqAnswerer:
    """Answers from a file as it is now. Where that can't be used, as it was before."""

    def __init__(self, path: Path, where: str, *, look_s: float = LOOK_S) -> None:
        """Reads the file. Raises SettingsError."""
        self._path = path
        self._where = where
        self._look_s = look_s
        # Before it is read: a change meanwhile is seen at the next look.
        self._seen = _stamp(path)
        self.faq = _read(path, where)

    def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """What the file says. A question that is being answered when the file changes keeps its answer."""
        return self.faq.answer(question)

    async def run(self, answers: Answers) -> None:
        """Looks at the file, for ever; the one that is shipped doesn't change."""
        while self._path != SHIPPED:
            await asyncio.sleep(self._look_s)
            # A thread each time, since a disk may be slow and a file takes up to some seconds.
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        # Told once of each state, whether it is good or bad.
        self._seen = stamp
        try:
            with _uncollected():
                self.faq = _read(self._path, self._where)
        except SettingsError as error:
            logger.error("%s; questions are answered by the file as it was before", error)
        else:
            logger.info("%s: read again, %d phrasings", self._path, len(self.faq.phrasings))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Walks over what is made meanwhile neither now nor later: a large file has a million objects.

    One walk would hold the event loop for half a second. They have no cycles, and go when nobody has them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


Stamp = tuple[int, int, int] | None


def _stamp(path: Path) -> Stamp:
    """What tells a file from the one that was there before; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    nothing: Annotated[dict[Language, Line], Meta(min_length=1)]
    entry: Annotated[tuple[dict[str, object], ...], Meta(min_length=1, max_length=5_000)]
    name: Annotated[str, Meta(min_length=1, max_length=128)] = "faq"
    same: Annotated[
        tuple[Annotated[tuple[Word, ...], Meta(min_length=2, max_length=100)], ...], Meta(max_length=500)
    ] = ()


def answerer(file: str, where: str) -> FaqAnswerer:
    """Answers from a question file; "" is the shipped one. Raises SettingsError that names file and entry."""
    path = Path(file) if file else SHIPPED
    return FaqAnswerer(path, f"{where}: {path}")


def load(file: str) -> Faq:
    """Reads a question file, as `answerer` does."""
    return answerer(file, "PUSHSSE_ANSWERER").faq


def _read(path: Path, where: str) -> Faq:
    return _made(_bytes(path, where), path.suffix, where)


# A start asks twice: first whether the settings can be used, then for the answerer.
@lru_cache(maxsize=1)
def _made(body: bytes, suffix: str, where: str) -> Faq:
    read = _convert(_parsed(body, suffix, where), _File, where)
    phrasings: list[Phrasing] = []
    entries: list[int] = []
    wordings = 0
    for number, entry in enumerate(read.entry, 1):
        name = entry.get("id", f"number {number}")
        for language, wording in _wordings(entry, f"{where}: entry {name}").items():
            if language not in read.nothing:
                raise SettingsError(f"{where}: entry {name}: [nothing] has no {language!r}")
            phrasings += [Phrasing(ask, language, wording) for ask in wording.ask]
            entries += [wordings] * len(wording.ask)
            wordings += 1
    matcher = Matcher([phrasing.text for phrasing in phrasings], entries, read.same)
    return Faq(read.name, tuple(phrasings), matcher, read.nothing)


def _wordings(entry: dict[str, object], where: str) -> dict[str, Wording]:
    languages = {key: value for key, value in entry.items() if key != "id"}
    if not languages:
        raise SettingsError(f"{where}: has no language")
    return {key: _convert(value, Wording, f"{where}: {key}") for key, value in languages.items()}


def _bytes(path: Path, where: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SettingsError(f"{where}: has more than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from None


def _parsed(body: bytes, suffix: str, where: str) -> object:
    try:
        return _json(body) if suffix == ".json" else tomllib.loads(body.decode())
    except (InvalidInput, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def _json(body: bytes) -> object:
    """Without the looks of `strictjson` at all bytes, which would hold the event loop of a thread's node."""
    try:
        return msgspec.json.decode(body.removeprefix(strictjson.BOM))
    except strictjson.REFUSALS as error:
        strictjson.refuse(body, error)


def _convert(value: object, to: type[T], where: str) -> T:
    try:
        return strictjson.convert(value, to)
    except InvalidInput as error:
        raise SettingsError(f"{where}: {error}") from None


# Measured with tests/questions/asked.toml: a wrong answer is worse than three suggestions.
_THRESHOLD = 46.0
# Two entries that are closer to each other than this are a choice for the person who asked.
_SURE, _APART, _APART_WHEN_SURE = 75.0, 5.0, 1.0
# How much of the score is the likeness to one phrasing; the rest is what the entry's phrasings cover of it.
_ALIKE = 0.5
_CHARACTER, _PAIR = 0.25, 0.5
# As long as a phrasing in a file may be.
_MAX_PHRASING = 500
# What is compared of a question, and of each sentence of a longer one.
_MAX_TEXT, _MAX_SENTENCE = 200, 100
# How many look-ups one comparison may take, the rarest features first, and how many entries are compared.
_MAX_STEPS = 2_000
_COMPARED = 8
# Sentences of a longer text that are looked at by themselves.
_MAX_SENTENCES = 3
# Words that a slip is looked for in: shorter ones are too much alike.
_LONG, _LONGEST = 5, 30
_MAX_KNOWN = 20_000
# Words that any question has: left in, they'd make "How do I bake bread?" look like half of the file.
# "on", "off", "not" and "why" aren't among them: they decide the meaning.
_FILLERS = frozenset(
    """
    a an and any are as at be been by can could d did do does for from have hi hello how i if in into is it
    its just ll m may me my of one only or our please pls possible re s should so some t tell than thanks that
    the their them then there these they this those to today us use ve want was we when where who will with
    would yes yesterday you your
    """.split()  # noqa: SIM905
)
_CHINESE_FILLERS = """
    请问 请 一下 怎么样 怎么办 怎么 如何 怎样 怎 什么 吗 呢 啊 吧 的 了 我 我们 您 你 你们 他们 要 想 能
    可以 一种 某种 某个 某些 某一 这个 这些 这种 那个 那些 一个 一条 关于 都 也 还 把 会 就 是 有 和 跟 与 在
    给 对 让 被 该 应该 需要 现在 今天 昨天 以后 时候 你好 您好 谢谢 帮忙 处理 知道 想要
    """.split()  # noqa: SIM905
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
# "don't", and as it is typed: dont. Not "event", "want".
_NEGATED = re.compile(r"\b(ca|wo|do|does|did|is|are|was|could|would|should|have|has)n(?:['\u2019]t|t)\b")
_ASKED_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]?")
Features = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Close:
    """A phrasing, by its place in the list, and how close it is."""

    score: float
    place: int


def is_answer(found: Sequence[Close]) -> bool:
    """Whether the closest phrasing, of one for each entry, is close enough to be answered."""
    if not found or found[0].score < _THRESHOLD:
        return False
    apart = _APART if found[0].score < _SURE else _APART_WHEN_SURE
    return len(found) == 1 or found[0].score - found[1].score >= apart


class Matcher:
    """Phrasings ready to be compared with; `entries` says for each its entry, counted from 0, in order."""

    def __init__(
        self, phrasings: Sequence[str], entries: Sequence[int], same: Iterable[Sequence[str]] = ()
    ) -> None:
        self._words = _Words(same)
        self._exact: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        # By a feature's number: the entries that have it, each once.
        self._holders: list[array[int]] = []
        self._entries: list[_Entry] = []
        for place, (phrasing, entry) in enumerate(zip(phrasings, entries, strict=True)):
            self._exact.setdefault(folded(phrasing), place)
            if entry == len(self._entries):
                self._entries.append(_Entry(is_ideographic(phrasing), []))
            numbers = array("I", map(self._number, self._words.features(phrasing)))
            self._entries[entry].phrasings.append(_Phrasing(place, numbers))
            for number in numbers:
                holders = self._holders[number]
                if not holders or holders[-1] != entry:
                    holders.append(entry)
        names = zip(self._numbers, self._holders, strict=True)
        self._weights = [_weight(name, len(self._entries), len(holders)) for name, holders in names]
        for each in self._entries:
            for kept in each.phrasings:
                kept.weight = sum(self._weights[number] for number in kept.numbers)
        self._words.learn(self._numbers)

    def _number(self, feature: str) -> int:
        number = self._numbers.setdefault(feature, len(self._numbers))
        if number == len(self._holders):
            self._holders.append(array("I"))
        return number

    def closest(self, text: str) -> list[Close]:
        """The closest phrasing of each entry that has anything of the question, the closest first."""
        if len(text) <= _MAX_PHRASING and (place := self._exact.get(folded(text))) is not None:
            return [Close(100.0, place)]
        found: dict[int, Close] = {}
        for piece in _pieces(text):
            for entry, close in self._compare(piece):
                if entry not in found or close.score > found[entry].score:
                    found[entry] = close
        return sorted(found.values(), key=lambda close: (-close.score, close.place))

    def _compare(self, text: str) -> Iterator[tuple[int, Close]]:
        asked = {name: self._weight(name) for name in self._words.features(text, correct=True)}
        whole = sum(asked.values())
        numbers = {self._numbers[name] for name in asked if name in self._numbers}
        covered = self._covered(asked, is_ideographic(text))
        steps = 0
        for entry in heapq.nlargest(_COMPARED, covered, key=covered.__getitem__):
            best = Close(-1.0, 0)
            for phrasing in self._entries[entry].phrasings:
                steps += len(phrasing.numbers)
                if steps > _MAX_STEPS and best.score >= 0:
                    break
                shared = sum(self._weights[number] for number in numbers.intersection(phrasing.numbers))
                alike = 2 * shared / (whole + phrasing.weight)
                score = 100 * (_ALIKE * alike + (1 - _ALIKE) * covered[entry] / whole)
                if score > best.score:
                    best = Close(score, phrasing.place)
            yield entry, best

    def _covered(self, asked: Features, ideographic: bool) -> Mapping[int, float]:
        """How much of a question the phrasings of each entry of its kind cover together."""
        covered: dict[int, float] = defaultdict(float)
        steps = 0
        # By name, too: sets have no order, and the answer has to be the same on every node.
        for feature in sorted(asked, key=lambda feature: (-asked[feature], feature)):
            number = self._numbers.get(feature)
            if number is None:
                continue
            holders = self._holders[number]
            steps += len(holders)
            if steps > _MAX_STEPS:
                break
            weight = asked[feature]
            for entry in holders:
                covered[entry] += weight
        return {
            entry: sum_ for entry, sum_ in covered.items() if self._entries[entry].ideographic == ideographic
        }

    def _weight(self, name: str) -> float:
        number = self._numbers.get(name)
        return _weight(name, len(self._entries), 0.5) if number is None else self._weights[number]


@dataclass(slots=True)
class _Phrasing:
    """A phrasing's place in the list, its features by number, and what they weigh together."""

    place: int
    numbers: "array[int]"
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """The phrasings of one entry, and how they are written."""

    ideographic: bool
    phrasings: list[_Phrasing]


class _Words:
    """How a text becomes features: stems, words that mean the same, for a question words with a slip."""

    def __init__(self, same: Iterable[Sequence[str]]) -> None:
        self._same: dict[str, str] = {}
        for group in same:
            for word in group:
                plain = folded(word)
                self._same[plain if is_ideographic(plain) else _stem(plain)] = f"={folded(group[0])}"
        han = [word for word in self._same if is_ideographic(word)]
        terms = sorted({*han, *_CHINESE_FILLERS}, key=len, reverse=True)
        self._terms = re.compile("|".join(map(re.escape, terms)))
        self._known: frozenset[str] = frozenset()
        self._near: dict[str, str] = {}

    def learn(self, features: Iterable[str]) -> None:
        """The words of the file, as what a misspelt one may have meant."""
        words = [
            each for each in {*features, *self._same} if len(each) >= _LONG and not _IDEOGRAPH.search(each)
        ]
        self._known = frozenset(words)
        for word in words[:_MAX_KNOWN]:
            for shorter in _without_one(word):
                self._near.setdefault(shorter, word)

    def features(self, text: str, *, correct: bool = False) -> set[str]:
        """The features of a text."""
        plain = folded(text)
        return set(self._content(plain, correct=correct)) or set(_WORDS.findall(plain))

    def _content(self, plain: str, *, correct: bool) -> Iterator[str]:
        for run in _WORDS.findall(plain):
            if is_ideographic(run):
                yield from self._han(run)
            elif run not in _FILLERS:
                word = _stem(run)
                if correct and word not in self._known and word not in self._same:
                    word = self._meant(word)
                yield self._same.get(word, word)

    def _han(self, run: str) -> Iterator[str]:
        start = 0
        for found in self._terms.finditer(run):
            yield from _pairs(run[start : found.start()])
            if (name := self._same.get(found[0])) is not None:
                yield name
            start = found.end()
        yield from _pairs(run[start:])

    def _meant(self, word: str) -> str:
        """The word of the file that is one slip away: a letter more, less or another, or two swapped."""
        if not _LONG <= len(word) <= _LONGEST:
            return word
        for shorter in (word, *_without_one(word)):
            near = shorter if shorter in self._known else self._near.get(shorter)
            if near is not None and near[0] == word[0] and _is_slip(word, near):
                return near
        return word


def folded(text: str) -> str:
    """Widths, case and the two ways of writing Chinese made one; blanks single, punctuation away."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(SIMPLIFIED)
    return " ".join(_WORDS.findall(_NEGATED.sub(" not ", plain).replace("cannot", " not ")))


def is_ideographic(text: str) -> bool:
    """Whether words have no spaces between them: a sixth of the letters are ideographs or kana.

    An ideograph says as much as several letters, and names of programs stand in Latin letters.
    """
    return len(_IDEOGRAPH.findall(text)) * 6 >= max(1, len(_LETTER.findall(text)))


def _pieces(text: str) -> list[str]:
    """The whole question, and of several sentences those that ask: a greeting isn't what it is about."""
    pieces = [text[:_MAX_TEXT]]
    sentences = [each.strip() for each in _ASKED_SENTENCE.findall(text)]
    if len(sentences) > 1:
        asking = [each for each in sentences if each.endswith(("?", "\uff1f"))]
        pieces += [each[-_MAX_SENTENCE:] for each in asking[-_MAX_SENTENCES:]]
    return pieces


def _pairs(run: str) -> Iterator[str]:
    yield from run
    yield from (run[at : at + 2] for at in range(len(run) - 1))


def _weight(feature: str, count: int, among: float) -> float:
    """How much a feature says: the rarer the more; a character less than a pair, a pair less than a word."""
    size = (_CHARACTER, _PAIR)[len(feature) - 1] if len(feature) <= 2 and _IDEOGRAPH.search(feature) else 1.0
    return size * math.log(1 + count / among)


def _stem(word: str) -> str:
    """Enough for plurals and the like: alarms, alarm; switched, switching, switch."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            stem = word.removesuffix(ending)
            doubled = len(ending) > 1 and len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "ls"
            return stem[:-1] if doubled else stem
    return word


def _is_slip(word: str, near: str) -> bool:
    """Whether one is the other with a slip; in a short word another letter is another word: order, older."""
    return len(word) != len(near) or len(word) > _LONG + 1 or sorted(word) == sorted(near)


def _without_one(word: str) -> Iterator[str]:
    return (word[:at] + word[at + 1 :] for at in range(len(word)))


_PAIRS = (
    "關关閉闭開开啟启啓启訂订閱阅種种類类個个這这樣样麼么嗎吗為为爲为發发佈布給给從从對对會会來来時时間间過过還还沒没"
    "斷断線线網网絡络連连離离電电腦脑設设備备機机頁页問问題题請请謝谢應应該该說说話话讀读寫写聽听見见視视覺觉觀观"
    "點点擊击鈕钮選选擇择擋挡鎖锁變变換换更更載载據据庫库號号碼码權权驗验證证錄录記记帳账賬账戶户員员費费買买賣卖"
    "錢钱價价單单貨货運运輸输訊讯報报鈴铃聲声靜静響响顯显標标簽签簡简體体總总數数級级層层圖图檔档夾夹資资"
    "訓训師师學学習习課课頻频條条後后幾几萬万億亿與与並并無无嚴严業业東东絲丝兩两豐丰臨临義义樂乐買买亂乱爭争虧亏"
    "雲云亞亚產产畝亩親亲僅仅僕仆價价眾众優优傷伤倫伦偉伟傳传債债傾倾償偿儲储兒儿內内冊册軍军農农馮冯沖冲決决況况凍冻"
    "凈净準准減减鳳凤憑凭劃划劉刘則则剛刚創创刪删別别劑剂動动務务勝胜勞劳勢势勵励勸劝辦办匯汇區区醫医華华協协賣卖盧卢"
    "衛卫廠厂廳厅歷历曆历壓压厭厌縣县參参雙双髮发葉叶嘆叹嚇吓啞哑喚唤嗇啬團团園园圍围國国圓圆聖圣場场壞坏塊块堅坚壇坛"
    "壩坝墳坟墜坠壘垒處处備备複复復复夠够頭头誇夸奪夺奮奋獎奖婦妇媽妈孫孙寧宁實实寵宠審审憲宪宮宫寬宽賓宾導导將将爾尔"
    "塵尘嘗尝屆届屬属歲岁島岛幣币帥帅帶带幫帮幹干慶庆廢废異异棄弃張张彈弹強强歸归當当徹彻徑径憶忆懷怀態态懇恳惡恶惱恼"
    "憂忧懶懒慣惯戲戏戰战撲扑執执擴扩掃扫揚扬擾扰撫抚搶抢護护擔担擬拟攔拦擁拥擠挤揮挥損损撿捡搖摇攜携攝摄敵敌斬斩舊旧"
    "曬晒曉晓暫暂術术樸朴殺杀雜杂條条楊杨極极構构槍枪櫃柜檸柠棟栋欄栏樹树橋桥檢检樓楼橫横歡欢歐欧毀毁畢毕氣气漢汉湯汤"
    "潔洁測测濟济濃浓淚泪潑泼澤泽滅灭燈灯靈灵災灾爐炉熱热煙烟煩烦燒烧燙烫牆墙獨独獲获環环現现瑪玛畫画療疗瘋疯癥症盡尽"
    "盤盘監监蓋盖矚瞩礦矿確确礙碍禮礼禍祸離离積积稱称穩稳窮穷竊窃競竞筆笔籌筹糧粮糾纠紀纪約约紅红純纯級级紛纷紙纸細细"
    "終终組组結结絕绝統统經经綁绑維维綱纲綠绿練练縮缩織织續续罰罚羅罗職职聯联聰聪腸肠膚肤膽胆臉脸艦舰藝艺節节蘇苏藍蓝"
    "藥药虛虚蟲虫補补裝装製制襲袭規规覽览計计認认討讨讓让議议許许論论訪访詞词試试詩诗誠诚詳详誤误誰谁調调談谈識识譯译"
    "豬猪貓猫貝贝負负財财責责敗败貴贵貼贴質质購购贈赠贏赢趕赶趙赵趨趋躍跃車车軌轨轉转輪轮軟软輕轻較较輔辅輛辆辭辞邊边"
    "達达遷迁遠远違违適适遞递遊游遺遗郵邮鄰邻鄉乡醜丑釋释針针釘钉鐘钟鋼钢錯错鍵键鍋锅鏡镜長长門门閃闪閒闲聞闻隊队陽阳"
    "陰阴陣阵階阶際际陸陆陳陈險险隨随隱隐難难霧雾靈灵頂顶項项順顺須须預预領领頸颈額额顏颜願愿顧顾風风飛飞飯饭飲饮餓饿"
    "館馆馬马駕驾騎骑驅驱驚惊魚鱼鮮鲜鳥鸟鴨鸭麗丽麥麦黃黄齊齐齒齿龍龙龜龟儘尽裡里裏里著着於于喺在係是嘅的銷销舉举驟骤鬧闹"
)
SIMPLIFIED = str.maketrans(_PAIRS[::2], _PAIRS[1::2])
