"""Subtitles (.srt, .vtt): what is said, cues joined to sentences, each line with its time before it and as its place.

A cue ends in the middle of a sentence, and automatic ones say each line twice: a line of ours goes on to the end of a
sentence, another speaker, or a pause; what is said again after a moment stands again. `[00:12:03] …` stands in the text
and `talk.srt:12m03s` names the place.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from uncomp_cli.documents import encoding
from uncomp_cli.documents.text import Text, Wishes, counted, joined

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_SPEAKER = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^\s<>][^<>]*)>")
_MARKUP = re.compile(r"</?(?:[bicuv]|font|ruby|rt|lang)\b[^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_PAUSE_S = 3.0
_MOMENT_S = 0.25  # between a line and itself, where a cue carries it on
_NO_CUES = ("WEBVTT", "NOTE", "STYLE", "REGION")
_LONGEST = 400


@dataclass(slots=True)
class _Cue:
    begin_s: float
    end_s: float
    speaker: str = ""
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(data: bytes, wishes: Wishes) -> Text:
    """The words of subtitles; a file without cues is read as it is."""
    plain = encoding.read(data, wishes)
    blocks = [block.split("\n") for block in re.split(r"\n[ \t]*\n", plain.text)]
    cues = list(_cues(blocks))
    if not cues:
        return plain
    text, places = joined(((_place(cue), _shown(cue)) for cue in _sentences(cues)), between="\n")
    notes = sum(block[0].split(" ")[0] == "NOTE" for block in blocks)
    losses = counted({("comment", "comments"): notes})
    return replace(plain, text=text, places=places, losses=(*plain.losses, *losses))


def _cues(blocks: list[list[str]]) -> Iterator[_Cue]:
    """The cues of all blocks, without what stands before their times, and without lines that are said again."""
    said: set[str] = set()
    end_s = -1.0
    for block in blocks:
        at = next((number for number, line in enumerate(block[:3]) if "-->" in line), None)
        times = None if at is None else _TIMES.match(block[at])
        if at is None or times is None:
            if end_s >= 0 and _is_said(block):  # behind an empty line within a cue
                yield _Cue(end_s, end_s, words=_words(block, ""))
            continue
        lines = block[at + 1 :]
        found = _SPEAKER.search(lines[0]) if lines else None
        speaker = found[1].strip() if found else ""
        words = _words(lines, speaker)
        cue = _Cue(_seconds(*times.groups()[:4]), _seconds(*times.groups()[4:]), speaker)
        said = said if cue.begin_s - end_s <= _MOMENT_S else set()
        cue.words = [line for line in words if line not in said]
        said, end_s = set(words), cue.end_s
        yield cue


def _is_said(block: list[str]) -> bool:
    """Whether a block without times is text, and no note, style or number of a cue."""
    text = "\n".join(block).strip()
    return bool(text) and not text.startswith(_NO_CUES) and not text.isdecimal() and "-->" not in text


def _words(lines: list[str], speaker: str) -> list[str]:
    """The lines without their markup; who speaks there besides the cue's speaker is named."""
    named = (_SPEAKER.sub(lambda v: "" if v[1].strip() == speaker else f"{v[1].strip()}: ", line) for line in lines)
    words = (html.unescape(_MARKUP.sub("", line)).strip() for line in named)
    return [line for line in words if line]


def _seconds(hours: str | None, minutes: str, seconds: str, rest: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(f"{seconds}.{rest}")


def _sentences(cues: list[_Cue]) -> Iterator[_Cue]:
    """Cues that go on with each other as one."""
    line: _Cue | None = None
    for cue in cues:
        if not cue.words:
            continue
        if line is not None and _goes_on(line, cue):
            line.words += cue.words
            line.end_s = cue.end_s
            continue
        if line is not None:
            yield line
        line = cue
    if line is not None:
        yield line


def _goes_on(line: _Cue, cue: _Cue) -> bool:
    ended = _SENTENCE_END.search(line.words[-1]) or cue.words[0].startswith(("-", "–", "—"))
    paused = cue.begin_s - line.end_s > _PAUSE_S
    return not (ended or paused or cue.speaker not in ("", line.speaker) or sum(map(len, line.words)) > _LONGEST)


def _clock(cue: _Cue) -> tuple[int, int, int]:
    seconds = int(cue.begin_s)
    return seconds // 3600, seconds // 60 % 60, seconds % 60


def _shown(cue: _Cue) -> str:
    hours, minutes, seconds = _clock(cue)
    return f"[{hours:02}:{minutes:02}:{seconds:02}] " + (f"{cue.speaker}: " if cue.speaker else "") + cue.text


def _place(cue: _Cue) -> str:
    hours, minutes, seconds = _clock(cue)
    return (f"{hours}h{minutes:02}m" if hours else f"{minutes}m") + f"{seconds:02}s"
