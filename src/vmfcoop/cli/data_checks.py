"""The commands ``data verify`` and ``data import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import (
    SOME_FAILED,
    ClassName,
    Groups,
    Json,
    SplitSeed,
    TestFraction,
    ValFraction,
    err,
    out,
    pairs,
    progress_shown,
)
from vmfcoop.errors import UserError


def verify(
    data: Annotated[
        str,
        typer.Argument(help="A key, a folder, a split_*.json or a CSV, as fit takes it.", show_default=False),
    ],
    pairs_file: Annotated[
        Path | None, typer.Option("--out", help="CSV to write with every pair of twins.")
    ] = None,
    groups_file: Annotated[
        Path | None,
        typer.Option("--write-groups", help="CSV to write for fit --groups, with twins in one group."),
    ] = None,
    groups: Groups = None,
    class_name: ClassName = None,
    test_fraction: TestFraction = 0.3,
    val_fraction: ValFraction = 0.2,
    split_seed: SplitSeed = 0,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which two images are near twins.", min=0, max=1)
    ] = 0.88,
    flips: Annotated[
        bool, typer.Option("--flips", help="Find flipped copies and those turned by 90 degrees too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a dataset: unreadable files, copies, test images with a twin in train, counts that differ.

    Exits with 1 if something makes test figures doubtful.

    Example: [bold]vmfcoop data verify lesions/ --out pairs.csv --write-groups groups.csv[/]
    """
    from vmfcoop.data.verify import verify as verify_dataset
    from vmfcoop.data.verify import write_groups, write_pairs
    from vmfcoop.reporting.verification import verification_report

    for path in (pairs_file, groups_file):
        if path is not None and path.is_dir():
            raise UserError(f"'{path}' is a folder; name a CSV file to write.")
    with progress_shown() as progress:
        found = verify_dataset(
            data,
            groups=groups,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            seed=split_seed,
            class_names=pairs(class_name, "--class-name"),
            threshold=threshold,
            flips=flips,
            progress=progress,
        )
    if as_json:
        out.print_json(data=found.as_json())
    else:
        out.print(verification_report(found))
    for path, write, what in (
        (pairs_file, write_pairs, "pairs of twins"),
        (groups_file, write_groups, "groups"),
    ):
        if path is not None:
            count = write(found, path)
            err.print(f"Wrote {path} ({what}: {count:,})", markup=False, highlight=False, soft_wrap=True)
    if not found.is_clean:
        raise typer.Exit(SOME_FAILED)


def import_dataset(
    key: Annotated[str, typer.Argument(help="Key of a dataset, see data list.", show_default=False)],
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            help="A folder of class folders (with split_*.json or train/val/test folders, or without), or a "
            "CSV path,label[,group][,split].",
            show_default=False,
        ),
    ],
    groups: Groups = None,
    class_name: ClassName = None,
    test_fraction: TestFraction = 0.3,
    val_fraction: ValFraction = 0.2,
    split_seed: SplitSeed = 0,
    resplit: Annotated[
        bool, typer.Option("--resplit", help="Leave the split of the source aside and make one.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Symbolic links to the source's files instead of copies.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out, and list, images that cannot be read.")
    ] = False,
    hash_groups: Annotated[
        bool,
        typer.Option("--hash-groups", help="Write hashes in place of the groups' names; no anonymisation."),
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is here already.")] = False,
    as_json: Json = False,
) -> None:
    """Put images that you have in the place of a known dataset, with a split that never changes again.

    Example: [bold]vmfcoop data import cmri --from slices/ --hash-groups[/]
    """
    from vmfcoop.data.importing import ImportRequest
    from vmfcoop.data.importing import import_dataset as run
    from vmfcoop.reporting.verification import import_report

    request = ImportRequest(
        key=key,
        source=source.expanduser(),
        groups=groups,
        class_names=pairs(class_name, "--class-name"),
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        seed=split_seed,
        resplit=resplit,
        link=link,
        skip_unreadable=skip_unreadable,
        hash_groups=hash_groups,
        replace=replace,
    )
    with progress_shown() as progress:
        imported = run(request, progress)
    if as_json:
        out.print_json(data=imported.as_json())
    else:
        out.print(import_report(imported), soft_wrap=True)
