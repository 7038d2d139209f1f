"""Writing a bank through a server that misbehaves; drafts that survive."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vmfcoop.__about__ import __version__
from vmfcoop.descriptions import load_descriptions
from vmfcoop.descriptions.generate import (
    MAX_BARREN,
    GenerationRequest,
    Outcome,
    draft_path,
    generate,
    plan,
)
from vmfcoop.descriptions.llm import Budget, Endpoint
from vmfcoop.descriptions.subject import Subject, dataset_subject
from vmfcoop.errors import UserError

from .chat_server import (
    Handler,
    Reply,
    Script,
    class_asked,
    close,
    completion,
    fresh,
    good,
    half,
    hang,
    raw,
    says,
    sentence,
    status,
    without,
)

SUBJECT = Subject(("pleural effusion", "lobar opacity"), "chest X-ray", "chest")


def request_to(
    server: Script, n: int = 6, batch: int = 3, subject: Subject = SUBJECT, **more: Any
) -> GenerationRequest:
    settings = {"timeout": 0.3, "retries": 2, "backoff": 0.01, **more}
    return GenerationRequest(subject, Endpoint("test-model", server.url, **settings), n, batch)


def written(outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(outcome.file.read_text(encoding="utf-8"))
    return content


def numbered(sentences: Sequence[str]) -> str:
    return "Here you are:\n\n" + "\n".join(f"{i}. **{text}**" for i, text in enumerate(sentences, 1))


def fenced(sentences: Sequence[str]) -> str:
    return f"<think>1. Let me see.</think>\n```json\n{json.dumps({'sentences': list(sentences)})}\n```"


def test_writes_a_bank_with_its_provenance(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    request = request_to(server, temperature=0.7, seed=1, max_tokens=500)
    outcome = generate(request, out)
    assert outcome.status == "complete" and outcome.counts == dict.fromkeys(SUBJECT.class_names, 6)
    bank = load_descriptions(out)
    assert [len(set(texts)) for texts in bank.for_classes(SUBJECT.class_names)] == [6, 6]
    meta = bank.meta["meta"]
    assert meta["date"] == datetime.now(UTC).date().isoformat() and meta["complete"] is True
    assert meta["request"]["model"] == "test-model" and meta["models_answered"] == ["test-model"]
    assert meta["request"]["base_url"] == server.url and meta["response_formats"] == ["json_schema"]
    assert (meta["request"]["temperature"], meta["request"]["seed"], meta["request"]["max_tokens"]) == (
        0.7,
        1,
        500,
    )
    assert "of the class" in meta["request"]["prompt"]["user"]
    assert meta["software"] == f"vmfcoop {__version__}" and (meta["n"], meta["batch"]) == (6, 3)
    assert meta["requests"] == 4 == len(server.requests)
    assert meta["tokens"] == {"prompt": 400, "completion": 200, "total": 600, "estimated": False}
    assert meta["rejected"] == meta["faulty_answers"] == meta["faults"] == {}
    assert not draft_path(out).exists()
    assert datetime.fromisoformat(meta["started"]) <= datetime.fromisoformat(meta["finished"])


def test_prompt_says_what_is_wanted(server: Script, tmp_path: Path) -> None:
    generate(request_to(server), tmp_path / "bank.json")
    first, second, third, _ = (body["messages"][1]["content"] for body in server.requests)
    assert re.search(r"Write 3 distinct sentences .*chest X-ray of the chest.*\"pleural effusion\"", first)
    assert "10 to 40 words" in first and 'neighbours ("lobar opacity")' in first and "collected" not in first
    earlier = json.loads((tmp_path / "bank.json").read_text())["descriptions"]["pleural effusion"][:3]
    assert "collected already" in second and all(f"- {text}" in second for text in earlier)
    assert 'class "lobar opacity"' in third and "collected" not in third


def test_key_is_nowhere_in_the_files(server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_KEY", "sk-secret")
    url = server.url.replace("http://", "http://user:password@") + "?token=hidden"
    endpoint = Endpoint("test-model", url, key_variable="CLINIC_KEY")
    request = GenerationRequest(SUBJECT, endpoint, 2, 2)
    server.play(good(), status(401))
    with pytest.raises(UserError):
        generate(request, tmp_path / "bank.json")
    text = draft_path(tmp_path / "bank.json").read_text()
    assert not re.search("sk-secret|CLINIC_KEY|password|hidden", text)


@pytest.mark.parametrize("form", [numbered, fenced])
def test_other_forms(server: Script, tmp_path: Path, form: Callable[[Sequence[str]], str]) -> None:
    server.play(good(form))
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "complete" and outcome.meta["rejected"] == {}


def test_everything_that_goes_wrong_at_once(server: Script, tmp_path: Path) -> None:
    server.play(
        status(429, "slow down", Retry_After="0.05"),
        without("json_schema"),
        without("json_schema"),
        hang(1.0),
        close,
        good(numbered),
        raw("<html>oops</html>", "text/html"),
        half,
        good(fenced),
        status(500),
        good(usage=None),
    )
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "complete"
    meta = outcome.meta
    assert meta["faults"] == {"429": 1, "timeout": 1, "connection": 2, "invalid answer": 1, "500": 1}
    assert meta["response_formats"] == ["json_object"] and meta["requests"] == 11
    assert meta["tokens"]["estimated"] is True
    assert meta["requests"] == len(server.requests)


def test_bad_sentences_are_rejected_and_counted(server: Script, tmp_path: Path) -> None:
    one, two = sentence("pleural effusion", 900), sentence("pleural effusion", 901)
    bad = [
        one,
        one.upper(),
        one.replace("softly", "gently"),
        "Pleural effusion on chest X-ray.",
        two + " very" * 40,
        sentence("lobar opacity", 902),
        "I'm sorry, but I can't say more about this kind of finding on an image.",
        two,
    ]
    server.play(says(json.dumps({"sentences": bad})), good())
    outcome = generate(request_to(server, n=2), tmp_path / "bank.json")
    assert written(outcome)["descriptions"]["pleural effusion"] == [one, two]
    assert outcome.meta["rejected"] == {
        "duplicate": 1,
        "overlap": 1,
        "short": 1,
        "long": 1,
        "other-class": 1,
        "refusal": 1,
    }


def test_omissions_are_kept_and_counted(server: Script, tmp_path: Path) -> None:
    unnamed = [
        "Fluid collects at the base of the right side and hides the diaphragm on this radiograph.",
        "A pleural effusion blunts the left costophrenic angle and rises along the lateral chest wall.",
    ]
    server.play(says(json.dumps({"sentences": unnamed})), good())
    outcome = generate(request_to(server, n=2), tmp_path / "bank.json")
    assert written(outcome)["descriptions"]["pleural effusion"] == unnamed
    assert outcome.meta["kept_with_notes"] == {"class-unnamed": 1, "modality-unnamed": 1}


def test_a_sentence_goes_to_one_class_alone(server: Script, tmp_path: Path) -> None:
    both = "The pleural effusion and the lobar opacity are told apart by their edge on this chest X-ray."
    neutral = "On this chest X-ray a whiter field than usual lies beside the heart and below the hilum."
    texts = [neutral, sentence("pleural effusion", 1), both]
    server.play(says(json.dumps(texts)), says(json.dumps([neutral])), good())
    outcome = generate(request_to(server, n=2), tmp_path / "bank.json")
    descriptions = written(outcome)["descriptions"]
    assert neutral in descriptions["pleural effusion"] and neutral not in descriptions["lobar opacity"]
    assert outcome.meta["rejected"] == {"surplus": 1, "shared": 1}


@pytest.mark.parametrize(("count", "requests"), [(1, 12), (2, 6), (9, 2)])
def test_servers_that_ignore_the_number(server: Script, tmp_path: Path, count: int, requests: int) -> None:
    server.play(good(count=count))
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.counts == dict.fromkeys(SUBJECT.class_names, 6)
    assert outcome.meta["requests"] == requests
    assert outcome.meta["rejected"].get("surplus", 0) == max(0, count - 6) * 2


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Two sentences and the beginning of a third."""
    text = json.dumps({"sentences": fresh(handler, body, 3)})
    handler.send(200, completion(text[:-60], "length"))


def test_cut_answers_count_up_to_the_cut(server: Script, tmp_path: Path) -> None:
    server.play(cut, good())
    outcome = generate(request_to(server, n=3), tmp_path / "bank.json")
    assert outcome.meta["faulty_answers"] == {"cut": 1} and outcome.meta["requests"] == 3
    texts = written(outcome)["descriptions"]["pleural effusion"]
    assert all(text.endswith("softly.") for text in texts)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (says("I'm sorry, but I can't help with that.\nPlease ask a doctor."), "4 refused"),
        (says(None, message={"refusal": "No."}), "4 refused"),
        (says(""), "4 empty"),
        (says("<think>hm", "length"), "4 cut, 4 empty.*raise --max-tokens"),
        (says(json.dumps(["Too short."])), "4 short"),
    ],
)
def test_barren_answers_end_it_in_a_sentence(
    server: Script, tmp_path: Path, reply: Reply, reason: str
) -> None:
    server.play(reply)
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "barren" and len(server.requests) == MAX_BARREN
    assert re.search(f"gave no usable sentence of 'pleural effusion' .{reason}", outcome.explanation)
    assert list(tmp_path.iterdir()) == []


def test_barren_answers_count_in_a_row_only(server: Script, tmp_path: Path) -> None:
    bad = [says("")] * (MAX_BARREN - 1)
    server.play(*bad, good(), *bad, good())
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "complete" and outcome.meta["faulty_answers"] == {"empty": 2 * len(bad)}


def test_an_apology_before_the_sentences_is_no_refusal(server: Script, tmp_path: Path) -> None:
    server.play(good(lambda sentences: "Sorry for the wait! " + numbered(sentences)))
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "complete" and outcome.meta["faulty_answers"] == {}


def test_one_stubborn_class_does_not_stop_the_others(server: Script, tmp_path: Path) -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        stubborn = 'class "lobar opacity"' in body["messages"][1]["content"]
        (says("") if stubborn else good())(handler, body)

    server.play(reply)
    subject = Subject(("pleural effusion", "lobar opacity", "diffuse opacity"), "chest X-ray")
    out = tmp_path / "bank.json"
    outcome = generate(request_to(server, subject=subject), out)
    assert outcome.status == "barren" and "'lobar opacity' (4 empty)" in outcome.explanation
    assert outcome.counts == {"pleural effusion": 6, "lobar opacity": 0, "diffuse opacity": 6}
    assert not out.exists() and outcome.file == draft_path(out)
    server.play(good())
    assert generate(request_to(server, subject=subject), out).status == "complete"


def test_budget_keeps_what_is_there_and_goes_on(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    first = generate(request_to(server), out, Budget(requests=3))
    assert first.status == "budget" and "3 requests" in first.explanation
    assert first.counts == {"pleural effusion": 6, "lobar opacity": 3} and not out.exists()
    kept = load_descriptions(first.file)
    assert len(kept.descriptions["lobar opacity"]) == 3
    second = generate(request_to(server), out, Budget(requests=3))
    assert second.status == "complete" and second.meta["requests"] == 4 == len(server.requests)
    assert written(second)["descriptions"]["lobar opacity"][:3] == list(kept.descriptions["lobar opacity"])
    assert not draft_path(out).exists()


def test_budget_of_tokens(server: Script, tmp_path: Path) -> None:
    outcome = generate(request_to(server), tmp_path / "bank.json", Budget(tokens=700))
    assert outcome.status == "budget" and "700 tokens" in outcome.explanation
    assert outcome.meta["tokens"]["total"] <= 700 and 0 < len(server.requests) < 4


def test_a_final_error_keeps_the_draft(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    server.play(good(), good(), status(401))
    with pytest.raises(UserError, match="API key"):
        generate(request_to(server), out)
    server.play(good())
    outcome = generate(request_to(server), out)
    assert outcome.status == "complete" and outcome.meta["requests"] == 5


def test_an_error_at_the_first_request_leaves_nothing(server: Script, tmp_path: Path) -> None:
    server.play(status(404, "no such model"))
    with pytest.raises(UserError, match="--model"):
        generate(request_to(server), tmp_path / "bank.json")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_between_requests(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bank.json"

    def progress(task: str, done: int, total: int) -> None:
        if task == "lobar opacity" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(request_to(server), out, progress=progress)
    outcome = generate(request_to(server), out)
    assert outcome.status == "complete" and len(server.requests) == 4


def test_killed_in_the_middle_and_resumed(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    server.play(good(), good(), good(), hang(30))
    arguments = ["descriptions", "generate", "--classes", ",".join(SUBJECT.class_names)]
    arguments += ["--modality", "chest X-ray", "--organ", "chest", "--model", "test-model"]
    arguments += ["--base-url", server.url, "--n", "6", "--batch", "3", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "vmfcoop", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["bank.json.partial"]
    kept = load_descriptions(draft_path(out)).descriptions
    assert [len(texts) for texts in kept.values()] == [6, 3]
    server.play(good())
    outcome = generate(request_to(server), out)
    assert outcome.status == "complete" and len(server.requests) == 5
    found = written(outcome)["descriptions"]
    assert all(tuple(found[name][: len(texts)]) == texts for name, texts in kept.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.3}, "temperature"),
        ({"seed": 4}, "seed"),
        ({"subject": Subject(("pleural effusion", "lobar opacity"), "CT", "chest")}, "modality"),
        ({"subject": Subject(("lobar opacity", "pleural effusion"), "chest X-ray", "chest")}, "classes"),
    ],
)
def test_other_requests_do_not_mix(
    server: Script, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out, Budget(requests=1))
    before = draft_path(out).read_text()
    with pytest.raises(UserError, match=f"begun with another {named}.*--restart"):
        generate(request_to(server, **change), out)
    assert draft_path(out).read_text() == before and len(server.requests) == 1
    outcome = generate(request_to(server, **change), out, restart=True)
    assert outcome.status == "complete" and outcome.meta["requests"] == 4


def test_another_model_and_prompt_do_not_mix(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out, Budget(requests=1))
    other = GenerationRequest(SUBJECT, Endpoint("other-model", server.url), 6, 3)
    with pytest.raises(UserError, match="another model"):
        generate(other, out)
    monkeypatch.setattr("vmfcoop.descriptions.generate.SYSTEM_PROMPT", "Be brief on {modality}{organ}.")
    with pytest.raises(UserError, match="another prompt"):
        generate(request_to(server), out)


def test_n_and_batch_may_change(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out, Budget(requests=2))
    outcome = generate(request_to(server, n=4, batch=2), out)
    assert outcome.counts == dict.fromkeys(SUBJECT.class_names, 4)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"meta": {}}', '{"meta": 1, "descriptions": 2}'])
def test_a_damaged_draft(server: Script, tmp_path: Path, content: str) -> None:
    out = tmp_path / "bank.json"
    draft_path(out).write_text(content)
    with pytest.raises(UserError, match=r"partial is no draft.*--restart"):
        generate(request_to(server), out)
    assert draft_path(out).read_text() == content
    assert generate(request_to(server), out, restart=True).status == "complete"


def test_files_that_are_there(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out)
    asked, before = len(server.requests), out.read_bytes()
    again = generate(request_to(server), out)
    assert again.status == "already" and len(server.requests) == asked
    with pytest.raises(UserError, match=r"is there already.*--overwrite"):
        generate(request_to(server, n=8), out)
    assert out.read_bytes() == before
    server.play(status(401))
    with pytest.raises(UserError, match="API key"):
        generate(request_to(server, n=8), out, overwrite=True)
    assert out.read_bytes() == before
    server.play(good())
    assert generate(request_to(server, n=8), out, overwrite=True).counts["lobar opacity"] == 8


def test_two_commands_do_not_write_one_file(server: Script, tmp_path: Path) -> None:
    out, refusals = tmp_path / "bank.json", []

    def progress(task: str, done: int, total: int) -> None:
        if done == 3:
            with pytest.raises(UserError, match="Another command is writing"):
                generate(request_to(server), out)
            refusals.append(task)

    assert generate(request_to(server), out, progress=progress).status == "complete"
    assert len(refusals) == 2 and len(server.requests) == 4


def test_a_full_disk_is_said_and_keeps_the_last_draft(
    server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out, Budget(requests=2))
    before = draft_path(out).read_bytes()

    def full(handle: int, *_: object, **__: object) -> None:
        os.close(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vmfcoop.files.os.fdopen", full)
        with pytest.raises(UserError, match="is full"):
            generate(request_to(server), out)
    assert draft_path(out).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bank.json.partial"]


def test_a_bank_that_appears_beside_a_draft_stays(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    generate(request_to(server), out, Budget(requests=1))
    out.write_text('{"a": ["One.", "Two."]}')
    with pytest.raises(UserError, match=r"is there already.*--overwrite"):
        generate(request_to(server), out)
    assert len(server.requests) == 1 and "One." in out.read_text()
    outcome = generate(request_to(server), out, overwrite=True)
    assert outcome.status == "complete" and outcome.meta["requests"] == 4 == len(server.requests)


def test_places_that_cannot_be_written_cost_nothing(server: Script, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    for name in ("file/bank.json", "folder.json", "x" * 250 + ".json"):
        with pytest.raises(UserError, match=r"cannot be written|is a folder"):
            generate(request_to(server), tmp_path / name, overwrite=True)
    assert server.requests == [] and len(list(tmp_path.iterdir())) == 2


def test_half_a_pair_of_surrogates(server: Script, tmp_path: Path) -> None:
    def broken(sentences: Sequence[str]) -> str:
        return json.dumps([f"{text} \ud83d" for text in sentences])

    server.play(good(broken, model="test-model\ud83d"))
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.status == "complete" and outcome.meta["models_answered"] == ["test-model"]


def test_not_json(server: Script, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not as 'bank\.txt'"):
        generate(request_to(server), tmp_path / "bank.txt")


def test_a_small_context_is_shown_fewer_sentences(server: Script, tmp_path: Path) -> None:
    shown: dict[str, list[int]] = {name: [] for name in SUBJECT.class_names}

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        listed = body["messages"][1]["content"].count("\n- In ")
        shown[class_asked(body)].append(listed)
        (good() if listed < 8 else status(400, "maximum context length is 512 tokens"))(handler, body)

    server.play(reply)
    outcome = generate(request_to(server, n=10, batch=1), tmp_path / "bank.json")
    assert outcome.status == "complete" and outcome.meta["rejected"] == {}
    assert shown["pleural effusion"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 4]
    assert shown["lobar opacity"] == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]


def test_a_context_that_is_too_small_for_anything(server: Script, tmp_path: Path) -> None:
    server.play(status(400, "maximum context length is 16 tokens"))
    with pytest.raises(UserError, match="too long for 'test-model'"):
        generate(request_to(server), tmp_path / "bank.json")
    assert len(server.requests) == 1


def test_models_that_answer_are_recorded(server: Script, tmp_path: Path) -> None:
    server.play(good(model="test-model-2026-01-01"), good(model="other"))
    outcome = generate(request_to(server), tmp_path / "bank.json")
    assert outcome.meta["models_answered"] == ["test-model-2026-01-01", "other"]


def test_plan_sends_nothing(server: Script, tmp_path: Path) -> None:
    out = tmp_path / "bank.json"
    facts = plan(request_to(server, n=10, batch=4), out)
    assert facts["requests"] == 6 and facts["sentences"] == 20 and facts["tokens_estimated"] > 0
    assert "Write 4 distinct sentences" in facts["user"] and "chest X-ray" in facts["system"]
    assert server.requests == []
    generate(request_to(server, n=10, batch=4), out, Budget(requests=3))
    assert plan(request_to(server, n=10, batch=4), out)["requests"] == 3


def test_subjects(server: Script) -> None:
    phantom = dataset_subject("phantom-fundus")
    assert "glaucoma" in phantom.class_names and phantom.organ == "retina"
    public = dataset_subject("busi")
    assert public.class_names == ("benign tumor", "malignant tumor", "normal scan") and public.modality
    with pytest.raises(UserError, match="did you mean 'phantom-fundus'"):
        dataset_subject("phantom-fundi")
    for names in ((), ("a", "A "), ("a", ""), ("a b", "A_b"), ("M\u00fcll", "Mu\u0308ll")):
        with pytest.raises(UserError):
            Subject(names)
    with pytest.raises(UserError, match="--modality"):
        request_to(server, subject=Subject(("a", "b")))
    with pytest.raises(UserError, match="--n must be"):
        request_to(server, n=1)


def test_names_with_braces_and_quotes(server: Script, tmp_path: Path) -> None:
    subject = Subject(("grade {1}", "grade {2}"), "chest X-ray")
    outcome = generate(request_to(server, n=2, subject=subject), tmp_path / "bank.json")
    assert outcome.status == "complete"
