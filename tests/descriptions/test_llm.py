"""The client against a server that misbehaves."""

from __future__ import annotations

import gzip
import json
import math
import re
import socket
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from vmfcoop.descriptions import llm
from vmfcoop.descriptions.llm import (
    Answer,
    Budget,
    BudgetSpentError,
    ChatClient,
    ContextTooLongError,
    Endpoint,
    retry_after,
)
from vmfcoop.errors import UserError

from .chat_server import Handler, Reply, Script, close, completion, half, hang, raw, says, status, without

KEY = "sk-secret-0123456789"


def client(
    server: Script, budget: Budget | None = None, said: list[str] | None = None, **more: Any
) -> ChatClient:
    endpoint = Endpoint("test-model", server.url, **{"timeout": 0.3, "retries": 2, "backoff": 0.01, **more})
    return ChatClient(endpoint, budget, said.append if said is not None else None)


def ask(server: Script, **more: Any) -> Answer:
    return client(server, **more).ask("be short", "speak")


def test_asks_as_documented(server: Script) -> None:
    server.play(says("hello"))
    answer = ask(server, temperature=0.5, seed=7, max_tokens=90)
    assert answer == Answer("hello", "test-model", False, False, "json_schema")
    (body,) = server.requests
    assert body["model"] == "test-model" and body["temperature"] == 0.5
    assert body["seed"] == 7 and body["max_tokens"] == 90
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["sentences"]


def test_sends_nothing_that_was_not_set(server: Script) -> None:
    server.play(says("hello"))
    ask(server)
    assert set(server.requests[0]) == {"model", "messages", "response_format"}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(429, "slow down"), "429"),
        (status(500, "oops"), "500"),
        (status(503, "busy"), "503"),
        (raw("<html><body>Bad gateway</body></html>", "text/html", 502), "502"),
        (hang(1.0), "timeout"),
        (close, "connection"),
        (half, "connection"),
        (raw('{"choices": [{"mess'), "invalid answer"),
        (raw("<html><h1>Sign in</h1></html>", "text/html"), "invalid answer"),
        (raw(""), "invalid answer"),
        (raw('{"choices": []}'), "invalid answer"),
        (raw('{"error": {"message": "overloaded"}}'), "invalid answer"),
        (raw('{"choices": [{"message": "hello"}]}'), "invalid answer"),
        (raw('{"choices": [{"message": ["hello"]}]}'), "invalid answer"),
        (raw('data: {"choices": [{"delta": {"content": "broken o"}}]}\n\n'), "invalid answer"),
        (raw("data: [DONE]\n\n"), "invalid answer"),
        (raw("[" * 100_000), "invalid answer"),
    ],
)
def test_passing_faults_are_waited_out(server: Script, fault: Any, kind: str) -> None:
    server.play(fault, says("there"))
    said: list[str] = []
    asking = client(server, said=said)
    assert asking.ask("a", "b").text == "there"
    assert asking.usage.faults == {kind: 1} and asking.usage.requests == 2
    assert len(said) == 1 and "next try" in said[0] and "<" not in said[0]


def test_gives_up_in_one_sentence(server: Script) -> None:
    server.play(status(500, "oops"))
    asking = client(server)
    with pytest.raises(UserError, match=r"no answer in 3 tries \(last: 500: oops\)") as caught:
        asking.ask("a", "b")
    assert asking.usage.requests == 3 and "\n" not in str(caught.value)


def test_backoff_grows_with_jitter(monkeypatch: pytest.MonkeyPatch, server: Script) -> None:
    waits: list[float] = []
    monkeypatch.setattr(llm.time, "sleep", waits.append)
    server.play(status(500))
    with pytest.raises(UserError):
        ask(server, retries=9, backoff=1.0)
    assert len(waits) == 9
    for attempt, wait in enumerate(waits):
        longest = min(60.0, 2.0**attempt)
        assert longest / 2 <= wait <= longest
    assert len({wait / min(60.0, 2.0**i) for i, wait in enumerate(waits)}) > 5


def test_retry_after_is_honoured(server: Script) -> None:
    server.play(status(429, "wait", Retry_After="0.4"), says("there"))
    ask(server, backoff=0.0)
    assert 0.4 <= server.pauses[0] < 2.0


def test_retry_after_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    later = datetime.now(UTC) + timedelta(seconds=20)
    found = retry_after({"retry-after": format_datetime(later, usegmt=True)})
    assert found is not None and 17 < found <= 20
    assert retry_after({"retry-after": format_datetime(later - timedelta(hours=1), usegmt=True)}) == 0
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({}) is None and retry_after({"retry-after": "nan"}) is None


def test_a_long_pause_is_the_users_to_take(server: Script) -> None:
    server.play(status(429, "daily limit", Retry_After="7200"))
    with pytest.raises(UserError, match=r"asks for a pause of 7200 s \(429: daily limit\)"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "says_so"),
    [
        (status(401, f"Incorrect API key provided: {KEY}"), "wants an API key"),
        (status(404, "The model `test-model` does not exist."), "No model 'test-model' was found"),
        (raw('{"error": "model \'test-model\' not found"}', code=404), "No model 'test-model' was found"),
        (status(400, "Model Not Exist"), "No model 'test-model' was found"),
        (status(402, "Insufficient Balance"), "no credit left"),
        (status(429, "You exceeded your current quota (insufficient_quota)"), "no credit left"),
        (status(400, "This model's maximum context length is 4096 tokens"), "too long for 'test-model'"),
        (status(413, "too big"), "too long for 'test-model'"),
        (status(400, "Your credit balance is too low to access the API."), "no credit left"),
        (raw('{"error": {"code": "Arrearage", "message": "Access denied"}}', code=400), "no credit left"),
        (
            raw('{"error": {"code": "AllocationQuota.FreeTierOnly", "message": "exhausted"}}', code=403),
            "no credit left",
        ),
        (status(400, "Invalid model: test-model"), "No model 'test-model' was found"),
        (status(400, "Range of input length should be [1, 30720]"), "too long for 'test-model'"),
        (status(418, "teapot"), r"rejected by http.*\(418: teapot\)"),
    ],
)
def test_final_errors_are_one_sentence(server: Script, fault: Any, says_so: str) -> None:
    server.play(fault)
    with pytest.raises(UserError, match=says_so) as caught:
        ask(server)
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)


def test_context_is_an_error_of_its_own(server: Script) -> None:
    server.play(status(400, "context_length_exceeded"))
    with pytest.raises(ContextTooLongError):
        ask(server)


def test_key_comes_from_the_environment_and_is_not_told(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIC_KEY", KEY)
    server.play(status(401, f"bad {KEY}"))
    with pytest.raises(UserError, match="does not accept the API key of CLINIC_KEY") as caught:
        ask(server, key_variable="CLINIC_KEY")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    server.play(status(418, f"key {KEY} is a teapot"))
    with pytest.raises(UserError, match=r"key \*\*\* is") as again:
        ask(server, key_variable="CLINIC_KEY")
    assert KEY not in f"{caught.value} {again.value}"


def repeats_the_key(text: str) -> Reply:
    """A body that holds the key which the request came with."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        handler.send(200, text.replace("KEY", KEY))

    return reply


def test_a_server_that_repeats_the_key(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_KEY", KEY)
    half_shown = "x" * 150 + f" {KEY}"  # the limit of what is shown lies within the key
    server.play(
        repeats_the_key('{"error": "no KEY"}'), status(500, half_shown), says(f"The key {KEY}", model=KEY)
    )
    said: list[str] = []
    answer = client(server, said=said, key_variable="CLINIC_KEY").ask("a", "b")
    assert "sk-" not in f"{said} {answer}" and answer.text == "The key ***" and len(said) == 2
    server.play(status(403, "no access to model test-model"))
    with pytest.raises(UserError, match=r"key of CLINIC_KEY do this \(403: no access to model test-model\)"):
        ask(server, key_variable="CLINIC_KEY")


def test_a_stream_that_nobody_asked_for(server: Script) -> None:
    chunks = [
        {"model": "m", "choices": [{"delta": {"role": "assistant", "content": "one\u2028"}}]},
        {"model": "m", "choices": [{"delta": {"content": "two"}, "finish_reason": None}]},
        {"model": "m", "choices": [{"delta": {}, "finish_reason": "length"}]},
        {"model": "m", "choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 3}},
    ]
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}" for chunk in chunks]
    body = "\n\n".join([": keep-alive", *events, "data: [DONE]", ""])
    server.play(raw(body, "text/event-stream"))
    asking = client(server)
    assert asking.ask("a", "b") == Answer("one\u2028two", "m", True, False, "json_schema")
    assert (asking.usage.prompt_tokens, asking.usage.completion_tokens) == (8, 3)


def test_compressed_and_padded_answers(server: Script) -> None:
    def packed(handler: Handler, body: dict[str, Any]) -> None:
        data = gzip.compress(("\n\n" + completion("hello")).encode())
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    server.play(packed)
    assert ask(server).text == "hello"


def test_signs_that_a_terminal_obeys_are_not_told(server: Script) -> None:
    server.play(status(418, "\x1b[31mred\x07 \ud83d"))
    with pytest.raises(UserError, match=r"418: \[31mred\)"):
        ask(server)
    server.play(says("hello", model="m\ud83d"))
    assert ask(server).model == "m"


def test_a_query_stays_behind_the_path(server: Script) -> None:
    paths: list[str] = []

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        paths.append(handler.path)
        says("hello")(handler, body)

    server.play(reply)
    for url in (f"{server.url}/?api-version=preview#part", f"{server.url}/"):
        ChatClient(Endpoint("m", url)).ask("a", "b")
    assert paths == ["/v1/chat/completions?api-version=preview", "/v1/chat/completions"]


def test_other_servers_do_not_get_openais_key(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-private")
    server.play(says("hello"))
    ask(server)
    sent = str(server.headers[0])
    assert KEY not in sent and "private" not in sent


@pytest.mark.parametrize("value", [None, " ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match="environment variable OPENAI_API_KEY"):
        ChatClient(Endpoint("gpt"))


def test_no_server_at_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    endpoint = Endpoint("m", f"http://127.0.0.1:{port}/v1", retries=1, backoff=0.01)
    with pytest.raises(UserError, match=r"no answer in 2 tries \(last: no connection"):
        ChatClient(endpoint).ask("a", "b")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:11434/v1",
        "ftp://me:secret@host/v1",
        "http://",
        "http:///v1",
        "http://[::1/v1",
        "http://me:secret@host:port/v1?secret",
        "http://host:99999/v1",
        "http://ho st/v1",
        "http://host/v1\n",
    ],
)
def test_no_url(url: str) -> None:
    with pytest.raises(UserError, match="is no base URL") as caught:
        Endpoint("m", url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"backoff": math.inf},
        {"timeout": math.inf},
        {"timeout": 0.0},
        {"requests_per_minute": 0.0},
        {"requests_per_minute": math.nan},
    ],
)
def test_numbers_that_cannot_be_used(numbers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(numbers)).replace("_", "-")):
        Endpoint("m", **numbers)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=re.escape("pip install 'vmfcoop[llm]'")):
        ChatClient(Endpoint("m", "http://127.0.0.1:1/v1"))


def test_public_url_has_no_credentials() -> None:
    endpoint = Endpoint("m", "https://me:secret@host:8000/v1/?api-key=secret#secret")
    assert endpoint.public_url == "https://host:8000/v1"


@pytest.mark.parametrize(
    ("refused", "used"),
    [
        ((), "json_schema"),
        (("json_schema",), "json_object"),
        (("json_schema", "json_object"), "text"),
    ],
)
def test_formats_fall_back_and_are_remembered(server: Script, refused: tuple[str, ...], used: str) -> None:
    server.play(without(*refused))
    said: list[str] = []
    asking = client(server, said=said)
    question = 'Write 1 sentence of the class "cyst"'
    assert asking.ask("a", question).response_format == used
    assert asking.ask("a", question).response_format == used
    assert asking.usage.requests == 2 + len(refused) == len(server.requests)
    assert len(said) == len(refused) and not asking.usage.faults


def test_a_400_that_is_not_about_the_format(server: Script) -> None:
    server.play(status(400, "messages: field required"))
    with pytest.raises(UserError, match="rejected by .*field required"):
        ask(server)
    assert len(server.requests) == 3


def test_token_limit_under_its_newer_name(server: Script) -> None:
    server.play(status(400, "Unsupported parameter: use 'max_completion_tokens' instead."), says("fine"))
    assert ask(server, max_tokens=80).text == "fine"
    assert "max_tokens" not in server.requests[1] and server.requests[1]["max_completion_tokens"] == 80
    assert server.requests[1]["response_format"]["type"] == "json_schema"


def test_a_setting_that_the_model_refuses(server: Script) -> None:
    server.play(status(400, "'temperature' does not support 0.2 with this model"))
    with pytest.raises(UserError, match="'temperature' does not support"):
        ask(server, temperature=0.2)
    assert len(server.requests) == 1


def test_a_token_limit_that_the_model_refuses(server: Script) -> None:
    server.play(status(400, "max_tokens is too large: this model supports at most 16384"))
    with pytest.raises(UserError, match="max_tokens is too large"):
        ask(server, max_tokens=100_000)
    server.play(status(400, "'max_tokens' is too large. The maximum context length is 4096 tokens"))
    with pytest.raises(ContextTooLongError, match="a smaller --max-tokens"):
        ask(server, max_tokens=100_000)
    assert len(server.requests) == 2


def test_kinds_of_answers(server: Script) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    server.play(
        says(None),
        says(None, message={"refusal": "I will not."}),
        says("half a", "length"),
        says("", "content_filter"),
        says(parts),
        status(400, "The response was filtered: content management policy"),
        raw(completion("x", model=None, usage=None)),
    )
    asking = client(server)
    empty, refused, cut, filtered, joined, policy, bare = (asking.ask("a", "b") for _ in range(7))
    assert empty.text == "" and not empty.refused
    assert refused.refused and filtered.refused and policy.refused
    assert cut.cut and joined.text == "one two" and bare.model == ""


def test_tokens_are_counted_or_estimated(server: Script) -> None:
    server.play(says("x" * 40), says("x" * 40, usage=None), says("x" * 40, usage={"total_tokens": "many"}))
    asking = client(server)
    asking.ask("a" * 8, "b" * 8)
    assert (asking.usage.prompt_tokens, asking.usage.completion_tokens) == (100, 50)
    assert not asking.usage.estimated
    asking.ask("a" * 8, "b" * 8)
    asking.ask("a" * 8, "b" * 8)
    assert (asking.usage.prompt_tokens, asking.usage.completion_tokens) == (108, 70)
    assert asking.usage.estimated


def test_budget_of_requests_counts_failures(server: Script) -> None:
    server.play(status(500))
    with pytest.raises(BudgetSpentError, match="2 requests"):
        ask(server, budget=Budget(requests=2), retries=9)
    assert len(server.requests) == 2


def test_budget_of_tokens(server: Script) -> None:
    server.play(says("hello"))
    asking = client(server, Budget(tokens=320))
    asking.ask("a", "b")
    asking.ask("a", "b")
    with pytest.raises(BudgetSpentError, match=r"320 tokens .*\(300 used\)"):
        asking.ask("a" * 40, "b" * 60)
    assert len(server.requests) == 2


def test_requests_per_minute(server: Script) -> None:
    server.play(says("hello"))
    asking = client(server, requests_per_minute=300)
    start = time.monotonic()
    for _ in range(3):
        asking.ask("a", "b")
    assert time.monotonic() - start >= 0.4 and min(server.pauses) > 0.15


def test_seeds_differ_between_questions(server: Script) -> None:
    server.play(says("hello"))
    asking = client(server, seed=3)
    asking.ask("a", "b", 0)
    asking.ask("a", "b", 5)
    assert [body["seed"] for body in server.requests] == [3, 8]
