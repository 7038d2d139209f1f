from __future__ import annotations

import json

import pytest

from vmfcoop.descriptions.answers import is_refusal, parse_sentences, without_reasoning

A, B = "A dark round mass.", 'A bright rim, "halo" and all.'
GOOD = json.dumps({"sentences": [A, B]})


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        json.dumps([A, B]),
        json.dumps({"class": "cyst", "sentences": [A, B]}),
        json.dumps({"descriptions": {"cyst": [A, B]}}),
        json.dumps([{"id": 1, "text": A}, {"id": 2, "text": B}]),
        json.dumps({"sentences": [{"sentence": A}, {"sentence": B}]}),
        json.dumps({"1": A, "2": B}),
        json.dumps({"sentences": [f"1. {A}", f"2) {B}"]}),
        f"```json\n{GOOD}\n```",
        f"Sure, here they are:\n\n```\n{GOOD}\n```\nAnything else?",
        f"```json\n{GOOD}",
        f"Of course! {GOOD} I hope this helps.",
        GOOD.replace("]}", ",],}"),
        GOOD.replace("dark round", "dark\nround"),
        f"<think>Maybe 1. a cyst?\n- no\n{{}}</think>\n{GOOD}",
        f"a long thought without a beginning</think>{GOOD}",
        f"<THINKING>hm</THINKING>{GOOD}",
        f"1. {A}\n2. {B}",
        f"1) {A}\n\n2) {B}\n",
        f"Here are 2 sentences:\n\n- {A}\n- {B}\n\nLet me know!",
        f"* {A}\n* {B}",
        f"• {A}\n• {B}",
        f"1. **{A}**\n2. *{B}*",
        f'1. "{A}"\n2. {B}',
        f"“{A}”\n‘{B}’",
        "1. A dark\n   round mass.\n2. " + B,
        f"{A}\n{B}",
        f"{A} {B}",
        f"```\n1. {A}\n2. {B}\n```",
        f"{json.dumps({'sentence': A})}\n{json.dumps({'sentence': B})}",
        f"{json.dumps({'sentences': [A]})}\n{json.dumps({'sentences': [B]})}",
        json.dumps({"sentences": json.dumps([A, B])}),
        json.dumps({"sentences": f"1. {A}\n2. {B}"}),
        json.dumps({"sentences": [json.dumps({"sentence": A}), B]}),
        json.dumps({"1": A, "2": B, "3": "cut off"}, indent=1)[:-6],
    ],
)
def test_forms(answer: str) -> None:
    assert parse_sentences(answer) == [A, B]


@pytest.mark.parametrize("answer", ["", "  \n", "<think>still thinking", "{}", "[]", '{"sentences": []}'])
def test_nothing(answer: str) -> None:
    assert parse_sentences(answer) == []


@pytest.mark.parametrize(
    "answer",
    [
        str({"sentences": [A]}),
        f"| no. | sentence |\n|---|---|\n| 1 | {A} |",
    ],
)
def test_debris_is_no_sentence(answer: str) -> None:
    assert parse_sentences(answer) == []


def test_deeply_nested_json_is_no_crash() -> None:
    assert parse_sentences("[" * 400 + json.dumps(A) + "]" * 400) == [A]


def test_brackets_in_a_list_are_no_json() -> None:
    lines = f'1. {A} [arrow]\n2. A rim, "halo", of [white] matter.'
    assert parse_sentences(lines) == [f"{A} [arrow]", 'A rim, "halo", of [white] matter.']


def test_half_a_pair_of_surrogates_goes() -> None:
    assert parse_sentences('["A dark \\ud83d mass."]') == ["A dark mass."]


@pytest.mark.parametrize(
    "answer",
    [
        GOOD[:-6],
        '{"sentences": ["A dark round mass.", "A bri',
        '```json\n{"sentences": ["A dark round mass.", "A bri',
        "1. A dark round mass.\n2. A bri",
    ],
)
def test_cut_answers_lose_their_last_sentence(answer: str) -> None:
    assert parse_sentences(answer, cut=True) == [A]


def test_json_that_breaks_off_between_sentences() -> None:
    assert parse_sentences(json.dumps({"sentences": [A, B, "x"]})[:-5], cut=True) == [A, B]


def test_control_signs_and_spaces_go() -> None:
    assert parse_sentences(json.dumps(["A\tdark \x07 round\u00a0mass.\n"])) == ["A dark round mass."]


def test_a_number_or_star_inside_stays() -> None:
    texts = ["1.5 cm nodule, T2* bright.", "Grade 2. It has a rim."]
    assert parse_sentences(json.dumps(texts)) == texts


@pytest.mark.parametrize("unit", ["[", "{", "*a ", '"a', "<think>", "```\n", "1. ", '["', '\\"'])
def test_monstrous_answers_are_no_crash(unit: str) -> None:
    assert all(len(text) <= 2000 for text in parse_sentences(unit * 30_000))
    assert all(len(text) <= 2000 for text in parse_sentences('["' + unit * 10_000))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m unable to provide medical descriptions.",
        "Sorry, no.",
        "I cannot assist with this request.",
        "As an AI language model, I do not see images.",
        "I apologize, but this is medical.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


def test_no_refusals() -> None:
    assert not is_refusal("In this scan the mass cannot be seen.")
    assert not is_refusal("A sorry excuse for a margin.")


def test_reasoning() -> None:
    assert without_reasoning("<think>a</think>b<think>c</think>d") == "bd"
