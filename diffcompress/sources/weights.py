"""The weights of a teacher: which files they are, what their headers tell, and whether they fit the config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.records.fingerprints import of_model
from diffcompress.sources import single_file
from diffcompress.sources.linking import links_away, part_files
from diffcompress.sources.model_index import check_config, read_config
from diffcompress.sources.names import check_plain, plain_names
from diffcompress.sources.reference import Reference
from diffcompress.sources.state import StoredState
from diffcompress.sources.variants import FORMATS, VOCABULARIES, choose


class TeacherState(Mapping[str, Tensor]):
    """The denoiser's state dict as diffusers names it, read tensor by tensor from `files`.

    A checkpoint in its original layout is converted in memory; everything else stays on disk until it is asked for.
    Names are those of diffusers today, whatever wrapped or wrote the model. dtype: of most tensors as stored.
    """

    def __init__(self, stored: StoredState, converted: Mapping[str, Tensor] | None = None) -> None:
        self.files = stored.files
        self.dtype = stored.dtype or torch.float32
        self._tensors: Mapping[str, Tensor] = stored if converted is None else converted
        self._stored_names = plain_names(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._stored_names[name]]

    def anew(self, name: str) -> Tensor:
        """As `[name]`; what was read of its file leaves memory with the tensor."""
        tensors, name = self._tensors, self._stored_names[name]
        return tensors.anew(name) if isinstance(tensors, StoredState) else tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_names)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        tensors, name = self._tensors, self._stored_names[name]
        return tensors.shape(name) if isinstance(tensors, StoredState) else tuple(tensors[name].shape)

    def dtype_of(self, name: str) -> torch.dtype:
        """Of a tensor as it is stored."""
        tensors, name = self._tensors, self._stored_names[name]
        told = tensors.dtype_of(name) if isinstance(tensors, StoredState) else None
        return getattr(torch, told) if told else tensors[name].dtype  # integers are few and small

    def is_coarse(self, name: str) -> bool:
        """Whether the tensor is stored as integers, or in floating point of less than 16 bits."""
        tensors, name = self._tensors, self._stored_names[name]
        return isinstance(tensors, StoredState) and tensors.dtype_of(name) is None


def open_state(reference: Reference) -> TeacherState:
    """The denoiser's weights, downloaded first when they lie on the Hub.

    Raises UsageError when they are missing, truncated or pickled beyond a state dict, AccessError when the Hub refuses.
    """
    reference.fetch(reference.denoiser_part)
    stored = StoredState(weight_files(reference.denoiser))
    if reference.denoiser.is_file() and single_file.is_original(stored):
        single_file.stand_ins(stored, reference.config)
        return TeacherState(stored, single_file.convert(stored, reference.config))
    return TeacherState(stored)


def open_headers(reference: Reference) -> TeacherState | None:
    """Names, shapes and dtypes of the denoiser's tensors, read without the numbers.

    None for pickles on the Hub, and when nothing can be read offline. A checkpoint in its original layout
    has the names and shapes that its conversion will have. Raises UsageError as `open_state`.
    """
    repository, part = reference.repository, reference.denoiser_part
    if repository is not None and not repository.has_weights(part):
        if repository.files is not None and not repository.weights(part):
            raise _no_weights(f"{repository.id}/{part}", repository.names(part))
        headers = repository.headers(part)
        return TeacherState(StoredState([Path(name) for name in headers], headers.values())) if headers else None
    stored = StoredState(weight_files(reference.denoiser))
    original = reference.denoiser.is_file() and single_file.is_original(stored)
    return TeacherState(stored, single_file.stand_ins(stored, reference.config) if original else None)


def weight_files(place: Path) -> list[Path]:
    """The weight files of a diffusers model folder, one variant of them, or the single file itself."""
    if place.is_file():
        return [place]
    names = [file.name for file in place.iterdir() if file.is_file()] if place.is_dir() else []
    found = choose(names, str(place))
    if not found:
        raise _no_weights(str(place), names)
    return [place / name for name in found]


def _no_weights(where: str, names: Sequence[str]) -> UsageError:
    message = f"{where} holds no weights (diffusion_pytorch_model.safetensors)"
    for name in sorted(names):
        if kind := FORMATS.get(Path(name).suffix):
            return UsageError(f"{message}, but {name}, which is {kind}", "take the teacher's weights for PyTorch")
        if name.endswith(".safetensors"):
            return UsageError(f"{message}, but {name}", "if that is the whole denoiser, name it so")
    return UsageError(message, "check that the download is complete")


def check_state(state: TeacherState, denoiser: nn.Module) -> None:
    """Raise UsageError unless names, shapes and kinds of numbers are those of `denoiser`; reads no tensors."""
    expected = denoiser.state_dict()
    file, advice = state.files[0], "weights and config.json must come from the same model"
    check_plain(state, file)
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or extra:
        what = (
            f"{len(missing)} missing tensor(s), first {missing[0]}"
            if missing
            else f"{len(extra)} unknown tensor(s), first {extra[0]}"
        )
        raise UsageError(f"{file} does not fit its config: {what}", advice)
    for name, value in expected.items():
        if state.shape(name) != tuple(value.shape):
            raise UsageError(
                f"{file} does not fit its config: {name} has shape {list(state.shape(name))}, "
                f"the config says {list(value.shape)}",
                advice,
            )
        if value.is_floating_point() and state.is_coarse(name):
            raise UsageError(
                f"{file} is quantized: {name} is stored as integers, or in floating point of less than 16 bits",
                "take the teacher's weights in float16, bfloat16 or float32",
            )


def fingerprint(reference: Reference, files: Sequence[Path]) -> str:
    """SHA-256 over configs and weight files, and the text encoders that it is asked without: what it draws follows
    from all of them."""
    encoders = [part for part in reference.without if part.startswith("text_encoder")]
    return of_model([reference.config, reference.scheduler, *([encoders] if encoders else [])], files)


def require_parts(reference: Reference, names: Iterable[str]) -> None:
    """Raise one UsageError that names every part of the pipeline (vae, tokenizer, ...) which is absent or incomplete.

    Parts on the Hub are downloaded first.
    """
    names = list(names)
    if reference.pipeline is None:
        raise UsageError(
            f"'{reference.id}' is a denoiser without a pipeline, and its {_listed(names)} would be needed",
            "name the pipeline folder or the Hub id of the whole pipeline",
        )
    reference.fetch(*names)
    lacking = [f"{name} ({what})" for name in names if (what := _lack(reference.pipeline / name))]
    if lacking:
        raise UsageError(
            f"the pipeline of '{reference.id}' is incomplete: {_listed(lacking)}",
            "bring the missing files into it; of a part left out on purpose model_index.json says [null, null]",
        )
    for file in (reference.pipeline / name / "config.json" for name in names):
        if file.is_file():
            check_config(read_config(file), file, counts=False)


def _lack(folder: Path) -> str | None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return "no such folder"
    if away := links_away(folder):
        return f"{away[0]} is no regular file inside the pipeline's folder, and is not followed elsewhere"
    names = [file.name for file in part_files(folder)]
    if folder.name.startswith("tokenizer"):
        return None if VOCABULARIES & set(names) else "no vocabulary"
    if folder.name.startswith("scheduler"):
        return None if "scheduler_config.json" in names else "no scheduler_config.json"
    if folder.name.startswith(("feature_extractor", "image_processor", "processor")):
        return None
    if "config.json" not in names:
        return "no config.json"
    return None if choose(names, str(folder)) else "no weights"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
