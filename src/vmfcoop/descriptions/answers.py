"""Sentences out of whatever a language model answers: JSON as asked for or nearly so, lists, prose."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_REASONING = re.compile(r"<(/?)(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[\]}])")
_JSON_LIST = re.compile(r'\[\s*["\[{]')
_JSON_OBJECT = re.compile(r'\{\s*"')
_COMPLETE_STRING = re.compile(r'"((?:[^"\\]|\\.){0,2000})"\s*(?=[,\]}])', re.DOTALL)
_DEBRIS = re.compile(r'[\[{}\]|]|["\'][\w ]{1,30}["\']\s*:')
_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?\d{1,3}[.):])\s+(?P<text>.*)")
_LINE_ITEM = re.compile(rf"^{_ITEM.pattern}", re.MULTILINE)
_LEADER = re.compile(r"^(?:[-*+•–]|\(?\d{1,3}[.):])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_REFUSAL = re.compile(
    r"\W*(?:i[’']?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able)|(?:i apologi[sz]e|sorry)\b"
    r"|i can(?:not|[’']?t| not)\b|i (?:must|have to) decline|i won[’']?t\b|as an ai\b|unfortunately,? i\b)",
    re.IGNORECASE,
)
_LONGEST = 2000
"""Characters of a sentence that are looked at; any longer one is rejected for its length anyway."""

_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


def is_refusal(text: str) -> bool:
    """Whether an answer or a sentence begins as refusals do.

    Example:
        >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("A dark round mass.")
        (True, False)
    """
    return bool(_REFUSAL.match(text))


def without_reasoning(text: str) -> str:
    """The answer without the ``<think>...</think>`` of reasoning models, closed, unclosed or unopened."""
    kept: list[str] = []
    place, inside = 0, False
    for tag in _REASONING.finditer(text):
        if tag[1] and not inside:
            kept.clear()  # what led up to an end without a beginning was thought as well
        elif not inside:
            kept.append(text[place : tag.start()])
        place, inside = tag.end(), not tag[1]
    return "".join(kept if inside else [*kept, text[place:]]).strip()


def parse_sentences(answer: str, cut: bool = False) -> list[str]:
    """The sentences of an answer, in its order.

    Read are JSON (bare, fenced, with text around it, with trailing commas; a list, or lists in objects;
    objects with one sentence each), then lists with bullets or numbers, then lines, then the sentences of
    a paragraph. What remains of quotes, numbering and Markdown is taken off each.

    Args:
        answer: the text of the answer.
        cut: whether the model was stopped at its token limit; the last, incomplete sentence is left out.

    Example:
        >>> parse_sentences('Sure! ```json\\n{"sentences": ["A dark mass.", "A bright rim.",]}\\n```')
        ['A dark mass.', 'A bright rim.']
        >>> parse_sentences("1. **A dark mass.**\\n2. A bright rim.")
        ['A dark mass.', 'A bright rim.']
    """
    text = without_reasoning(answer)
    fenced = [match[1] for match in _FENCE.finditer(text)]
    for candidate in (*fenced, text, _between(text, "{", "}"), _between(text, "[", "]")):
        found = _from_json(candidate)
        if found is not None:
            return _clean(found)
    body = max(fenced, key=len, default=text)
    strings = _from_broken_json(body)
    return _clean(strings if strings else _from_lines(body, cut))


def _between(text: str, opening: str, closing: str) -> str:
    start, end = text.find(opening), text.rfind(closing)
    return text[start : end + 1] if 0 <= start < end else ""


def _from_json(text: str) -> list[str] | None:
    """Strings of a JSON value; None if the text is none, or one of another kind."""
    for spelled in (text, _TRAILING_COMMA.sub(r"\1", text)):
        try:
            value = json.loads(spelled, strict=False)
            return _strings(value) if isinstance(value, list | dict) else None
        except (ValueError, RecursionError):
            continue
    return None


def _strings(value: Any) -> list[str]:
    """The sentences in a decoded value: of an object its lists if it has any, else its strings."""
    if isinstance(value, str):
        return _from_string(value)
    if isinstance(value, list):
        return [text for item in value for text in _one_or_more(item)]
    if isinstance(value, dict):
        nested = [part for part in value.values() if isinstance(part, list | dict)]
        if nested:
            return [text for part in nested for text in _strings(part)]
        return [text for part in value.values() if isinstance(part, str) for text in _from_string(part)]
    return []


def _from_string(text: str) -> list[str]:
    """A string of a JSON value: one sentence, or JSON or a list that was put into it as text."""
    if text.lstrip().startswith(("[", "{")):
        return _from_json(text) or []
    return _from_lines(text, cut=False) if len(_LINE_ITEM.findall(text)) > 1 else [text]


def _one_or_more(item: Any) -> list[str]:
    found = _strings(item)
    return [max(found, key=len)] if isinstance(item, dict) and found else found


def _from_broken_json(text: str) -> list[str]:
    """The complete strings of a JSON list, else objects, cut off or spoiled elsewhere or one a line."""
    begin = _JSON_LIST.search(text) or _JSON_OBJECT.search(text)
    if begin is None:
        return []
    found = []
    for match in _COMPLETE_STRING.finditer(text, begin.start()):
        try:
            found.append(json.loads(f'"{match[1]}"', strict=False))
        except ValueError:
            continue
    return found


def _from_lines(text: str, cut: bool) -> list[str]:
    lines = text.splitlines()
    if cut and lines and not lines[-1].rstrip(" *\"'”").endswith((".", "!", "?")):
        lines = lines[:-1]
    items: list[str] = []
    for line in lines:
        item = _ITEM.match(line)
        if item:
            items.append(item["text"])
        elif items and line.strip() and line[0].isspace():
            items[-1] += " " + line.strip()
    if items:
        return items
    plain = [line for line in lines if line.strip() and not line.rstrip(" *").endswith(":")]
    return _SENTENCE_END.split(plain[0]) if len(plain) == 1 else plain


def _clean(texts: list[str]) -> list[str]:
    """Sentences without what surrounds them; what is left of JSON or a table that was not read is none."""
    return [clean for clean in map(_clean_sentence, texts) if clean and not _DEBRIS.match(clean)]


def _clean_sentence(text: str) -> str:
    text = text[:_LONGEST]
    # Cs: half of a pair of surrogates, which UTF-8 has no bytes for.
    printable = "".join(" " if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)
    bare = " ".join(unicodedata.normalize("NFC", printable).split())
    bare = _LEADER.sub("", bare)
    bare = re.sub(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1", r"\2", bare)
    bare = re.sub(r"(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])", r"\1", bare)
    while len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1] and bare[0] not in bare[1:-1]:
        bare = bare[1:-1].strip()
    return bare
