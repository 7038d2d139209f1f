"""The catalogue of published backbones: its facts against the libraries', and how it is shown."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from pydantic import ValidationError
from rich.console import Console, RenderableType
from torchvision.models import resnet50
from transformers import BertConfig, BertModel, SiglipConfig, SiglipModel, SwinConfig, SwinModel

from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.catalogue import PublishedBackbone, catalogue, listing
from vmfcoop.backbones.open_clip import KNOWN_TEXT_TOWERS
from vmfcoop.reporting.backbones import backbone_card, backbones_table

ENTRIES = list(catalogue().values())
# Published CLIPs of OpenAI's shape that name no architecture: their own configuration comes with them.
OPENAI_SHAPES = {
    "monet": "ViT-L-14",
    "pathgen-clip-l-14": "ViT-L-14-336",
    "plip": "ViT-B-32",
    "pmc-vit-l-14": "ViT-L-14",
    "pubmedclip": "ViT-B-32",
    "quiltnet-b-16": "ViT-B-16",
    "quiltnet-b-32": "ViT-B-32",
    "whylesionclip": "ViT-L-14",
    "whyxrayclip": "ViT-L-14",
}
OPEN_CLIP_NAMED = [e for e in ENTRIES if e.model or e.architecture or e.key in OPENAI_SHAPES]
HUB = "https://huggingface.co/"


def by_key(entries: list[PublishedBackbone]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.key)


def rendered(what: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_backbones_of_the_papers_have_keys() -> None:
    asked = "phantom biomedclip bmc-clip medsiglip pmc-clip medclip-vit medclip-resnet pubmedclip plip"
    quilt = "quiltnet-b-32 quiltnet-b-16 quiltnet-b-16-pmb unimed-clip-b-16 unimed-clip-l-14"
    general = "clip-vit-b-16 clip-vit-b-32 clip-vit-l-14 siglip-vit-b-16"
    assert set(f"{asked} {quilt} {general}".split()) <= set(catalogue())


def test_it_is_read_once() -> None:
    assert catalogue() is catalogue()


@by_key(ENTRIES)
def test_an_entry_says_where_it_is_and_what_it_may_be_used_for(entry: PublishedBackbone) -> None:
    assert entry.licence and entry.limits.endswith(".")
    assert entry.source.startswith("https://") or entry.embedded
    if entry.repository and entry.source.startswith(HUB):
        assert entry.source == HUB + entry.repository
    if entry.gated:
        assert entry.terms is not None
    for url in entry.urls:
        assert Path(url).name in entry.files or url.endswith(".zip")
    numbers = (entry.parameters, entry.resolution, entry.context_length, entry.dim)
    assert all(number is None or number > 0 for number in numbers)


def test_entries_of_one_kind_of_image_stand_together() -> None:
    domains = [entry.domain for entry in ENTRIES]
    assert [d for d, before in zip(domains[1:], domains, strict=False) if d != before] == list(
        dict.fromkeys(domains)
    )[1:]


def test_the_embedded_one_is_as_stated() -> None:
    entry, encoder = catalogue()["phantom"], load_backbone("phantom", "cpu")
    assert (encoder.dim, encoder.context_length) == (entry.dim, entry.context_length)
    assert encoder.image_size == (entry.resolution, entry.resolution)
    assert Path(entry.source).is_file() or Path(__file__).parents[2].joinpath(entry.source).is_file()


def open_clip_config(entry: PublishedBackbone, bert: Path) -> dict[str, Any]:
    """The towers of an entry as open_clip describes them, with a local text tower."""
    name = entry.architecture or OPENAI_SHAPES.get(entry.key) or str(entry.model).partition("/")[0]
    config: dict[str, Any] = open_clip.get_model_config(name)
    if entry.text_cfg is not None:
        (bert / "config.json").write_text(json.dumps(KNOWN_TEXT_TOWERS[str(entry.text_cfg["hf_model_name"])]))
        config["text_cfg"] = {**entry.text_cfg, "hf_model_name": str(bert), "hf_model_pretrained": False}
    return {name: value for name, value in config.items() if name != "custom_text"}


@by_key(OPEN_CLIP_NAMED)
def test_numbers_are_those_of_open_clips_own_towers(entry: PublishedBackbone, tmp_path: Path) -> None:
    config = open_clip_config(entry, tmp_path)
    with torch.device("meta"):
        model = CustomTextCLIP(**config)
    assert millions_of(model) == pytest.approx(entry.parameters, abs=0.051)
    assert config["embed_dim"] == entry.dim
    assert config["vision_cfg"]["image_size"] == entry.resolution
    assert config["text_cfg"]["context_length"] == entry.context_length


def millions_of(*towers: torch.nn.Module) -> float:
    return sum(weight.numel() for tower in towers for weight in tower.parameters()) / 1e6


def test_numbers_of_the_other_towers_are_those_of_their_libraries() -> None:
    so400m = {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
    }
    text = so400m | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": 1152}
    vision = so400m | {"image_size": 448, "patch_size": 14}
    swin = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    project = partial(torch.nn.Linear, bias=False)
    with torch.device("meta"):
        pubmedbert, clinical_bert = (BertModel(BertConfig(vocab_size=n)) for n in (30522, 28996))
        text_head = project(768, 512)
        counted = {
            "biomedclip": millions_of(
                timm.create_model("vit_base_patch16_224", num_classes=0),
                BertModel(BertConfig(), add_pooling_layer=False),
                *(project(768, 512), project(768, 640), project(640, 512)),
            ),
            "medsiglip": millions_of(SiglipModel(SiglipConfig(text_config=text, vision_config=vision))),
            "pmc-clip": millions_of(ModifiedResNet([3, 4, 6, 3], 768, 8), pubmedbert, project(768, 768)),
            "medclip-vit": millions_of(SwinModel(swin), project(768, 512), clinical_bert, text_head),
            "medclip-resnet": millions_of(resnet50(num_classes=512), clinical_bert, text_head),
        }
    assert {key: catalogue()[key].parameters for key in counted} == pytest.approx(counted, abs=0.051)


@by_key([entry for entry in ENTRIES if entry.model])
def test_a_name_of_open_clips_list_is_in_it(entry: PublishedBackbone) -> None:
    assert tuple(str(entry.model).split("/")) in open_clip.list_pretrained()


FACTS = {"key": "a", "family": "open_clip", "domain": "radiology", "title": "A", "licence": "MIT"} | {
    "limits": "None.",
    "source": "https://a.org",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"repository": "a/b", "model": "ViT-B-16/openai"},
        {"repository": "a/b", "embedded": True},
        {"repository": "https://huggingface.co/a/b"},
        {"repository": "a/b", "family": "blip"},
        {"repository": "a/b", "domain": "astronomy"},
        {"urls": ["https://a.org/w.pth"]},
        {"urls": ["http://a.org/w.pth"], "files": ["w.pth"]},
        {"repository": "a/b", "files": ["w.pth"]},
        {"repository": "a/b", "checkpoint": "w.pt"},
        {"repository": "a/b", "text_cfg": {"context_length": 256}},
        {"repository": "a/b", "resolution": "large"},
        {"repository": "a/b", "license": "MIT"},
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    PublishedBackbone(**FACTS, repository="a/b")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        PublishedBackbone(**(FACTS | wrong))


def test_rows_are_json_with_every_field_and_whether_it_is_here() -> None:
    rows = json.loads(json.dumps(listing(lambda key: key == "phantom")))
    assert [row["key"] for row in rows] == list(catalogue())
    assert [row["key"] for row in rows if row["here"]] == ["phantom"]
    for row, entry in zip(rows, ENTRIES, strict=True):
        assert set(row) == {*PublishedBackbone.model_fields, "here"}
        assert PublishedBackbone.model_validate({k: v for k, v in row.items() if k != "here"}) == entry


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_no_word(width: int) -> None:
    lines = rendered(backbones_table(listing(lambda key: key == "phantom")), width)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    for entry in ENTRIES:
        shown = f"{entry.key} {entry.title} {entry.licence}. {entry.limits}"
        assert set(shown.split()) <= words
        assert entry.source.removeprefix("https://") in words
    numbers = {
        line.split()[0]: line.split()[1:] for line in lines if not line.startswith(" ") and line.strip()
    }
    assert numbers["biomedclip"] == ["196", "M", "224", "256", "512", "no"]
    assert numbers["rclip"] == ["-", "-", "-", "-", "no"]
    assert numbers["phantom"] == ["1.9", "M", "160", "64", "128", "yes"]


@by_key(ENTRIES)
def test_a_card_has_every_fact_and_whole_addresses(entry: PublishedBackbone) -> None:
    lines = rendered(backbone_card(entry), 80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for fact in (entry.title, f"{entry.licence}. {entry.limits}", entry.citation, entry.note):
        assert fact in text
    addresses = [entry.source, entry.terms, entry.repository, entry.tokenizer, entry.model]
    for address in filter(None, addresses):
        assert any(address in line for line in lines)
    assert all(any(Path(url).name in line for line in lines) for url in entry.urls)
    assert (f"fetch {entry.key} --to FOLDER" in text) != entry.embedded
    assert ("HF_TOKEN" in text) == entry.gated


def test_what_the_catalogue_does_not_have_is_said_to_be_at_the_source() -> None:
    lines = rendered(backbone_card(catalogue()["rclip"]), 80)
    assert [line.split() for line in lines if line.startswith("weights")] == [["weights", "see", "source"]]
