from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmfcoop.descriptions import (
    DescriptionBank,
    load_descriptions,
    packaged_descriptions,
    template_bank,
)
from vmfcoop.descriptions.bank import read_texts
from vmfcoop.errors import UserError

TEXTS = {"glioma tumor": ["a glioma.", " a mass. "], "normal z-line": ["a line.", "a border."]}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "bank.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_wrapped_form(tmp_path: Path) -> None:
    path = written(tmp_path, {"source": "GPT-4", "dataset": "X", "descriptions": TEXTS})
    bank = load_descriptions(path)
    assert bank.descriptions["glioma tumor"] == ("a glioma.", "a mass.")
    assert bank.meta == {"source": "GPT-4", "dataset": "X"}
    assert bank.source == str(path)


def test_plain_form_has_the_same_fingerprint(tmp_path: Path) -> None:
    wrapped = load_descriptions(written(tmp_path, {"source": "GPT-4", "descriptions": TEXTS}))
    plain = load_descriptions(written(tmp_path, dict(reversed(TEXTS.items()))))
    assert plain.fingerprint == wrapped.fingerprint and plain.meta == {}
    other = load_descriptions(written(tmp_path, {**TEXTS, "cyst": ["a.", "b."]}))
    assert other.fingerprint != plain.fingerprint


def test_a_class_may_be_called_descriptions(tmp_path: Path) -> None:
    bank = load_descriptions(written(tmp_path, {"descriptions": ["a.", "b."]}))
    assert bank.descriptions == {"descriptions": ("a.", "b.")}


def test_classes_are_matched_whatever_their_spelling(tmp_path: Path) -> None:
    bank = load_descriptions(written(tmp_path, TEXTS))
    z_line, glioma = bank.for_classes(["Normal_Z line", "GliomaTumor"])
    assert z_line == ("a line.", "a border.") and glioma[0] == "a glioma."


def test_missing_class_names_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, TEXTS)
    with pytest.raises(UserError, match=r"bank\.json has no descriptions of 'gliomas'.*'glioma tumor'"):
        load_descriptions(path).for_classes(["glioma tumor", "gliomas"])
    with pytest.raises(UserError, match="nearest is"):
        load_descriptions(path).for_classes(["!!"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ([1], "is no description file"),
        ({"a": "text"}, "is no description file"),
        ({"a": ["text", 1]}, "is no description file"),
        ({"descriptions": {"a": None}}, "is no description file"),
        ({}, "no classes"),
        ({"descriptions": {}}, "no classes"),
        ({"a": ["text"]}, "1 different descriptions of 'a'"),
        ({"a": ["text", " text"]}, "1 different descriptions of 'a'"),
        ({"a": []}, "0 different descriptions of 'a'"),
        ({"a": ["text", " "]}, "empty description of 'a'"),
        ({"a b": ["x", "y"], "A_b": ["x", "y"]}, "both 'a b' and 'A_b'"),
        ('{"a": ["x", "y"], "a": ["x", "z"]}', "has 'a' twice"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: object, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=says) as caught:
        load_descriptions(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        load_descriptions(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_descriptions(tmp_path)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bank\.json is not UTF-8 text"):
        load_descriptions(path)


def test_templates() -> None:
    bank = template_bank(["drusen", "normal retina"])
    drusen, normal = bank.for_classes(["drusen", "normal retina"])
    assert 12 <= len(set(drusen)) == len(drusen) <= 16
    assert all("normal retina" in text and "{" not in text for text in normal)
    assert isinstance(bank, DescriptionBank) and bank.source == "templates"


@pytest.mark.parametrize(("name", "n_classes"), [("BTMRI", 4), ("BUSI", 3), ("DermaMNIST", 7)])
def test_shared_descriptions(name: str, n_classes: int) -> None:
    folder = os.environ.get("VMFCOOP_TEST_DATA")
    if folder is None:
        pytest.skip("VMFCOOP_TEST_DATA is not set")
    bank = load_descriptions(Path(folder) / "descriptions" / f"{name}.json")
    folders = sorted(path.name for path in (Path(folder) / "data" / name).iterdir() if path.is_dir())
    assert [len(texts) for texts in bank.for_classes(folders)] == [50] * n_classes


TXT = """\ufeff
# Glioma tumor
- A dark mass.
* A bright rim.
1. An irregular border.
2) A wide halo of swelling.

normal brain:
1.5 cm of cortex at every place.
No mass on this scan: the midline is straight.
(3) Even ventricles.
## kidney: left
\u2022 One.
Two.
"""


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "bank.TXT"
    path.write_text(TXT, encoding="utf-8")
    bank = load_descriptions(path)
    assert bank.descriptions == {
        "Glioma tumor": ("A dark mass.", "A bright rim.", "An irregular border.", "A wide halo of swelling."),
        "normal brain": (
            "1.5 cm of cortex at every place.",
            "No mass on this scan: the midline is straight.",
            "Even ventricles.",
        ),
        "kidney: left": ("One.", "Two."),
    }
    assert bank.source == str(path) and bank.meta == {}


def test_text_file_with_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "bank.txt"
    path.write_bytes(b"# a\r\nOne.\r\nTwo.\r\n")
    assert load_descriptions(path).descriptions == {"a": ("One.", "Two.")}
    path.write_bytes(b"\xef\xbb\xbf# a\tcyst \r\n-\tOne.\r\n\t2)\tTwo.\r\n")
    assert load_descriptions(path).descriptions == {"a cyst": ("One.", "Two.")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("A mass.\n# a\nx\ny\n", r"line 1: a text comes before the first class"),
        ("\n#\nx\n", r"line 2: the class has no name"),
        ("# a\nx\ny\n:\nz\n", r"line 4: the class has no name"),
        ("# a\nx\ny\n\na:\nz\n", r"line 5: 'a' began on line 1 already"),
        ("# a\nx\ny\n# b\n\n# c\nz\nw\n", r"line 4: 'b' has no texts"),
        ("# a\nx\n", "1 different descriptions of 'a'"),
        ("# a b\nx\ny\n# A_b\nx\ny\n", "both 'a b' and 'A_b'"),
        ("", "no classes"),
    ],
)
def test_errors_of_text_files_name_the_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bank.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        load_descriptions(path)
    assert str(path) in str(caught.value)


def test_text_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "bank.txt"
    path.write_text("# a\nx\ny\n", encoding="utf-16")
    with pytest.raises(UserError, match="is not UTF-8"):
        load_descriptions(path)


def test_packaged_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = packaged_descriptions("phantom-fundus")
    assert packaged is not None
    for spec in ("phantom-fundus", Path("phantom-fundus")):
        found = load_descriptions(spec)
        assert (found.fingerprint, found.source) == (packaged.fingerprint, packaged.source)
    with pytest.raises(UserError, match=r"phantom-fundos does not exist; did you mean .*'phantom-fundus'"):
        load_descriptions("phantom-fundos")


def test_a_file_goes_before_a_packaged_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phantom-fundus").write_text(json.dumps(TEXTS))
    assert set(load_descriptions("phantom-fundus").descriptions) == set(TEXTS)


def test_a_folder_does_not_hide_a_packaged_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phantom-fundus").mkdir()
    assert "glaucoma" in load_descriptions("phantom-fundus").descriptions


def test_classes_match_however_their_accents_are_stored(tmp_path: Path) -> None:
    bank = load_descriptions(written(tmp_path, {"M\u00fcll": ["a.", "b."]}))
    assert bank.for_classes(["Mu\u0308ll"]) == [("a.", "b.")]


def test_texts_are_read_with_their_faults(tmp_path: Path) -> None:
    found = read_texts(written(tmp_path, {"source": "x", "descriptions": {"a": ["", " b "], "c": []}}))
    assert found.descriptions == {"a": ("", "b"), "c": ()} and found.meta == {"source": "x"}
    with pytest.raises(UserError, match="both 'a b' and 'A_b'"):
        read_texts(written(tmp_path, {"a b": [], "A_b": []}))
