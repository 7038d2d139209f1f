"""What the jobs of a benchmark work on: datasets, descriptions and backbones, loaded once a process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from vmfcoop.backbones import load_backbone
from vmfcoop.benchmark.recipe import Recipe
from vmfcoop.benchmark.results import Job, ProtocolName, Source
from vmfcoop.data import Dataset, base_novel_classes, restrict_classes, sample_support
from vmfcoop.descriptions import DescriptionBank
from vmfcoop.errors import UserError
from vmfcoop.evaluation.protocols import Result, base_to_novel, cross_dataset, few_shot
from vmfcoop.features import CachedEncoder, content_hash
from vmfcoop.loading import DECODERS
from vmfcoop.memory import keep_freed_memory
from vmfcoop.methods import make_method
from vmfcoop.pipeline import draw_phantoms
from vmfcoop.progress import ProgressReport, no_progress


@dataclass(frozen=True)
class LoadedData:
    """A dataset of the recipe, loaded.

    Attributes:
        name: of its entry.
        table: images with splits.
        bank: descriptions of its classes.
    """

    name: str
    table: Dataset
    bank: DescriptionBank

    @cached_property
    def source(self) -> Source:
        """What a job's hash takes of it; every image is read once for that."""
        with ThreadPoolExecutor(DECODERS) as pool:
            contents = pool.map(content_hash, self.table.paths)
            digest = sha256("\n".join([self.table.fingerprint, *contents]).encode())
        return Source(self.name, digest.hexdigest(), self.bank.fingerprint)

    def training_side(self, protocol: ProtocolName) -> Dataset:
        """The table that a protocol fits on: the base classes in base-to-novel, else all."""
        return self._base_classes if protocol == "base-to-novel" else self.table

    @cached_property
    def _base_classes(self) -> Dataset:
        return restrict_classes(self.table, base_novel_classes(len(self.table.class_names))[0])


class Materials:
    """Datasets, descriptions and one backbone at a time, loaded once a process.

    Args:
        recipe: names them.
        progress: told of drawing and encoding.
        workers: processes that read images; default as many as pay.
    """

    def __init__(
        self, recipe: Recipe, progress: ProgressReport = no_progress, workers: int | None = None
    ) -> None:
        self.recipe = recipe
        self.progress = progress
        self._workers = workers
        self._data: dict[str, LoadedData] = {}
        self._encoder: tuple[tuple[str, str], CachedEncoder] | None = None

    def encoder(self, spec: str, precision: str | None = None) -> CachedEncoder:
        """The backbone of a spec, in the recipe's precision or a given one; the one before makes room."""
        wanted = spec, precision or self.recipe.precision
        if self._encoder is None or self._encoder[0] != wanted:
            keep_freed_memory()
            self._encoder = None
            loaded = load_backbone(spec, self.recipe.device, wanted[1])
            stored = self.recipe.cache_precision
            cached = CachedEncoder(loaded, None, self.progress, stored, self._workers)
            self._encoder = wanted, cached
        return self._encoder[1]

    def forget_encoder(self) -> None:
        """Give the backbone's memory back."""
        self._encoder = None

    def data(self, name: str) -> LoadedData:
        """The dataset of a name."""
        if name not in self._data:
            entry = self.recipe.entry(name)
            draw_phantoms(entry.spec, self.progress)
            table = entry.dataset()
            self._data[name] = LoadedData(name, table, entry.bank(table.class_names))
        return self._data[name]

    def read_data(self) -> None:
        """Load every dataset and read every image once, for the fingerprints."""
        entries = self.recipe.data
        for done, entry in enumerate(entries):
            self.progress("read data", done, len(entries))
            _ = self.data(entry.name).source
        self.progress("read data", len(entries), len(entries))

    def results(self, jobs: Sequence[Job]) -> list[Result]:
        """Fit and test jobs that differ in their seeds alone.

        Raises:
            UserError: as the protocols.
        """
        first, seeds = jobs[0], [job.seed for job in jobs]
        # Of the job, since what "auto" comes to may differ between machines.
        encoder = self.encoder(first.backbone, first.precision)
        data = self.data(first.data.name)
        method = make_method(first.method, first.config)
        of_data = (encoder, data.table, data.bank)
        if first.protocol == "few-shot":
            return few_shot(*of_data, method, first.shots, seeds, first.views, first.split)
        if first.protocol == "base-to-novel":
            return base_to_novel(*of_data, method, seeds, first.shots, first.views, first.split)
        assert first.target is not None
        other = self.data(first.target.name)
        onto = (other.table, other.bank)
        return cross_dataset(*of_data, *onto, method, first.shots, seeds, first.views, first.split)

    def warm(self, jobs: Sequence[Job]) -> None:
        """Compute once, for the feature cache, what every process would else compute for itself."""
        for spec in dict.fromkeys(job.backbone for job in jobs):
            own = [job for job in jobs if job.backbone == spec]
            names = dict.fromkeys(s.name for job in own for s in (job.data, job.target) if s)
            methods = {(job.method, repr(job.config)): job for job in own}
            # What is at fault here is at fault in the jobs too, which say so; the others still run.
            for name in names:
                with suppress(UserError):
                    self._warm_data(spec, name, own)
            for job in methods.values():
                with suppress(UserError):
                    make_method(job.method, job.config).warm(self.encoder(spec))

    def _warm_data(self, spec: str, name: str, jobs: Sequence[Job]) -> None:
        data, encoder = self.data(name), self.encoder(spec)
        support, plain = set[Path](), {data.table.paths[row] for row in data.table.indices(self.recipe.split)}
        own = {
            (job.protocol == "base-to-novel", job.shots, job.seed): job
            for job in jobs
            if job.data.name == name
        }
        for job in own.values():
            table = data.training_side(job.protocol)
            chosen = sample_support(table, job.shots, job.seed)
            support |= {table.paths[row] for row in chosen.train}
            plain |= {table.paths[row] for row in chosen.val}
        if own:
            encoder.encode_image_files(sorted(support), self.recipe.views)
        encoder.encode_image_files(sorted(plain))
        texts = data.bank.for_classes(data.table.class_names)
        encoder.encode_texts(list(dict.fromkeys(text for group in texts for text in group)))
