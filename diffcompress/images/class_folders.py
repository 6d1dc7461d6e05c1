"""Labels by class subfolder, for class-conditional teachers."""

from __future__ import annotations

from pathlib import Path

from diffcompress.errors import UsageError
from diffcompress.images.columns import stated_labels
from diffcompress.images.folder import plain_name

# Of more class subfolders than this a note tells the first few and the last.
MOST_TOLD = 8


def class_folders(folder: Path, files: list[Path], num_classes: int) -> tuple[dict[str, int], str]:
    """Class by file name: that of its subfolder; and a note of which subfolder is which class."""
    parts = {path.relative_to(folder).as_posix(): path.relative_to(folder).parts for path in files}
    labels = _label_by_class(folder, sorted({part[0] for part in parts.values() if len(part) > 1}), num_classes)
    if stray := [name for name, part in parts.items() if len(part) < 2]:
        raise UsageError(
            f"{folder / stray[0]} lies in no class subfolder, and the teacher is class-conditional", "move it into one"
        )
    told = [f"{name} = {label}" for name, label in sorted(labels.items(), key=lambda item: item[1])]
    if len(told) > MOST_TOLD:
        told = [*told[: MOST_TOLD - 2], "...", told[-1]]
    return {
        plain_name(name): labels[part[0]] for name, part in parts.items()
    }, f"labels by class subfolder: {', '.join(told)}"


def _label_by_class(folder: Path, classes: list[str], num_classes: int) -> dict[str, int]:
    """Names that are all integers state the labels; others stand for them in order, if there is one for each."""
    if stated := stated_labels(classes):
        labels = dict(zip(classes, stated, strict=True))
        for name, label in labels.items():
            if not 0 <= label < num_classes:
                raise UsageError(
                    f"class subfolder '{folder / name}' states label {label}, the teacher's go from 0 to "
                    f"{num_classes - 1}",
                    "give images of the teacher's own classes",
                )
        return labels
    if len(classes) != num_classes:
        raise UsageError(
            f"'{folder}' has {len(classes)} class subfolders, the teacher has {num_classes} classes",
            "make one for each class, which sort by label, or name each by its label: integer names state labels",
        )
    return {name: label for label, name in enumerate(classes)}
