"""The group ``descriptions``."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmfcoop.cli.common import (
    SOME_FAILED,
    USER_ERROR,
    Device,
    Json,
    Precision,
    err,
    escape,
    out,
    progress_shown,
)
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.descriptions.bank import BankTexts
    from vmfcoop.descriptions.generate import GenerationRequest, Outcome
    from vmfcoop.descriptions.quality import Finding
    from vmfcoop.descriptions.subject import Subject
    from vmfcoop.features import CachedEncoder
    from vmfcoop.progress import ProgressReport

group = typer.Typer(help="Write, look at and compare descriptions of classes.", no_args_is_help=True)

Bank = Annotated[
    str, typer.Argument(help="A JSON or TXT file, or a dataset key that comes with descriptions.")
]
Classes = Annotated[str | None, typer.Option(help="Class names, separated by commas.", show_default=False)]
Modality = Annotated[str | None, typer.Option(help='As a sentence says it: "chest X-ray".')]
DatasetKey = Annotated[str | None, typer.Option(help="Key that gives classes, modality and organ.")]
TextBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Look at the bank on this backbone, as for fit.")
]
Sample = Annotated[
    int | None,
    typer.Option("--vocabulary-sample", help="Entries for the vocabulary's field; default all.", min=2),
]


@group.command("generate")
def generate_descriptions(
    model: Annotated[str, typer.Option(help="Model, as the server names it.", show_default=False)],
    to: Annotated[Path, typer.Option("--out", help="JSON file to write.", show_default=False)],
    dataset: DatasetKey = None,
    classes: Classes = None,
    modality: Modality = None,
    organ: Annotated[str | None, typer.Option(help="Organ or region.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server; default OpenAI's own.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the API key; default OPENAI_API_KEY for OpenAI alone."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Sentences a class.", min=2)] = 50,
    batch: Annotated[int, typer.Option(help="Sentences a request.", min=1)] = 10,
    temperature: Annotated[float | None, typer.Option(help="Default: the server's.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling, where the server has it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", min=1)] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Tokens this command may use.", min=1)] = None,
    budget_requests: Annotated[int | None, typer.Option(help="Requests it may send.", min=1)] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds without an answer.", min=0.01)] = 120.0,
    retries: Annotated[int, typer.Option(help="Repetitions after a passing fault.", min=0)] = 5,
    backoff: Annotated[float, typer.Option(help="Seconds before the first; doubled each time.", min=0)] = 1.0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew although there is a draft.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the prompt and the cost; send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have a language model describe classes, through any OpenAI-compatible server.

    Sentences are checked and kept in FILE.json.partial after every request: repeat the command to go on.

    Example: [bold]vmfcoop descriptions generate --dataset btmri --model qwen3:8b --base-url
    http://localhost:11434/v1 --out btmri.json[/]
    """
    from vmfcoop.descriptions.generate import GenerationRequest, generate, plan
    from vmfcoop.descriptions.llm import OPENAI_URL, Budget, Endpoint

    endpoint = Endpoint(
        model=model,
        base_url=base_url or OPENAI_URL,
        key_variable=api_key_env,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        requests_per_minute=requests_per_minute,
    )
    request = GenerationRequest(_subject(dataset, classes, modality, organ), endpoint, n, batch)
    if dry_run:
        _show_plan(plan(request, None if restart else to), as_json)
        return
    try:
        with progress_shown() as progress:
            budget = Budget(budget_requests, budget_tokens)
            outcome = generate(request, to, budget, restart, overwrite, progress, _say)
    except KeyboardInterrupt:
        kept = "sentences accepted so far are kept; repeat the command to go on."
        err.print(f"Interrupted: {kept}", soft_wrap=True)
        raise typer.Exit(USER_ERROR) from None
    _show_outcome(outcome, request, as_json)
    if outcome.status in ("budget", "barren"):
        raise typer.Exit(SOME_FAILED)


@group.command("show")
def show_bank(
    bank: Bank,
    backbone: TextBackbone = None,
    vocabulary_sample: Sample = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Print what a bank says and, with a backbone, how its classes lie on the sphere.

    Example: [bold]vmfcoop descriptions show phantom-brain-mri --backbone phantom[/]
    """
    from vmfcoop.descriptions import load_descriptions
    from vmfcoop.reporting.descriptions import geometry_report, texts_table

    found = load_descriptions(bank)
    facts: dict[str, Any] = {
        "bank": bank,
        "source": found.meta.get("source"),
        "fingerprint": found.fingerprint,
        "sentences": {name: len(texts) for name, texts in found.descriptions.items()},
    }
    if backbone is None:
        if not as_json:
            out.print(texts_table(bank, found.descriptions))
            out.print("Name a --backbone to see the classes on its sphere.")
    else:
        from vmfcoop.descriptions.geometry import as_dict, bank_geometry

        with progress_shown() as progress:
            encoder = _encoder(backbone, device, precision, progress)
            geometry = bank_geometry(found.descriptions, encoder, vocabulary_sample)
        facts |= as_dict(geometry, found.descriptions)
        if not as_json:
            out.print(geometry_report(geometry, found.descriptions), soft_wrap=False)
    if as_json:
        print(json.dumps(facts))


@group.command("check")
def check_descriptions(
    bank: Bank,
    dataset: DatasetKey = None,
    classes: Classes = None,
    modality: Modality = None,
    n: Annotated[int | None, typer.Option("--n", help="Sentences that every class should have.")] = None,
    min_words: Annotated[int, typer.Option(help="Fewest words of a sentence.", min=1)] = 10,
    max_words: Annotated[int, typer.Option(help="Most words of a sentence.", min=1)] = 40,
    max_overlap: Annotated[
        float, typer.Option(help="Largest share of words common to two sentences of a class.", min=0, max=1)
    ] = 0.9,
    backbone: TextBackbone = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Look for faults in a bank: exit code 0 without, 1 with faults.

    Example: [bold]vmfcoop descriptions check lesions.json --modality dermatoscopy[/]
    """
    from vmfcoop.descriptions.bank import read_texts
    from vmfcoop.descriptions.quality import Rules, check_bank
    from vmfcoop.reporting.descriptions import findings_report

    texts = read_texts(bank)
    subject = _subject_of_bank(texts, dataset, classes, modality)
    findings = check_bank(texts.descriptions, subject, Rules(min_words, max_words, max_overlap), n)
    if backbone is not None:
        findings += _findings_on(backbone, device, precision, bank, subject)
    faults = sum(finding.is_fault for finding in findings)
    if as_json:
        facts = {
            "bank": bank,
            "classes": list(subject.class_names),
            "modality": subject.modality or None,
            "faults": faults,
            "notes": len(findings) - faults,
            "by_kind": dict(Counter(finding.kind for finding in findings)),
            "findings": [{**dataclasses.asdict(f), "fault": f.is_fault} for f in findings],
        }
        print(json.dumps(facts))
    else:
        if not subject.modality:
            err.print("The modality is not known, so it was not looked for; name it with --modality.")
        out.print(findings_report(findings))
    if faults:
        raise typer.Exit(SOME_FAILED)


@group.command("diff")
def diff_banks(
    a: Annotated[str, typer.Argument(help="Bank A.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Bank B.", show_default=False)],
    backbone: TextBackbone = None,
    vocabulary_sample: Sample = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Compare two banks, sentence by sentence and, with a backbone, on its sphere.

    Example: [bold]vmfcoop descriptions diff btmri mine.json --backbone biomedclip[/]
    """
    from vmfcoop.descriptions import load_descriptions
    from vmfcoop.descriptions.compare import compare_geometry, compare_texts
    from vmfcoop.reporting.descriptions import difference_report

    one, other = (load_descriptions(bank).descriptions for bank in (a, b))
    differences = compare_texts(one, other)
    comparison = None
    if backbone is not None:
        with progress_shown() as progress:
            encoder = _encoder(backbone, device, precision, progress)
            comparison = compare_geometry(one, other, encoder, vocabulary_sample)
    if as_json:
        facts: dict[str, Any] = {"a": a, "b": b}
        facts["classes"] = [dataclasses.asdict(entry) for entry in differences]
        if comparison is not None:
            facts["geometry"] = {
                "backbone": comparison.a.backbone,
                "accuracy": [comparison.a.accuracy, comparison.b.accuracy],
                "classes": [dataclasses.asdict(entry) for entry in comparison.classes],
                "verdict": comparison.verdict(),
            }
        print(json.dumps(facts))
        return
    out.print(difference_report(differences, comparison))


def _findings_on(backbone: str, device: str, precision: str, bank: str, subject: Subject) -> list[Finding]:
    """What a backbone adds to a check; nothing, said on stderr, if the bank's faults leave no law to fit."""
    from vmfcoop.descriptions.bank import load_descriptions, spelled_as
    from vmfcoop.descriptions.geometry import backbone_findings, bank_geometry

    with progress_shown() as progress:
        encoder = _encoder(backbone, device, precision, progress)
        try:
            usable = spelled_as(load_descriptions(bank).descriptions, subject.class_names)
            return backbone_findings(bank_geometry(usable, encoder), usable)
        except UserError as error:
            _say(f"Not looked at on {backbone}: {error}")
            return []


def _encoder(backbone: str, device: str, precision: str, progress: ProgressReport) -> CachedEncoder:
    from vmfcoop.backbones import load_backbone
    from vmfcoop.features import CachedEncoder

    return CachedEncoder(load_backbone(backbone, device, precision), progress=progress)


def _names(classes: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in classes.split(","))


def _subject(
    dataset: str | None, classes: str | None, modality: str | None, organ: str | None = None
) -> Subject:
    """The subject that the options describe; what is named by itself wins over the dataset's."""
    from vmfcoop.descriptions.subject import Subject, dataset_subject

    if (dataset is None) == (classes is None):
        raise UserError("Name the classes by either --dataset KEY or --classes a,b.")
    found = dataset_subject(dataset) if dataset is not None else Subject(_names(classes or ""))
    return dataclasses.replace(
        found,
        modality=found.modality if modality is None else modality,
        organ=found.organ if organ is None else organ,
    )


def _subject_of_bank(
    texts: BankTexts, dataset: str | None, classes: str | None, modality: str | None
) -> Subject:
    """The subject of the options or, without, of the bank: its classes, what it says of the modality."""
    if dataset is not None or classes is not None:
        return _subject(dataset, classes, modality)
    from vmfcoop.descriptions.subject import Subject

    return Subject(tuple(texts.descriptions), _modality_of_bank(texts) if modality is None else modality)


def _modality_of_bank(texts: BankTexts) -> str:
    """What the bank says, else what is known of the dataset it names, else nothing."""
    from vmfcoop.descriptions.subject import dataset_subject

    provenance, dataset = texts.meta.get("meta"), texts.meta.get("dataset")
    said = provenance.get("modality") if isinstance(provenance, Mapping) else None
    if isinstance(said, str):
        return said
    try:
        return dataset_subject(dataset).modality if isinstance(dataset, str) else ""
    except UserError:
        return ""


def _say(sentence: str) -> None:
    err.print(escape(sentence), soft_wrap=True, highlight=False)


def _show_plan(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    out.print(f"[bold]System[/]\n{escape(facts['system'])}\n", highlight=False, soft_wrap=True)
    out.print(
        f"[bold]User[/] (the first request)\n{escape(facts['user'])}\n", highlight=False, soft_wrap=True
    )
    out.print(
        f"{facts['requests']} requests to {escape(facts['base_url'])} for {facts['sentences']} sentences, "
        f"{facts['tokens_estimated']:,} tokens at a guess; more if sentences are rejected. Nothing was sent.",
        highlight=False,
        soft_wrap=True,
    )


def _show_outcome(outcome: Outcome, request: GenerationRequest, as_json: bool) -> None:
    meta, have = outcome.meta, sum(outcome.counts.values())
    if as_json:
        facts = {
            "status": outcome.status,
            "file": str(outcome.file) if have else None,
            "counts": outcome.counts,
            "explanation": outcome.explanation,
            **{key: meta[key] for key in _SHOWN_OF_META},
        }
        print(json.dumps(facts))
        return
    wanted = request.n * len(request.subject.class_names)
    kept = f"; {outcome.file} holds {have} of {wanted} sentences, repeat the command to go on" if have else ""
    head = {
        "complete": f"Wrote {outcome.file}: {have} sentences.",
        "already": f"{outcome.file} is complete already: {have} sentences; nothing was sent.",
    }.get(outcome.status, f"{outcome.explanation.rstrip('.')}{kept}.")
    tokens = meta["tokens"]
    roughly = "about " if tokens["estimated"] else ""
    lines = [head, f"{meta['requests']} requests, {roughly}{tokens['total']:,} tokens in all."]
    for title, counts in (
        ("Rejected sentences", meta["rejected"]),
        ("Kept with a note", meta["kept_with_notes"]),
        ("Answers at fault", meta["faulty_answers"]),
        ("Passing faults", meta["faults"]),
    ):
        if counts:
            lines.append(f"{title}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    lines += _other_models(request.endpoint.model, meta["models_answered"])
    (out if outcome.status in ("complete", "already") else err).print(
        escape("\n".join(lines)), highlight=False, soft_wrap=True
    )


_SHOWN_OF_META = (
    "requests",
    "tokens",
    "models_answered",
    "rejected",
    "kept_with_notes",
    "faulty_answers",
    "faults",
)


def _other_models(asked: str, answered: Sequence[str]) -> list[str]:
    """A line if another model answered than was asked; a dated version of it is the same."""
    others = [name for name in answered if not name.startswith(asked)]
    return [f"Asked for {asked}, but the server answered as {', '.join(others)}."] if others else []
