"""In which of the older encodings a text is, by the letters that its languages have: a likelihood, no list of bytes.

    log P(bytes | encoding, language) = Σ over letters beyond ASCII of log p(letter | language, where in its word)
                                        + bonus · number of the language's small words

Letters of a language are in the order of how often they come, and p falls as 1 / (2 + rank). What no word has there,
such as a capital behind a small letter, a sign between two letters, a letter of no such language, is unlikely; so a
wrong encoding shows soon. East Asian encodings have classes of signs instead of single ones. The most likely pair wins.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

_SAMPLE_BYTES = 2**15
_FOREIGN = -9.0  # a letter or sign that the language has not
_CONTROL = -15.0
_ODD_CASE = -6.0  # more: a capital behind a small letter
_CAPITAL = -2.0
_SIGN = -4.5
_SIGN_IN_WORD = -10.0
_SMALL_WORD = 2.5
_UNUSUAL = 8.0
_LEAST = -7.5  # a letter on average; less is no text
_WIDE_BYTES, _FEWEST_WIDE, _NEARLY_ALL, _AS_CHANCE_HAS_IT = 2**12, 8, 0.9, 0.6
_BY_DIGIT = -6.0  # more: a letter beside a digit
_SIGNS = frozenset("„“”‘’‚«»‹›–—…·•§°€£©®™№\xa0¿¡´×½¼²³µ\xad")
_BEFORE_WORDS = frozenset("„“‘‚«»‹›”€£§¿¡")  # some tongues open with what others close with
_IN_WORDS = frozenset("’·\xad´–—…")
_WORD = re.compile(r"(?<!\S)[^\W\d_](?!\S)|[^\W\d_]{2,}")  # `o=a` is no word of Portuguese
_LETTERS, _AROUND = re.compile(rb"[\x80-\xff]{1,100}"), 100


@dataclass(frozen=True, slots=True)
class _Language:
    """Its letters beyond ASCII, the most frequent first, and its smallest words."""

    letters: str
    small_words: str = ""


_ENGLISH = _Language(
    "", "the of and to in is was for it with as his on be at by had not are from this but they which you"
)
_WEST = (
    _ENGLISH,
    _Language("äüöß", "der die und in den von zu das mit sich des auf ist im dem nicht ein eine als auch es an er war"),
    _Language("éèàêçùôîâûëïœ", "de la le et les des en un du une que est pour qui dans par plus au il sur ne se ce sa"),
    _Language("óíáéñúü", "de la que el en y a los se del las un por con no una su para es al lo como su fue son"),
    _Language("ãçáéíóêõúâà", "de a o que e do da em um para com os no se na por mais as dos como mas foi ao ele das"),
    _Language("èàùòìé", "di e il la che in un a per del una si con non da sono le dei nel alla al come ha gli lo"),
    _Language("ëéïèöüó", "de van het een en in is op te dat die voor met zijn aan niet er door om ook als bij uit"),
    _Language("äöåé", "och i att det som en av den med till var inte om ett han men sig hade ja on ei se oli ovat"),
    _Language("øåæéö", "og i det at en til av som er den med for de var ikke et der han har fra om men seg blev"),
    _Language("áíðéóúþæöý", "og sem um til er en var hann ekki hafi eru var frá"),
)
_CENTRAL = (
    _ENGLISH,
    _Language("łęóążśćńź", "i w na z do nie to a jest o jak po co tak za od ale przez czy dla oraz ma tym tego jego"),
    _Language("íáěéýčřžšůúťďňó", "a se v na je o s z do i to za by ale jako po jsou k tak ve od pro jeho byl ze co"),
    _Language("áíéčžýšúľťôňďäóĺŕ", "a sa v na je s z do o to za by ale ako po k tak vo od pre jeho bol zo som sme"),
    _Language("áéöóőüíúű", "a az egy hogy nem is ez volt de meg csak el ki mint van vagy ha be le fel azt ezt sem"),
    _Language("ăîâşţșț", "de la cu pe nu o un din ce se mai ca sau lui este care pentru fost ale dar prin al a"),
    _Language("čšžćđ", "i u je se na da za od su ne s o a koji kao iz to bi ali po in v z ki ni pa so si ga"),
)
_BALTIC = (
    _ENGLISH,
    _Language("ėšųžįčąūę", "ir kad su tai yra bet kaip buvo ne iki apie jo per jie dar po nuo"),
    _Language("āīēšņļūžģčķ", "un ir ka no ar par uz bet tas kas bija tiek to pie vai ja kad"),
    _Language("äõüöšž", "ja on ei see et oli ka kui aga oma mis ta nii siis ma selle"),
)
_TURKISH = (_Language("ışğüöçîâ", "ve bir bu da de ile olarak daha kadar en gibi sonra olan ne ama var her o"),)
_CYRILLIC = (
    _Language("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё"),
    _Language("оанивітерслкудмпзябгьйчхцжїщшюєфґ"),
    _Language("аиотенрсвлкдпмзъугбячжхцшюйщфь"),
    _Language("аиоенрстујвклдмпљгзбчњћхшцжђфџ"),
)
_GREEK = (_Language("αοιετσνρκπμλίςόυωδγάέήχθώφύβξψζϊϋΐΰ"),)
_HEBREW = (_Language("יהולאתרבמשנקעדפחצגטזכםסןךףץ"),)
_ARABIC = (_Language("ايلمونتربةعدسفهكقحجىشصطخءزأضإغذثئظؤآ،"),)
_THAI = (_Language("านรอกเง่มยลวดทส้ตะัิีปบคหแจพชขใไโุู็ผซถณศธภญษฉ์ึำฐฎ"),)

_USUAL: dict[str, tuple[_Language, ...]] = {
    "windows-1252": _WEST,
    "windows-1250": _CENTRAL,
    "windows-1251": _CYRILLIC,
    "koi8-r": _CYRILLIC,
    "windows-1253": _GREEK,
    "iso-8859-2": _CENTRAL,
    "iso-8859-15": _WEST,
    "iso-8859-7": _GREEK,
    "windows-1254": _TURKISH,
    "windows-1257": _BALTIC,
    "iso-8859-13": _BALTIC,
    "iso-8859-4": _BALTIC,
    "windows-1255": _HEBREW,
    "iso-8859-8": _HEBREW,
    "windows-1256": _ARABIC,
    "iso-8859-6": _ARABIC,
    "iso-8859-5": _CYRILLIC,
    "koi8-u": _CYRILLIC,
    "cp874": _THAI,
}
_OLD: dict[str, tuple[_Language, ...]] = {
    "cp866": _CYRILLIC,
    "cp850": _WEST,
    "cp852": _CENTRAL,
    "mac-roman": _WEST,
    "mac-cyrillic": _CYRILLIC,
}
"""Encodings of languages, the likelier first: where two make one text of the bytes it decides; and of old machines."""

_KANA, _SYLLABLE, _HAN, _RARE = -3.0, -6.0, -6.5, -11.0
_KANA_ELSEWHERE, _NO_KANA = -9.0, -1.5
_DOUBLE: Mapping[str, re.Pattern[bytes]] = {
    "shift-jis": re.compile(rb"(?:[\x81\x88-\x97][\x40-\xfc])"),
    "euc-jp": re.compile(rb"(?:[\xa1\xb0-\xcf][\xa1-\xfe])"),
    "gb18030": re.compile(rb"(?:[\xa1\xa3\xb0-\xd7][\xa1-\xfe])"),
    "big5": re.compile(rb"(?:[\xa1\xa4-\xc6][\x40-\xfe])"),
    "euc-kr": re.compile(rb"(?:[\xa1\xb0-\xc8][\xa1-\xfe])"),
}
"""East Asian encodings, each with the bytes of its usual signs."""


def likeliest(data: bytes) -> str | None:
    """The name of the encoding that makes the most likely text of bytes that are no UTF-8; None where none does."""
    sample = _sample(data)
    found = [*_alphabetic(sample), *_east_asian(sample)]
    if not found:
        return None
    score, name = max(found, key=lambda pair: pair[0])
    letters = sum(byte > 0x7F for byte in sample)
    return name if score > _LEAST * letters else None


def likeliest_wide(data: bytes) -> str | None:
    """UTF-16 in the order of bytes in which nearly all signs are usual ones of one East Asian language; None if none.

    A fifth of all such signs are usual in a language, so that in the other order, or in bytes of anything else, as many
    are. Few signs prove nothing.
    """
    shares = {name: _usual(data[: min(len(data), _WIDE_BYTES) // 2 * 2], name) for name in ("utf-16-le", "utf-16-be")}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= _NEARLY_ALL and min(shares.values()) < _AS_CHANCE_HAS_IT else None


def _usual(data: bytes, encoding: str) -> float:
    text = data.decode(encoding, "replace")
    signs = "".join(sign for sign in text if sign > "\x7f")
    if len(signs) < _FEWEST_WIDE or len(signs) < 0.5 * len(text):
        return 0.0
    kana = sum("\u3040" <= sign <= "\u30ff" for sign in signs)
    counts = [
        sum(usual.fullmatch(sign.encode(name, "ignore")) is not None for sign in signs)
        for name, usual in _DOUBLE.items()
    ]
    return max(counts[0] + kana, *counts) / len(signs)


def _sample(data: bytes) -> bytes:
    """The text around what is not ASCII: markup and scripts, of which pages have more than of words, tell nothing."""
    parts: list[bytes] = []
    begin = end = taken = 0
    for found in _LETTERS.finditer(data):
        if found.start() - _AROUND > end:
            parts.append(data[begin:end])
            begin = found.start() - _AROUND
        taken += found.end() + _AROUND - max(begin, end)
        end = found.end() + _AROUND
        if taken > _SAMPLE_BYTES:
            break
    return b"\n".join([*parts, data[begin:end]])


def _alphabetic(sample: bytes) -> Iterator[tuple[float, str]]:
    for place, (name, languages) in enumerate((_USUAL | _OLD).items()):
        try:
            text = sample.decode(name)
        except UnicodeDecodeError:
            continue
        counts = Counter(_settings(text))
        words = Counter(word.lower() for word in _WORD.findall(text))
        best = max(_log_likelihood(counts, language) + _bonus(words, language) for language in languages)
        yield best - 0.1 * place - (_UNUSUAL if name in _OLD else 0), name


def _settings(text: str) -> Iterator[tuple[str, str, str]]:
    """Every sign beyond ASCII with the kinds of what is before and behind it."""
    padded = f" {text} "
    for before, sign, after in zip(padded, text, padded[2:], strict=False):
        if sign > "\x7f":
            yield sign, _kind(before), _kind(after)


def _kind(sign: str) -> str:
    """`A` for a capital, `a` for another letter, `1` for a digit."""
    if sign.isalpha():
        return "A" if sign.isupper() else "a"
    return "1" if sign.isdigit() else ""


def _log_likelihood(counts: Counter[tuple[str, str, str]], language: _Language) -> float:
    chances = _chances(language.letters)
    return sum(count * _chance(*setting, chances) for setting, count in counts.items())


@cache
def _chances(letters: str) -> Mapping[str, float]:
    total = sum(1 / (2 + rank) for rank in range(len(letters)))
    return {letter: -math.log((2 + rank) * total) for rank, letter in enumerate(letters)}


def _chance(sign: str, before: str, after: str, chances: Mapping[str, float]) -> float:
    """Log p of a sign in its place."""
    small = sign.lower()
    if small in chances:
        case = 0.0 if sign == small else _CAPITAL + (_ODD_CASE if before == "a" else 0)
        return chances[small] + case + (_BY_DIGIT if "1" in (before, after) else 0)
    if sign in _SIGNS:
        return _SIGN if _stands(sign, before, after) else _SIGN_IN_WORD
    return _CONTROL if unicodedata.category(sign) in ("Cc", "Co", "Cn") else _FOREIGN


def _stands(sign: str, before: str, after: str) -> bool:
    """Whether a sign may stand between these: few are within a word, and not all are before one."""
    if after in ("", "1"):
        return True
    return sign in (_IN_WORDS if before else _BEFORE_WORDS)


def _bonus(words: Counter[str], language: _Language) -> float:
    return _SMALL_WORD * sum(words[word] for word in language.small_words.split())


def _east_asian(sample: bytes) -> Iterator[tuple[float, str]]:
    for name, usual in _DOUBLE.items():
        try:
            text = sample.decode(name)
        except UnicodeDecodeError:
            continue
        signs = Counter(map(_class, (sign for sign in text if sign > "\x7f")))
        rare = max(0, signs[_HAN] + signs[_SYLLABLE] + signs[_KANA] - len(usual.findall(sample)))
        score = sum(chance * count for chance, count in signs.items()) + rare * (_RARE - _HAN)
        japanese = name in ("shift-jis", "euc-jp")
        if not japanese:
            score += (_KANA_ELSEWHERE - _KANA) * sum("\u3040" <= sign <= "\u30ff" for sign in text)
        elif not any("\u3040" <= sign <= "\u30ff" for sign in text):
            score += _NO_KANA * signs[_HAN]
        yield score, name


def _class(sign: str) -> float:
    if "\u3000" <= sign <= "\u30ff" or "\uff01" <= sign <= "\uff5e":
        return _KANA
    if "\uac00" <= sign <= "\ud7a3":
        return _SYLLABLE
    return _HAN if "\u4e00" <= sign <= "\u9fff" else _RARE
