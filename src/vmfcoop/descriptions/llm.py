"""A client of any OpenAI-compatible chat endpoint that puts up with how such servers behave."""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from vmfcoop.errors import UserError

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause is left alone, and the user told."""

LONGEST_BACKOFF = 60.0
LONGEST_TIMEOUT = 86_400.0
ResponseFormat = Literal["json_schema", "json_object", "text"]
FORMATS: tuple[ResponseFormat, ...] = ("json_schema", "json_object", "text")
"""Ways to ask for JSON, from the strictest; a server that refuses one gets the next."""

_SCHEMA = {
    "type": "object",
    "properties": {"sentences": {"type": "array", "items": {"type": "string"}}},
    "required": ["sentences"],
    "additionalProperties": False,
}
_RESPONSE_FORMATS: dict[ResponseFormat, dict[str, Any]] = {
    "json_schema": {
        "type": "json_schema",
        "json_schema": {"name": "descriptions", "strict": True, "schema": _SCHEMA},
    },
    "json_object": {"type": "json_object"},
}
_CONTEXT = re.compile(
    r"context.?(length|window|size)|maximum context|too many (input )?tokens|(prompt|input).{0,20}too long"
    r"|range of input length",
    re.I,
)
_NO_MODEL = re.compile(r"model.{0,80}(not exist|not found|unknown|unavailable)|(unknown|invalid) model", re.I)
_NO_CREDIT = re.compile(
    r"insufficient.{0,3}(quota|balance|credit|funds)|balance is too low|arrearage|free.?tier.?only", re.I
)
_FILTERED = re.compile(r"content.?filter|content management policy|data.?inspection|content.?policy", re.I)
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, and how to talk to it.

    Attributes:
        model: name of the model as the server knows it.
        base_url: address up to and with the version, ``http://localhost:11434/v1``.
        key_variable: environment variable that holds the API key. None: ``OPENAI_API_KEY`` for OpenAI's own
            address, and no key for any other, so that a key never goes to a server it is not for.
        temperature: of the sampling; None: the server's own.
        seed: of the sampling, where the server has it; the n-th question of a bank is asked with seed + n.
        max_tokens: most tokens of one answer; None: the server's own.
        timeout: seconds without a byte after which a request counts as lost.
        retries: how often a request is repeated after a passing fault.
        backoff: seconds before the first repetition; doubled each time, up to a minute, with jitter.
        requests_per_minute: most requests a minute; None: no limit.

    Raises:
        UserError: the base URL is no URL, or a number is not finite or too small or large to be used.
    """

    model: str
    base_url: str = OPENAI_URL
    key_variable: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    requests_per_minute: float | None = None

    def __post_init__(self) -> None:
        if not _is_url(self.base_url):
            shown = re.sub(r"(?s).*@|[?#].*", "", self.base_url)
            raise UserError(f"'{shown}' is no base URL; write http://... or https://...")
        if not all(map(math.isfinite, (self.temperature or 0.0, self.backoff))):
            raise UserError("--temperature and --backoff must be finite numbers.")
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise UserError(f"--timeout must be above 0 and at most {LONGEST_TIMEOUT:.0f} seconds.")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise UserError(f"--requests-per-minute must be above 0, not {self.requests_per_minute:g}.")

    @property
    def public_url(self) -> str:
        """The base URL without what may be a credential: user, password, query and fragment."""
        parts = urlsplit(self.base_url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def api_key(self) -> str | None:
        """The key from the environment.

        Raises:
            UserError: the variable is not set, or holds what no key has.
        """
        own = self.public_url == OPENAI_URL
        variable = self.key_variable or (OPENAI_KEY_VARIABLE if own else None)
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise UserError(f"The environment variable {variable} is not set; put the API key into it.")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(f"The environment variable {variable} holds no API key (a space or other sign).")
        return key


@dataclass(frozen=True)
class Budget:
    """What may be spent. Requests count whether they succeed or not; None: no limit."""

    requests: int | None = None
    tokens: int | None = None


@dataclass
class Usage:
    """What was spent.

    Attributes:
        requests: sent, repetitions included.
        prompt_tokens: read by the model, as the server counts.
        completion_tokens: written by it.
        estimated: whether a server gave no count, so that one was made at four characters a token.
        faults: passing faults by kind.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        """What both spent."""
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
            self.faults + other.faults,
        )


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what the model said; empty if it said nothing.
        model: its name as the server gives it; empty if it does not.
        cut: whether it was stopped at its token limit.
        refused: whether the model or a filter of the server refused.
        response_format: how JSON was asked for.
    """

    text: str
    model: str
    cut: bool
    refused: bool
    response_format: ResponseFormat


class BudgetSpentError(Exception):
    """The next request would exceed the budget; the message says which."""


class ContextTooLongError(UserError):
    """The prompt is longer than the model's context."""


class _PassingError(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, kind: str, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait = wait


class ChatClient:
    """Asks a model, one request at a time.

    Args:
        endpoint: the server.
        budget: what may be spent.
        say: told in a sentence of what happens besides: pauses, formats that are not supported.

    Raises:
        UserError: the package ``openai`` is missing, or there is no key.
    """

    def __init__(
        self, endpoint: Endpoint, budget: Budget | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.endpoint = endpoint
        self.usage = Usage()
        self._budget = budget or Budget()
        self._say = say or (lambda sentence: None)
        self._format: ResponseFormat = FORMATS[0]
        self._limit_name = "max_tokens"
        self._last_start = -math.inf
        self._key = endpoint.api_key()
        self._openai = _import_openai()
        self._client = self._make_client()

    def _make_client(self) -> Any:
        url = urlsplit(self.endpoint.base_url)
        client = self._openai.OpenAI(
            api_key=self._key or "no-key-needed",
            base_url=urlunsplit(url._replace(query="", fragment="")),
            # As a part of the base URL it would end up before the path of a request.
            default_query=dict(parse_qsl(url.query)),
            timeout=self.endpoint.timeout,
            max_retries=0,
        )
        if self.endpoint.public_url != OPENAI_URL:
            # Taken from OPENAI_ORG_ID and OPENAI_PROJECT_ID: nothing that another server should learn.
            client.organization = client.project = None
        return client

    def ask(self, system: str, user: str, nth: int = 0) -> Answer:
        """Put a question; passing faults are waited out.

        Args:
            system: the system message.
            user: the user's message.
            nth: added to the seed, if there is one.

        Raises:
            UserError: the server refuses the key, does not know the model, has no credit left, rejects the
                request for good, asks for too long a pause, or fails at every try.
            ContextTooLongError: the prompt is too long for the model.
            BudgetSpentError: before a request that the budget does not allow.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        for attempt in range(self.endpoint.retries + 1):
            try:
                return self._adapting(messages, nth)
            except _PassingError as fault:
                self.usage.faults[fault.kind] += 1
                self._pause(fault, attempt)
        raise AssertionError("the last attempt returns or raises")

    def _adapting(self, messages: list[dict[str, str]], nth: int) -> Answer:
        """Send, and send again in the form that the server accepts."""
        while True:
            self._keep_to_limits(messages)
            try:
                chat = self._client.chat.completions.with_raw_response
                response = chat.create(**self._arguments(messages, nth))
            except self._openai.APITimeoutError as error:
                raise _PassingError("timeout", f"no answer within {self.endpoint.timeout:g} s") from error
            except self._openai.APIConnectionError as error:
                raise _PassingError("connection", _cause(error)) from error
            except self._openai.APIStatusError as error:
                rejected = self._rejected(error)
                if rejected is not None:
                    return rejected
                continue
            return self._read(response.text, messages)

    def _arguments(self, messages: list[dict[str, str]], nth: int) -> dict[str, Any]:
        seed = self.endpoint.seed
        settings = {
            "temperature": self.endpoint.temperature,
            "seed": None if seed is None else seed + nth,
            self._limit_name: self.endpoint.max_tokens,
            "response_format": _RESPONSE_FORMATS.get(self._format),
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return {"model": self.endpoint.model, "messages": messages, **given}

    def _keep_to_limits(self, messages: list[dict[str, str]]) -> None:
        """Stop at the budget, keep the pace, count the request."""
        spent, allowed = self.usage, self._budget
        if allowed.requests is not None and spent.requests >= allowed.requests:
            raise BudgetSpentError(f"the budget of {allowed.requests} requests is spent")
        expected = estimate_tokens(*(message["content"] for message in messages))
        if allowed.tokens is not None and spent.tokens + expected > allowed.tokens:
            raise BudgetSpentError(
                f"the budget of {allowed.tokens} tokens has no room for another request ({spent.tokens} used)"
            )
        if self.endpoint.requests_per_minute:
            due = self._last_start + 60 / self.endpoint.requests_per_minute
            time.sleep(max(0.0, due - time.monotonic()))
        self._last_start = time.monotonic()
        spent.requests += 1

    def _rejected(self, error: Any) -> Answer | None:
        """What to make of an error status: an answer (a filter's refusal), None (try in another form).

        Raises:
            _PassingError: worth another try as it is.
            UserError: for good.
        """
        status, message = error.status_code, self._message(error)
        code = str(getattr(error, "code", None) or "")
        where = f"{self.endpoint.public_url} ({status}: {message})"
        if _NO_CREDIT.search(f"{code} {message}") or status == 402:
            raise UserError(
                f"The account has no credit left at {where}; add some or use another server."
            ) from error
        if status in (408, 409, 425, 429) or status >= 500:
            wait = retry_after(error.response.headers)
            raise _PassingError(str(status), f"{status}: {message}", wait) from error
        if status in (401, 403):
            raise self._no_access(status, message) from error
        if status == 404 or _NO_MODEL.search(message):
            raise UserError(
                f"No model '{self.endpoint.model}' was found at {where}; check --model and --base-url."
            ) from error
        if _CONTEXT.search(f"{code} {message}") or status == 413:
            limit = "" if self.endpoint.max_tokens is None else ", a smaller --max-tokens"
            raise ContextTooLongError(
                f"The prompt is too long for '{self.endpoint.model}' at {where}; use a model with a longer "
                f"context{limit}, or fewer sentences with --n."
            ) from error
        if _FILTERED.search(f"{code} {message}"):
            return Answer("", "", False, True, self._format)
        if status in (400, 422) and self._change_form(message):
            return None
        raise UserError(f"The request was rejected by {where}; change it or use another server.") from error

    def _no_access(self, status: int, message: str) -> UserError:
        place = self.endpoint.public_url
        if self._key is None:
            return UserError(
                f"{place} wants an API key ({status}); name the environment variable that holds it with "
                "--api-key-env."
            )
        variable = self.endpoint.key_variable or OPENAI_KEY_VARIABLE
        if status == 403:
            return UserError(
                f"{place} does not let the API key of {variable} do this (403: {message}); use another key, "
                "model or server."
            )
        # What a server says of a wrong key may repeat a part of it.
        return UserError(f"{place} does not accept the API key of {variable} ({status}); correct it.")

    def _change_form(self, message: str) -> bool:
        """Whether there is another form of the request to try after a rejection."""
        if "max_completion_tokens" in message and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
            return self.endpoint.max_tokens is not None
        for setting in ("temperature", "seed", "max_tokens"):
            if getattr(self.endpoint, setting) is not None and setting in message:
                return False
        if self._format == FORMATS[-1]:
            return False
        refused = self._format
        self._format = FORMATS[FORMATS.index(refused) + 1]
        self._say(f"The server does not take response_format {refused}; {self._format} is tried.")
        return True

    def _read(self, body: str, messages: list[dict[str, str]]) -> Answer:
        body = self._without_key(body)
        try:
            content = _completion(body)
            choice = content["choices"][0]
            message = choice.get("message") or {}
            text, refusal, finish = (
                _text(message.get("content")),
                message.get("refusal"),
                choice.get("finish_reason"),
            )
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise _PassingError("invalid answer", f"an answer that is none: {_brief(body)}") from error
        self._count(content.get("usage"), messages, text)
        refused = bool(refusal) or finish == "content_filter"
        return Answer(
            text, _brief(str(content.get("model") or "")), finish == "length", refused, self._format
        )

    def _count(self, usage: Any, messages: list[dict[str, str]], text: str) -> None:
        counts = usage if isinstance(usage, dict) else {}
        read, written = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(written, int):
            self.usage.estimated = True
            read = estimate_tokens(*(message["content"] for message in messages))
            written = estimate_tokens(text)
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written

    def _pause(self, fault: _PassingError, attempt: int) -> None:
        """Wait as long as the server asks, or exponentially longer with jitter.

        Raises:
            UserError: it was the last attempt, or the server asks for a longer pause than is reasonable.
        """
        place = self.endpoint.public_url
        if attempt == self.endpoint.retries:
            tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
            raise UserError(
                f"{place} gave no answer in {tries} (last: {fault}); repeat the command later."
            ) from fault
        wait = fault.wait
        if wait is None:
            wait = min(LONGEST_BACKOFF, self.endpoint.backoff * 2**attempt) * random.uniform(0.5, 1.0)
        if wait > LONGEST_WAIT:
            raise UserError(
                f"{place} asks for a pause of {wait:.0f} s ({fault}); repeat the command after it."
            ) from fault
        self._say(f"{fault}; next try in {wait:.1f} s.")
        time.sleep(wait)

    def _message(self, error: Any) -> str:
        """What the server says of an error, on one line, without the key."""
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("error") or body.get("detail") or body
        text = body if isinstance(body, str) else json.dumps(body, default=str) if body else ""
        return _brief(self._without_key(text))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "Descriptions are generated through the package openai, which is not installed; "
            "pip install 'vmfcoop[llm]'."
        ) from error
    return openai


def estimate_tokens(*texts: str) -> int:
    """A rough count of tokens, four characters each.

    Example:
        >>> estimate_tokens("a dark round mass")
        5
    """
    return sum(math.ceil(len(text) / _CHARACTERS_PER_TOKEN) for text in texts)


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or a date).

    Example:
        >>> retry_after({"retry-after": "7"}), retry_after({"retry-after": "soon"})
        (7.0, None)
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)  # it drops line breaks, which no address has
        return (
            text.isprintable()
            and " " not in text
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        return False


def _completion(body: str) -> Any:
    """The decoded body; of a stream of events, which some gateways send unasked, what it adds up to."""
    lines = [line.removeprefix("data:").strip() for line in body.split("\n") if line.startswith("data:")]
    if not lines or body.lstrip().startswith("{"):
        return json.loads(body)
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    deltas = [choice.get("delta") or {} for choice in choices]
    whole = {key: value for event in events for key, value in event.items() if value is not None}
    message = {key: "".join(delta.get(key) or "" for delta in deltas) for key in ("content", "refusal")}
    finish = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    # Without a reason to finish the stream broke off: no answer.
    return {**whole, "choices": [{"message": message, "finish_reason": finish[0]}]}


def _text(content: Any) -> str:
    """The text of a message's content: a string, or the texts of its parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"no connection ({_brief(str(cause)) or type(cause).__name__})"


def _brief(text: str, length: int = 160) -> str:
    """A text on one line, without tags and signs that a terminal obeys, cut to a length."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    line = " ".join(re.sub(r"<[^>]*>", " ", printable).split())
    return line if len(line) <= length else line[: length - 3] + "..."
