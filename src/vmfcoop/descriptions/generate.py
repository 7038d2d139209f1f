"""Descriptions written by a language model: prompts, checks of what comes back, a draft that survives."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vmfcoop.__about__ import __version__
from vmfcoop.descriptions.answers import is_refusal, parse_sentences, without_reasoning
from vmfcoop.descriptions.bank import MIN_DESCRIPTIONS, DescriptionBank
from vmfcoop.descriptions.llm import (
    Answer,
    Budget,
    BudgetSpentError,
    ChatClient,
    ContextTooLongError,
    Endpoint,
    Usage,
    estimate_tokens,
)
from vmfcoop.descriptions.quality import Rules, SentenceJudge, same_text
from vmfcoop.descriptions.subject import Subject
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said, home, lock_held, write_atomically
from vmfcoop.progress import ProgressReport, no_progress

MAX_BARREN = 4
"""Answers in a row without a usable sentence after which a class is given up for this time."""

SYSTEM_PROMPT = (
    "You are an experienced specialist in {modality}{organ}. You describe what is visible in images, in "
    "plain, medically correct English, for the text encoder of a vision-language model."
)
USER_PROMPT = """\
Write {count} distinct sentences on what a specialist sees in images ({modality}{organ}) of the class \
"{name}".
Each of them
- is one sentence of {min_words} to {max_words} words, complete in itself;
- names the class ("{name}" or a plain synonym) and the modality{and_organ};
- describes only what such an image can show: appearance, location, texture, contrast or colour, margins, \
size, number, distribution;
- differs from the others in content, not only in wording.{neighbours}
Cover early and advanced, small and large, typical and less typical cases.{earlier}
Answer with a JSON object of the form {{"sentences": ["...", "..."]}} and nothing else.\
"""
NEIGHBOURS_PROMPT = """
- helps to tell the class from its neighbours ({names}) by its features, without naming them."""
EARLIER_PROMPT = """
These are collected already; write none of them again, not in other words either:
{sentences}"""


@dataclass(frozen=True)
class GenerationRequest:
    """What to write.

    Attributes:
        subject: classes, modality, organ.
        endpoint: who writes.
        n: sentences a class, at least 2.
        batch: sentences asked for in one request, at least 1.
        rules: limits of a sentence.

    Raises:
        UserError: the modality is not known, or n or batch is too small.
    """

    subject: Subject
    endpoint: Endpoint
    n: int = 50
    batch: int = 10
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if not self.subject.modality.strip():
            raise UserError('The modality is not known; name it with --modality, for example "chest X-ray".')
        if self.n < MIN_DESCRIPTIONS or self.batch < 1:
            raise UserError(f"--n must be at least {MIN_DESCRIPTIONS} and --batch at least 1.")

    def prompt(self, class_name: str, count: int, earlier: Sequence[str] = ()) -> tuple[str, str]:
        """System and user message that ask for so many sentences of a class.

        Args:
            class_name: the class.
            count: sentences to ask for.
            earlier: sentences that are there already.
        """
        subject = self.subject
        organ = f" of the {subject.organ}" if subject.organ else ""
        others = ", ".join(f'"{name}"' for name in subject.class_names if name != class_name)
        listed = "\n".join(f"- {sentence}" for sentence in earlier)
        user = USER_PROMPT.format(
            count=count,
            modality=subject.modality,
            organ=organ,
            and_organ=f", and the organ ({subject.organ})" if subject.organ else "",
            name=class_name,
            min_words=self.rules.min_words,
            max_words=self.rules.max_words,
            neighbours=NEIGHBOURS_PROMPT.format(names=others) if others else "",
            earlier=EARLIER_PROMPT.format(sentences=listed) if earlier else "",
        )
        return SYSTEM_PROMPT.format(modality=subject.modality, organ=organ), user

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of one bank."""
        endpoint, subject = self.endpoint, self.subject
        return {
            "model": endpoint.model,
            "base_url": endpoint.public_url,
            "classes": list(subject.class_names),
            "modality": subject.modality,
            "organ": subject.organ,
            "prompt": {
                "system": SYSTEM_PROMPT,
                "user": USER_PROMPT,
                "neighbours": NEIGHBOURS_PROMPT,
                "earlier": EARLIER_PROMPT,
            },
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "max_tokens": endpoint.max_tokens,
            "rules": asdict(self.rules),
        }


@dataclass
class Draft:
    """What was collected so far, over any number of commands.

    Attributes:
        sentences: accepted, by class.
        started: when the first command began, ISO 8601 in UTC.
        models: names by which the server called the model.
        formats: ways in which JSON was asked for.
        usage: requests and tokens spent, and faults of the server that passed.
        answers: answers by what was wrong with them (refused, empty, cut).
        rejected: sentences that were left out, by reason.
        notes: accepted sentences that leave something unsaid, by kind.
    """

    sentences: dict[str, list[str]]
    started: str
    models: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    answers: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def bank(self, request: GenerationRequest, complete: bool) -> dict[str, Any]:
        """The draft as the JSON of a bank, with its provenance in ``meta``."""
        model, url = request.endpoint.model, request.endpoint.public_url
        now = _now()
        return {
            "source": f"written by the language model {model} at {url}",
            "dataset": request.subject.dataset,
            "meta": {
                "author": f"the language model {model}",
                "date": now[:10],
                "started": self.started,
                "finished": now,
                "complete": complete,
                "note": "written by a language model, not reviewed by a clinician; no clinical text, not for "
                "diagnosis",
                "modality": request.subject.modality,
                "request": request.identity(),
                "n": request.n,
                "batch": request.batch,
                "models_answered": self.models,
                "response_formats": self.formats,
                "software": f"vmfcoop {__version__}",
                "requests": self.usage.requests,
                "tokens": {
                    "prompt": self.usage.prompt_tokens,
                    "completion": self.usage.completion_tokens,
                    "total": self.usage.tokens,
                    "estimated": self.usage.estimated,
                },
                "faulty_answers": dict(self.answers),
                "rejected": dict(self.rejected),
                "kept_with_notes": dict(self.notes),
                "faults": dict(self.usage.faults),
            },
            "descriptions": {name: texts[: request.n] for name, texts in self.sentences.items()},
        }

    @staticmethod
    def from_bank(content: Any) -> Draft:
        """The draft that :meth:`bank` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        meta = content["meta"]
        tokens = meta["tokens"]
        return Draft(
            sentences={str(name): list(map(str, texts)) for name, texts in content["descriptions"].items()},
            started=str(meta["started"]),
            models=list(meta["models_answered"]),
            formats=list(meta["response_formats"]),
            usage=Usage(
                int(meta["requests"]),
                int(tokens["prompt"]),
                int(tokens["completion"]),
                bool(tokens["estimated"]),
                Counter(meta["faults"]),
            ),
            answers=Counter(meta["faulty_answers"]),
            rejected=Counter(meta["rejected"]),
            notes=Counter(meta["kept_with_notes"]),
        )


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: ``complete``: the bank is written; ``already``: it was there; ``budget``: a budget ended it;
            ``barren``: the model gave no usable sentences for a class any more.
        file: the bank, or the draft where it is not complete.
        counts: sentences a class.
        explanation: in a sentence, what is missing and why; empty where nothing is.
        meta: provenance, as in the file.
    """

    status: Literal["complete", "already", "budget", "barren"]
    file: Path
    counts: dict[str, int]
    explanation: str
    meta: dict[str, Any]


def draft_path(out: Path) -> Path:
    """Where sentences are kept until the bank is complete: ``FILE.json.partial``."""
    return out.with_name(out.name + ".partial")


def plan(request: GenerationRequest, out: Path | None = None) -> dict[str, Any]:
    """What a command would ask: the first prompt, the number of requests, a guess at the tokens.

    Nothing is sent. A draft beside ``out`` is counted as done.

    Raises:
        UserError: the draft belongs to another request or cannot be read.
    """
    draft = _read_draft(request, draft_path(out)) if out and draft_path(out).exists() else None
    done = draft.sentences if draft else {}
    missing = {name: max(0, request.n - len(done.get(name, ()))) for name in request.subject.class_names}
    open_classes = [name for name, count in missing.items() if count] or list(missing)
    first = open_classes[0]
    system, user = request.prompt(first, min(request.batch, missing[first] or request.n), done.get(first, ()))
    requests = sum(math.ceil(count / request.batch) for count in missing.values())
    sentence = estimate_tokens("word " * ((request.rules.min_words + request.rules.max_words) // 2))
    # Every prompt repeats what is there already: on average half of a class.
    each = estimate_tokens(*request.prompt(first, request.batch)) + sentence * (
        request.n // 2 + request.batch
    )
    return {
        "model": request.endpoint.model,
        "base_url": request.endpoint.public_url,
        "class": first,
        "system": system,
        "user": user,
        "sentences": sum(missing.values()),
        "requests": requests,
        "tokens_estimated": requests * each,
    }


def generate(
    request: GenerationRequest,
    out: Path,
    budget: Budget | None = None,
    restart: bool = False,
    overwrite: bool = False,
    progress: ProgressReport = no_progress,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Have a language model write a bank.

    After every request the accepted sentences are written to ``FILE.json.partial`` (a bank itself, if it has
    two sentences a class), so that an interrupted command loses nothing and a repeated one goes on. The bank
    appears when every class has its n sentences; until then a file that was there stays as it was.

    Rejected and counted are sentences with a fault of :data:`vmfcoop.descriptions.quality.FAULTS`: too
    short or long, repeated, another class's name used as the class. A sentence without a word of the class
    name or the modality is kept and counted, since a synonym cannot be told from an omission.

    Args:
        request: what to write.
        out: the JSON file to write.
        budget: what this command may spend.
        restart: begin anew although there is a draft.
        overwrite: replace a file that is there.
        progress: told of every class.
        say: told in a sentence of pauses and of what the server does not support.

    Raises:
        UserError: ``out`` is there, is no ``.json`` or cannot be written, another process writes it, the
            draft belongs to another request, or the server cannot be used (see
            :class:`vmfcoop.descriptions.llm.ChatClient`); the draft is kept.
    """
    if out.suffix.lower() != ".json":
        raise UserError(f"Descriptions are written as JSON, not as '{out.name}'; let the name end in .json.")
    try:
        with _alone(out):
            return _generate(request, out, budget, restart, overwrite, progress, say)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{out} cannot be written ({reason}); choose another --out.") from error


def _generate(
    request: GenerationRequest,
    out: Path,
    budget: Budget | None,
    restart: bool,
    overwrite: bool,
    progress: ProgressReport,
    say: Callable[[str], None] | None,
) -> Outcome:
    place = draft_path(out)
    if out.exists() and not overwrite:
        return _already_there(request, out)
    _try_to_write(place)
    if place.exists() and not restart:
        draft = _read_draft(request, place)
    else:
        draft = Draft({name: [] for name in request.subject.class_names}, _now())
    client = ChatClient(request.endpoint, budget, say)
    writer = _Writer(request, draft, place, client, progress)
    status, explanation = writer.write()
    content = draft.bank(request, status == "complete")
    counts = {name: len(texts) for name, texts in content["descriptions"].items()}
    if status == "complete":
        DescriptionBank({name: tuple(t) for name, t in content["descriptions"].items()}, str(out))
        write_atomically(out, _json(content))
        place.unlink(missing_ok=True)
    return Outcome(status, out if status == "complete" else place, counts, explanation, content["meta"])


class _Writer:
    """Fills a draft, class after class."""

    def __init__(
        self,
        request: GenerationRequest,
        draft: Draft,
        place: Path,
        client: ChatClient,
        progress: ProgressReport,
    ) -> None:
        self.request, self.draft, self.place = request, draft, place
        self.client, self.progress = client, progress
        self.judge = SentenceJudge(request.subject, request.rules)
        self.known = {same_text(text): name for name, texts in draft.sentences.items() for text in texts}
        self.before = draft.usage
        self.shown: int | None = None
        self.accepted = 0

    def write(self) -> tuple[Literal["complete", "budget", "barren"], str]:
        """Ask until every class is full, the budget is spent or the model has nothing to say."""
        given_up: dict[str, Counter[str]] = {}
        for name in self.request.subject.class_names:
            try:
                reasons = self._fill(name)
            except BudgetSpentError as error:
                return "budget", f"Stopped: {error}."
            if reasons:
                given_up[name] = reasons
                if not self.accepted:
                    break
        if not given_up:
            return "complete", ""
        parts = [f"'{name}' ({_list(reasons)})" for name, reasons in given_up.items()]
        hint = "; raise --max-tokens" if any("cut" in reasons for reasons in given_up.values()) else ""
        return "barren", f"The last {MAX_BARREN} answers gave no usable sentence of {', '.join(parts)}{hint}."

    def _fill(self, name: str) -> Counter[str]:
        """Ask for a class until it is full; else what was wrong with the last answers."""
        sentences = self.draft.sentences[name]
        reasons: Counter[str] = Counter()
        barren = 0
        while len(sentences) < self.request.n:
            self.progress(name, len(sentences), self.request.n)
            faults = self._ask(name, min(self.request.batch, self.request.n - len(sentences)), barren)
            if faults is None:
                barren, reasons = 0, Counter()
                continue
            barren += 1
            reasons += faults
            if barren == MAX_BARREN:
                return reasons
        self.progress(name, self.request.n, self.request.n)
        return Counter()

    def _ask(self, name: str, count: int, barren: int) -> Counter[str] | None:
        """One request: None if a sentence was accepted, else what was wrong."""
        # With one seed for all, a question that got no usable answer would get the same again.
        nth = barren + sum(map(len, self.draft.sentences.values()))
        sentences = self.draft.sentences[name]
        before = len(sentences)
        try:
            answer = self._answer(name, count, nth)
            faults = self._take(name, answer)
        finally:
            self.draft.usage = self.before + self.client.usage
            if any(self.draft.sentences.values()):
                write_atomically(self.place, _json(self.draft.bank(self.request, complete=False)))
        self.accepted += len(sentences) - before
        return None if len(sentences) > before else faults

    def _answer(self, name: str, count: int, nth: int) -> Answer:
        """Ask; if the prompt is too long, show the model fewer of the earlier sentences."""
        while True:
            earlier = self.draft.sentences[name]
            shown = earlier if self.shown is None else earlier[max(0, len(earlier) - self.shown) :]
            try:
                return self.client.ask(*self.request.prompt(name, count, shown), nth)
            except ContextTooLongError:
                if not shown:
                    raise
                self.shown = len(shown) // 2

    def _take(self, name: str, answer: Answer) -> Counter[str]:
        """Accept what is good of an answer; what was wrong with it and with its sentences."""
        draft, faults = self.draft, Counter[str]()
        for seen, value in ((draft.models, answer.model), (draft.formats, answer.response_format)):
            if value and value not in seen:
                seen.append(value)
        if answer.cut:
            faults["cut"] += 1
        found = [] if answer.refused else parse_sentences(answer.text, answer.cut)
        verdicts = [self._judge(name, text) for text in found]
        if answer.refused or (all(verdicts) and is_refusal(without_reasoning(answer.text))):
            faults["refused"] += 1
        elif not found:
            faults["empty"] += 1
        rejected = Counter(filter(None, verdicts))
        draft.answers += faults
        draft.rejected += rejected
        return faults + rejected

    def _judge(self, name: str, text: str) -> str:
        """Accept a sentence, or say why not."""
        sentences = self.draft.sentences[name]
        if len(sentences) >= self.request.n:
            return "surplus"
        if is_refusal(text):
            return "refusal"
        faults = self.judge.faults(text, name, sentences)
        if faults:
            return faults[0].kind
        if self.known.setdefault(same_text(text), name) != name:
            return "shared"
        sentences.append(text)
        self.draft.notes += Counter(note.kind for note in self.judge.notes(text, name))
        return ""


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from the same file; the lock ends with its process, however that ends.

    Raises:
        UserError: another process has the file, or the home folder cannot be written.
    """

    def refuse() -> None:
        raise UserError(f"Another command is writing {out}; wait for it, or name another --out.")

    tag = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with lock_held(home() / "locks" / f"{tag}.lock", refuse):
        yield


def _try_to_write(place: Path) -> None:
    """Find out whether the draft and the bank can be written before anything is paid for.

    Raises:
        UserError, OSError: they cannot.
    """
    if place.with_suffix("").is_dir():
        raise UserError(f"{place.with_suffix('')} is a folder; name a JSON file.")
    with full_disk_is_said(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}."):
            pass


def _already_there(request: GenerationRequest, out: Path) -> Outcome:
    """The outcome where this very bank is there.

    Raises:
        UserError: the file is something else.
    """
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
        meta, texts = content["meta"], content["descriptions"]
        if meta["complete"] and meta["request"] == _plain(request.identity()) and meta["n"] == request.n:
            return Outcome("already", out, {name: len(t) for name, t in texts.items()}, "", meta)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    raise UserError(f"{out} is there already; choose another --out, or replace it with --overwrite.")


def _read_draft(request: GenerationRequest, place: Path) -> Draft:
    """The draft of this request.

    Raises:
        UserError: it cannot be read, or belongs to another request; the sentence says what differs.
    """
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        draft, made_by = Draft.from_bank(content), dict(content["meta"]["request"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is no draft that can be continued; begin anew with --restart.") from error
    wanted = _plain(request.identity())
    different = [key for key in wanted if made_by.get(key) != wanted[key]]
    if different or list(draft.sentences) != wanted["classes"]:
        raise UserError(
            f"{place} was begun with another {' and '.join(different or ['order of classes'])}; repeat that "
            "command to go on, choose another --out, or begin anew with --restart."
        )
    return draft


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A value as it reads back from JSON."""
    decoded: dict[str, Any] = json.loads(json.dumps(value))
    return decoded


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _list(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
