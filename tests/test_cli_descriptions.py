"""The commands of ``vmfcoop descriptions``, through the entry point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.descriptions.chat_server import Script, good, hang, running, says, status
from vmfcoop.cli import app
from vmfcoop.descriptions import load_descriptions

KEY = "sk-secret-0123456789"


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


def vmfcoop(*arguments: object, **environment: str) -> Result:
    variables = {"COLUMNS": "200", "NO_COLOR": "1", **environment}
    result = CliRunner().invoke(app, ["descriptions", *map(str, arguments)], env=variables)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def refused(result: Result, *parts: str) -> None:
    assert result.code == 2 and result.out == "" and "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, result.err
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.fixture
def server() -> Iterator[Script]:
    with running() as script:
        yield script


def generate(server: Script, out: Path, *more: object, **environment: str) -> Result:
    arguments = ["--dataset", "phantom-chest-xray", "--model", "test-model", "--base-url", server.url]
    arguments += ["--n", "4", "--batch", "2", "--backoff", "0.01", "--timeout", "5", "--out", str(out)]
    return vmfcoop("generate", *arguments, *more, **environment)


def test_generate(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    server.play(status(500, "oops"), good(), good(usage=None))
    result = generate(server, out)
    assert result.code == 0 and f"Wrote {out}: 16 sentences." in result.out
    assert "9 requests, about" in result.out and "Passing faults: 1 500" in result.out
    assert "next try in" in result.err
    names = ["normal lungs", "lobar opacity", "diffuse opacity", "pleural effusion"]
    assert [len(texts) for texts in load_descriptions(out).for_classes(names)] == [4] * 4
    checked = vmfcoop("check", out, "--dataset", "phantom-chest-xray", "--n", 4)
    assert checked.code == 0, checked.out
    again = generate(server, out)
    assert again.code == 0 and "complete already" in again.out and len(server.requests) == 9


def test_generate_as_json(server: Script, tmp_path: Path) -> None:
    result = generate(server, tmp_path / "bank.json", "--json")
    facts = json.loads(result.out)
    assert facts["status"] == "complete" and facts["requests"] == 8 and facts["tokens"]["total"] == 1200
    assert facts["counts"]["lobar opacity"] == 4 and facts["models_answered"] == ["test-model"]


def test_generate_stops_at_a_budget_and_goes_on(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    first = generate(server, out, "--budget-requests", 3)
    assert first.code == 1 and first.out == "" and not out.exists()
    assert "the budget of 3 requests is spent" in first.err
    assert "holds 6 of 16 sentences, repeat the command to go on" in first.err
    assert generate(server, out).code == 0 and len(server.requests) == 8


def test_generate_from_barren_answers(server: Script, tmp_path: Path) -> None:
    server.play(says("I'm sorry, but I can't help with that."))
    result = generate(server, tmp_path / "bank.json", "--json")
    facts = json.loads(result.out)
    assert result.code == 1 and facts["status"] == "barren" and facts["file"] is None
    assert "4 refused" in facts["explanation"] and facts["faulty_answers"] == {"refused": 4}


def test_dry_run(server: Script, tmp_path: Path) -> None:
    result = generate(server, tmp_path / "bank.json", "--dry-run")
    assert result.code == 0 and server.requests == [] and list(tmp_path.iterdir()) == []
    assert 'of the class "normal lungs"' in result.out and "8 requests" in result.out
    facts = json.loads(generate(server, tmp_path / "bank.json", "--dry-run", "--json").out)
    assert facts["requests"] == 8 and facts["sentences"] == 16 and "chest X-ray" in facts["system"]


def test_generate_without_a_key_or_a_package_is_still_planned(tmp_path: Path) -> None:
    arguments = ["--classes", "a,b", "--modality", "CT", "--model", "m", "--out", tmp_path / "b.json"]
    assert vmfcoop("generate", *arguments, "--dry-run").code == 0
    refused(vmfcoop("generate", *arguments, OPENAI_API_KEY=""), "OPENAI_API_KEY is not set")


def test_the_key_is_never_shown(server: Script, tmp_path: Path) -> None:
    server.play(good(), status(418, f"{KEY} is a teapot"))
    out = tmp_path / "bank.json"
    result = generate(server, out, "--api-key-env", "CLINIC_KEY", CLINIC_KEY=KEY)
    refused(result, "*** is a teapot")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "lobar opacity" in written and KEY not in result.err + result.out + written


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "m"], ["--dataset KEY or --classes"]),
        (["--model", "m", "--dataset", "busi", "--classes", "a,b"], ["either --dataset KEY or --classes"]),
        (["--model", "m", "--dataset", "bussi"], ["Unknown dataset 'bussi'", "'busi'"]),
        (["--model", "m", "--classes", "a,b"], ["--modality"]),
        (["--model", "m", "--classes", "a,,b", "--modality", "CT"], ["class name is empty"]),
        (["--model", "m", "--classes", "a,A", "--modality", "CT"], ["named twice"]),
        (["--model", "m", "--classes", "a,b", "--modality", "CT", "--base-url", "nowhere"], ["no base URL"]),
        (
            ["--model", "m", "--classes", "a,b", "--modality", "CT", "--requests-per-minute", "0"],
            ["must be above 0"],
        ),
    ],
)
def test_generate_errors(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    refused(vmfcoop("generate", *arguments, "--out", tmp_path / "b.json"), *parts)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_not_mixed_in(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    generate(server, out, "--budget-requests", 1)
    refused(generate(server, out, "--model", "other"), "begun with another model", "--restart")
    restarted = generate(server, out, "--model", "other", "--restart")
    assert restarted.code == 0 and "Asked for other, but the server answered as test-model." in restarted.out


def test_interrupt_is_said_and_loses_nothing(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    server.play(good(), good(), hang(30))
    arguments = ["generate", "--classes", "cyst,stone", "--modality", "CT", "--model", "test-model"]
    arguments += ["--base-url", server.url, "--n", "4", "--batch", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vmfcoop", "descriptions", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    deadline = time.monotonic() + 60
    while len(server.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and stdout == "" and "Traceback" not in stderr
    assert "Interrupted: sentences accepted so far are kept" in stderr
    kept = json.loads((tmp_path / "bank.json.partial").read_text())
    assert len(kept["descriptions"]["cyst"]) == 4 and kept["meta"]["requests"] == 3


def test_show(tmp_path: Path) -> None:
    plain = vmfcoop("show", "phantom-fundus")
    assert plain.code == 0 and "glaucoma" in plain.out and "--backbone" in plain.out
    result = vmfcoop("show", "phantom-fundus", "--backbone", "phantom")
    assert result.code == 0
    for part in ("κ debiased", "Cosines between mean directions", "unified anchors", "most typical", "stray"):
        assert part in result.out
    assert "This is the side of the texts alone" in " ".join(result.out.split())
    facts = json.loads(vmfcoop("show", "phantom-fundus", "--backbone", "phantom", "--json").out)
    assert facts["sentences"]["cataract"] == 50 and len(facts["mean_cosines"]) == 4
    assert facts["advice"] and 0 < facts["accuracy"] < 1
    sampled = json.loads(
        vmfcoop("show", "phantom-fundus", "--backbone", "phantom", "--vocabulary-sample", 50, "--json").out
    )
    assert sampled["vocabulary"] != facts["vocabulary"] and sampled["accuracy"] == facts["accuracy"]


def test_show_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "bank.txt"
    path.write_text("# a [b]\nOne.\nTwo.\n")
    assert "a [b]" in vmfcoop("show", path).out
    refused(vmfcoop("show", tmp_path / "none.json"), "none.json does not exist")
    refused(vmfcoop("show", path, "--backbone", "fantom"), "fantom")


def test_show_fits_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfcoop.cli.descriptions.out", Console(width=80))
    path = tmp_path / "bank.json"
    words = ["dark", "bright", "round", "oval", "hazy", "sharp", "broad", "thin", "long", "short", "soft"]
    bank = {f"carcinosarcoma {word}": [f"A {word} mass.", f"The {word} rim."] for word in words}
    bank[f"carcinosarcoma {words[0]}"][0] += " \x1b[31mred" + " endless" * 500
    path.write_text(json.dumps(bank))
    for classes in (len(words), 8):
        path.write_text(json.dumps(dict(list(bank.items())[:classes])))
        result = vmfcoop("show", path, "--backbone", "phantom")
        assert result.code == 0 and "…" not in result.out and "\x1b" not in result.out
        assert result.out.count("endless") < 200 and max(map(len, result.out.splitlines())) <= 80
        assert ("the largest of each class" in result.out) == (classes > 8)


def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "bank.json"
    texts = ["A cyst on CT is dark and round with a thin wall and no inner echo [ok].", "A cyst.", ""]
    path.write_text(json.dumps({"cyst": texts, "stone": []}))
    return path


def test_check_exit_codes(tmp_path: Path) -> None:
    assert vmfcoop("check", "phantom-fundus").code == 0
    result = vmfcoop("check", faulty(tmp_path), "--modality", "CT")
    assert result.code == 1
    assert "too few words" in result.out and "missing" in result.out and "empty" in result.out
    refused(vmfcoop("check", tmp_path / "none.json"), "does not exist")
    refused(vmfcoop("check", "phantom-fundus", "--dataset", "phantom-fundi"), "phantom-fundus")


def test_check_of_a_faulty_bank_on_a_backbone(tmp_path: Path) -> None:
    result = vmfcoop("check", faulty(tmp_path), "--modality", "CT", "--backbone", "phantom")
    assert result.code == 1 and "too few words" in result.out
    assert "Not looked at on phantom: " in result.err and "empty description of 'cyst'" in result.err


def test_check_of_equal_sentences_on_a_backbone(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    text = "A cyst on CT is dark and round with a thin wall and no inner echo."
    path.write_text(json.dumps({"cyst": [text, text.lower()]}))
    result = vmfcoop("check", path, "--modality", "CT", "--backbone", "phantom", "--json")
    assert result.code == 1 and json.loads(result.out)["by_kind"] == {"duplicate": 1}
    assert "Not looked at on phantom: " in result.err and "add different ones" in result.err
    refused(vmfcoop("show", path, "--backbone", "phantom"), "'cyst'", "add different ones")


def test_check_in_another_spelling(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    packaged = load_descriptions("btmri").descriptions
    path.write_text(json.dumps({name.title().replace(" ", "_"): list(t) for name, t in packaged.items()}))
    result = vmfcoop("check", path, "--dataset", "btmri", "--n", 50, "--backbone", "phantom", "--json")
    facts = json.loads(result.out)
    assert result.code == 0 and facts["by_kind"].keys() <= {"stray", "outlier", "class-unnamed"}
    assert {finding["class_name"] for finding in facts["findings"]} <= set(packaged)


def test_check_as_json(tmp_path: Path) -> None:
    facts: dict[str, Any] = json.loads(vmfcoop("check", faulty(tmp_path), "--modality", "CT", "--json").out)
    assert facts["faults"] == 3 and facts["by_kind"]["short"] == 1
    short = next(f for f in facts["findings"] if f["kind"] == "short")
    assert (short["class_name"], short["position"], short["fault"]) == ("cyst", 2, True)
    clean = json.loads(vmfcoop("check", "phantom-fundus", "--n", 50, "--json").out)
    assert clean["faults"] == 0 and "photography" in clean["modality"]


def test_check_against_other_classes(tmp_path: Path) -> None:
    result = vmfcoop(
        "check", "phantom-fundus", "--classes", "glaucoma,drusen", "--modality", "fundus photograph"
    )
    assert result.code == 1 and "drusen" in result.out and "Note: cataract: 1 x extra" in result.out


def test_check_on_a_backbone(tmp_path: Path) -> None:
    result = vmfcoop("check", "phantom-fundus", "--backbone", "phantom")
    assert result.code == 0 and "stray" in result.out
    path = tmp_path / "bank.json"
    bank = {name: list(texts) for name, texts in load_descriptions("phantom-fundus").descriptions.items()}
    bank["cataract"][0] = "A cataract on this fundus photograph makes " + "very " * 120 + "hazy vessels."
    path.write_text(json.dumps(bank))
    cut = vmfcoop("check", path, "--max-words", 200, "--backbone", "phantom", "--json")
    facts = json.loads(cut.out)
    assert cut.code == 1 and facts["by_kind"]["truncated"] == 1 and facts["faults"] == 1


def test_diff(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    bank = {
        name: list(texts)[:40]
        for name, texts in load_descriptions("phantom-dermatoscopy").descriptions.items()
    }
    bank["melanoma"].append("A new sentence on an uneven melanoma in a dermatoscopic image [sic].")
    path.write_text(json.dumps(bank))
    result = vmfcoop("diff", "phantom-dermatoscopy", path, "--backbone", "phantom")
    assert result.code == 0 and "+ melanoma: A new sentence" in result.out and "[sic]" in result.out
    assert "about equally well" in " ".join(result.out.split())
    facts = json.loads(vmfcoop("diff", "phantom-dermatoscopy", path, "--backbone", "phantom", "--json").out)
    melanoma = next(entry for entry in facts["classes"] if entry["name"] == "melanoma")
    assert melanoma["counts"] == [50, 41] and len(melanoma["kept"]) == 40 and len(melanoma["removed"]) == 10
    assert len(facts["geometry"]["classes"]) == 4 and facts["geometry"]["verdict"]
    plain = json.loads(vmfcoop("diff", "phantom-dermatoscopy", path, "--json").out)
    assert "geometry" not in plain
    refused(
        vmfcoop("diff", "phantom-dermatoscopy", "phantom-fundus", "--backbone", "phantom"), "share no class"
    )


def test_help_lists_the_commands() -> None:
    result = vmfcoop("--help")
    assert all(name in result.out for name in ("generate", "show", "check", "diff"))
