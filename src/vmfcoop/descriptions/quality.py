"""Checks of descriptions: length, repetition, other classes' names, and what a sentence leaves unsaid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmfcoop.descriptions.bank import spelled_as
from vmfcoop.descriptions.subject import Subject

FAULTS: dict[str, str] = {
    "missing": "the class has no sentences",
    "count": "another number of sentences than asked for",
    "empty": "empty",
    "short": "too few words",
    "long": "too many words",
    "duplicate": "the same as another sentence of the class",
    "overlap": "nearly the same words as another sentence of the class",
    "shared": "the same as a sentence of another class",
    "other-class": "another class's name used as the class",
    "truncated": "longer than the backbone's context: its end is never read",
}
"""What is wrong with a bank, by kind. A generated sentence with such a fault is rejected."""

NOTES: dict[str, str] = {
    "class-unnamed": "no word of the class name (a synonym is fine)",
    "modality-unnamed": "no word for the modality",
    "uneven": "classes have different numbers of sentences",
    "organ-uneven": "the organ is named far less often than in another class, which then draws every image",
    "extra": "a class that the dataset does not have",
    "stray": "nearer to the mean direction of another class than to its own",
    "outlier": "improbable under the law of the other sentences of its class",
}
"""What deserves a look and may be right: a synonym cannot be told from an omission. Counted and kept."""

MODALITIES: dict[str, tuple[str, ...]] = {
    "MRI": ("mri", "mr", "mrs", "flair", "magnetic resonance"),
    "CT": ("ct", "cect", "hrct", "tomogra", "tomogram"),
    "X-ray": ("x ray", "xray", "radiogra", "roentgen", "film", "cxr"),
    "ultrasound": ("ultraso", "sonogra", "sonolog", "echogra", "b mode"),
    "histology": ("histo", "h e", "hematoxylin", "haematoxylin", "microgra", "photomicrogra", "microscop"),
    "dermatoscopy": ("dermatoscop", "dermoscop"),
    "OCT": ("oct", "coherence tomogra", "b scan"),
    "fundus": ("fundus", "funduscop", "ophthalmoscop", "retinal photogra", "retinal image"),
    "endoscopy": ("endoscop", "colonoscop", "gastroscop", "esophagogastroduodenoscop"),
    "mammography": ("mammogra", "tomosynthesis"),
    "PET": ("pet", "positron emission"),
    "photograph": ("photogra", "clinical image"),
}
"""Beginnings of words that name a modality, as :func:`words` spells them. Entries of up to three letters
are whole words."""

MAX_UNEVENNESS = 0.25
"""Largest difference between the shares of two classes' sentences that name the organ, for no note."""

_CONTRAST = frozenset(
    """no not without unlike than versus vs lack lacks lacking absence absent free neither nor rather instead
    exclude excludes excluding distinguish distinguishes distinguishing differentiate differentiates
    differentiating differs differing opposed""".split()  # noqa: SIM905
)
_CONTRAST_REACH = 4
_HEALTHY = frozenset({"normal", "healthy", "unremarkable"})
_COMMON = _HEALTHY | frozenset(
    """background bone brain breast cancer carcinoma cell colon eye gland heart image kidney lesion level line
    liver lung mucosa node organ other photo retina scan skin stage tissue type vessel""".split()  # noqa: SIM905
)
"""Words for what surrounds a finding, or for a family of findings, that any sentence may use."""


@dataclass(frozen=True)
class Rules:
    """Limits of a good bank.

    Attributes:
        min_words: fewest words of a sentence, between spaces.
        max_words: most words.
        max_overlap: largest share of the shorter sentence's different words that another sentence of the
            class may have as well.
    """

    min_words: int = 10
    max_words: int = 40
    max_overlap: float = 0.9


@dataclass(frozen=True)
class Finding:
    """One observation.

    Attributes:
        kind: a key of ``FAULTS`` or ``NOTES``.
        class_name: the class.
        detail: what was found, in a few words.
        position: number of the sentence within its class from 1, or None if it is about the class.
        text: the sentence, if it is about one.
    """

    kind: str
    class_name: str
    detail: str
    position: int | None = None
    text: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong, not only worth a look."""
        return self.kind in FAULTS


def words(text: str) -> list[str]:
    """Words of a text in lower case, in order: runs of letters and digits, "tumour" spelled "tumor".

    Example:
        >>> words("H&E: a grey-white Tumour")
        ['h', 'e', 'a', 'grey', 'white', 'tumor']
    """
    return re.findall(r"[^\W_]+", text.casefold().replace("tumour", "tumor"))


def same_text(text: str) -> str:
    """A spelling in which two texts are equal if they differ in case, spaces and punctuation alone."""
    return " ".join(words(text))


def token_overlap(one: Iterable[str], other: Iterable[str]) -> float:
    """Overlap coefficient of two sets of words: |A and B| / min(|A|, |B|), 0 if one is empty.

    Example:
        >>> token_overlap(["a", "dark", "mass"], ["a", "dark", "round", "mass"])
        1.0
    """
    a, b = frozenset(one), frozenset(other)
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


class SentenceJudge:
    """Judges sentences of one subject, each alone or beside those of its class.

    Args:
        subject: the classes, all of which count as neighbours of each other.
        rules: limits.
    """

    def __init__(self, subject: Subject, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._names = {name: [_stem(word) for word in words(name)] for name in subject.class_names}
        self._modality = modality_words(subject.modality)
        place = {_stem(word) for word in words(f"{subject.modality} {subject.organ}")}
        self._own = {name: _own_words(name, self._names, place) for name in self._names}

    def faults(self, text: str, class_name: str, others: Sequence[str] = ()) -> list[Finding]:
        """What is wrong with a sentence.

        Args:
            text: the sentence.
            class_name: its class, one of the subject's or any other.
            others: sentences of the class that it must not repeat.
        """
        length = self._length(text)
        # The few words of a fragment are in many sentences: that it is short says enough.
        repeated = self._duplicate(text, others) or ([] if length else self._overlap(text, others))
        found = [*length, *repeated, *self._other_class(text, class_name)]
        return [Finding(kind, class_name, detail, None, text) for kind, detail in found]

    def notes(self, text: str, class_name: str) -> list[Finding]:
        """What a sentence leaves unsaid."""
        found: list[Finding] = []
        own = self._own.get(class_name)
        if own and not _has_any(map(_stem, words(text)), own):
            found.append(
                Finding("class-unnamed", class_name, f"none of: {', '.join(sorted(own))}", None, text)
            )
        if self._modality and not names_modality(text, self._modality):
            found.append(Finding("modality-unnamed", class_name, "no word for the modality", None, text))
        return found

    def _length(self, text: str) -> list[tuple[str, str]]:
        count = len(text.split())
        if not count:
            return [("empty", "no words")]
        if count < self.rules.min_words:
            return [("short", f"{count} words, at least {self.rules.min_words}")]
        if count > self.rules.max_words:
            return [("long", f"{count} words, at most {self.rules.max_words}")]
        return []

    def _duplicate(self, text: str, others: Sequence[str]) -> list[tuple[str, str]]:
        tokens = words(text)
        for number, other in enumerate(others, 1):
            if tokens and tokens == words(other):
                return [("duplicate", f"of sentence {number}")]
        return []

    def _overlap(self, text: str, others: Sequence[str]) -> list[tuple[str, str]]:
        tokens = words(text)
        for number, other in enumerate(others, 1):
            share = token_overlap(tokens, words(other))
            if share > self.rules.max_overlap:
                return [("overlap", f"{share:.0%} of the words of sentence {number}")]
        return []

    def _other_class(self, text: str, class_name: str) -> list[tuple[str, str]]:
        stems = [_stem(word) for word in words(text)]
        own_name = self._names.get(class_name, [])
        for other, name in self._names.items():
            if other == class_name or _positions(own_name, name):
                continue
            if _used(stems, name):
                return [("other-class", f"'{other}'")]
            if _has_any(stems, self._own.get(class_name, set())):
                continue
            for word in sorted(self._own[other] - _COMMON):
                if len(word) > 3 and _used(stems, [word]):
                    return [("other-class", f"'{word}' of '{other}', and no word of the class itself")]
        return []


def modality_words(modality: str) -> tuple[str, ...]:
    """Beginnings of words that name a modality: those of every family it belongs to, else its own words.

    Example:
        >>> modality_words("chest X-ray")
        ('x ray', 'xray', 'radiogra', 'roentgen', 'film', 'cxr')
        >>> modality_words("thermography")
        ('thermography',)
    """
    families = [starts for starts in MODALITIES.values() if names_modality(modality, starts)]
    if families:
        return tuple(start for starts in families for start in starts)
    return tuple(word for word in words(modality) if len(word) > 2)


def names_modality(text: str, starts: Sequence[str]) -> bool:
    """Whether a text has a word that begins as one of ``starts`` (entries of up to 3 letters: is one)."""
    spelled = f" {same_text(text)} "
    return any(f" {start} " in spelled or (len(start) > 3 and f" {start}" in spelled) for start in starts)


def check_bank(
    descriptions: Mapping[str, Sequence[str]],
    subject: Subject,
    rules: Rules | None = None,
    count: int | None = None,
) -> list[Finding]:
    """Everything there is to say about a bank from its texts alone, faults and notes in the bank's order.

    Args:
        descriptions: sentences by class; names match whatever their case, spaces, underscores and hyphens.
        subject: the classes that there should be, with the modality.
        rules: limits.
        count: sentences that every class should have; None: any number from 2.
    """
    judge = SentenceJudge(subject, rules)
    descriptions = spelled_as(descriptions, subject.class_names)
    found = _classes(descriptions, subject, count)
    homes: dict[str, tuple[str, int]] = {}
    for name, texts in descriptions.items():
        for position, text in enumerate(texts, 1):
            about = [*judge.faults(text, name, texts[: position - 1]), *judge.notes(text, name)]
            home = homes.setdefault(same_text(text), (name, position))
            if home[0] != name and text.strip():
                about.append(Finding("shared", name, f"sentence {home[1]} of '{home[0]}'", None, text))
            found += [Finding(f.kind, name, f.detail, position, text) for f in about]
    return [*found, *_organ_named_unevenly(descriptions, subject)]


def _organ_named_unevenly(descriptions: Mapping[str, Sequence[str]], subject: Subject) -> list[Finding]:
    """A word that fits all images says nothing of a class, but draws all images to the texts that have it."""
    in_names = {_stem(word) for name in descriptions for word in words(name)}
    organ = {_stem(word) for word in words(subject.organ) if len(word) > 3} - in_names
    shares = {
        name: sum(bool(organ & {_stem(word) for word in words(text)}) for text in texts) / len(texts)
        for name, texts in descriptions.items()
        if texts
    }
    if not organ or len(shares) < 2:
        return []
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    if shares[most] - shares[least] <= MAX_UNEVENNESS:
        return []
    detail = f"{subject.organ} in {shares[least]:.0%} of its sentences, in {shares[most]:.0%} of '{most}'"
    return [Finding("organ-uneven", least, detail)]


def _classes(descriptions: Mapping[str, Sequence[str]], subject: Subject, count: int | None) -> list[Finding]:
    found = [
        Finding("missing", name, "no sentences") for name in subject.class_names if not descriptions.get(name)
    ]
    numbers = {name: len(texts) for name, texts in descriptions.items() if texts}
    for name, number in numbers.items():
        if name not in subject.class_names:
            found.append(Finding("extra", name, "not a class of the dataset"))
        if count is not None and number != count:
            found.append(Finding("count", name, f"{number} sentences, not {count}"))
        if count is None and number < 2:
            found.append(Finding("count", name, "1 sentence, at least 2 are needed"))
    if len(set(numbers.values())) > 1:
        fewest, most = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
        found.append(Finding("uneven", fewest, f"{numbers[fewest]} sentences, '{most}' has {numbers[most]}"))
    return found


def _stem(word: str) -> str:
    """The word in the singular, by its ending."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if plural else word


def _has_any(stems: Iterable[str], wanted: set[str]) -> bool:
    """Whether one of the stems is wanted or derived from a wanted one ("cystic" from "cyst")."""
    starts = tuple(word for word in wanted if len(word) > 3)
    return any(stem in wanted or stem.startswith(starts) for stem in stems)


def _own_words(name: str, names: Mapping[str, Sequence[str]], place: set[str]) -> set[str]:
    """The words that tell a class from the others: those of its name that no other name has, else all.

    Words of the modality and the organ are left out unless nothing else is left. A healthy class may be
    called by any usual word for it.
    """
    others = {stem for other, stems in names.items() if other != name for stem in stems}
    own = set(names[name])
    best = next((part for part in (own - others - place, own - others, own) if part), own)
    return best | _HEALTHY if own & _HEALTHY else best


def _positions(stems: Sequence[str], name: Sequence[str]) -> list[int]:
    """Where a name begins within a list of stems."""
    width = len(name)
    return [i for i in range(len(stems) - width + 1) if list(stems[i : i + width]) == list(name)]


def _used(stems: Sequence[str], name: Sequence[str]) -> bool:
    """Whether a name is used as if it were there: somewhere without a word of contrast just before it."""
    return any(
        not _CONTRAST & set(stems[max(0, place - _CONTRAST_REACH) : place])
        for place in _positions(stems, name)
    )
