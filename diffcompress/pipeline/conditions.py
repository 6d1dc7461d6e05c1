"""What samples are conditioned on: nothing, class labels, or prompts as the teacher's own pipeline encodes them.

How a pipeline encodes prompts is not re-implemented but watched: it is called, and what it would hand its denoiser is
kept. So every class's templates, masks, pooled vectors and size conditions are those of its pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.families.base import Config, Family
from diffcompress.noise import generator, streams
from diffcompress.pipeline.stored_rows import StoredRows
from diffcompress.records import fingerprints

# Guidance that makes a pipeline compute its null conditioning; its size does not matter here.
GUIDED = 4.0
TEXT_PARTS = tuple(f"{part}{number}" for number in ("", "_2", "_3") for part in ("tokenizer", "text_encoder"))


@dataclass(frozen=True)
class Conditions:
    """Every conditioning that samples are drawn with, as the rows of a table.

    table: tensors with a row for each condition, by the denoiser's keyword (nested ones with a dot), in memory or on
    disk; count: conditions to draw from, rows 0..count-1; null: the row of the null conditioning, None where there is
    none. texts: the prompt of each row, if it has one; warnings: what the user should know of them.
    """

    table: Mapping[str, Tensor | StoredRows] = field(default_factory=dict)
    count: int = 1
    null: int | None = None
    texts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The conditioning of `index` `[B]`: tensors with B rows; empty for unconditional denoisers."""
        return {name: values[index] for name, values in self.table.items()}

    def draw(self, indices: Sequence[int], seed: int) -> Tensor:
        """A row for each of the samples `indices`, from (seed, i) alone; never the null row."""
        drawn = [torch.randint(self.count, (1,), generator=generator(seed, streams.CONDITION, i)) for i in indices]
        return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.long)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the prompts; None without text."""
        return fingerprints.of_text("\n".join(self.texts)) if self.texts else None

    def nulls(self, count: int) -> Tensor:
        """The null row, `count` times."""
        assert self.null is not None
        return torch.full((count,), self.null)


def as_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Those of floating point in `dtype`, labels and masks as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def without_text(family: Family, config: Config) -> Conditions:
    """The conditions of an unconditional or class-conditional denoiser."""
    classes, null = family.num_classes(config), family.null_class(config)
    if classes is None:
        return Conditions()
    rows = classes if null is None else max(classes, null + 1)
    return Conditions({"class_labels": torch.arange(rows)}, classes, null)


class _Seen(Exception):
    """Ends a pipeline's call once its denoiser has been asked often enough."""


def trace(
    pipeline: Any,
    family: Family,
    prompts: Sequence[str],
    size: tuple[int, ...] | None = None,
    text_length: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditioning of `prompts` as `pipeline` (a diffusers pipeline) encodes them, and its null conditioning.

    Tensors have a row for each prompt; of the null conditioning one row, and it is empty where the pipeline has none
    (guidance-distilled models). size: latent shape `[C, *spatial]` whose height and width are asked for; text_length:
    tokens of a prompt, where the pipeline lets one choose. No denoiser is run. Raises UsageError when the pipeline
    cannot encode them.
    """
    names = family.text_conditioning(dict(getattr(pipeline, family.subfolder).config))
    watch = partial(_watch, pipeline, family, size=size, text_length=text_length)
    calls = watch(list(prompts), most=1)
    found = _pick(calls[0], names)
    rows = {len(value) for value in found.values()}
    if rows == {2 * len(prompts)}:
        # Guidance in one call: most pipelines put the null conditioning first.
        alone = _pick(watch(list(prompts[:1]), most=1, guidance=0.0)[0], names)
        halves = [{name: value.split(len(prompts))[half] for name, value in found.items()} for half in (0, 1)]
        ours, null = halves if _nearer(alone, halves) == 0 else reversed(halves)
        return ours, {name: value[:1] for name, value in null.items()}
    if rows != {len(prompts)}:
        raise UsageError(
            f"{type(pipeline).__name__} made {sorted(rows)} rows of conditioning for {len(prompts)} prompts",
            "report this pipeline as a bug",
        )
    both = watch(list(prompts[:1]), most=2)
    return found, _pick(both[1], names) if len(both) > 1 and _same_time(both) else {}


def _watch(
    pipeline: Any,
    family: Family,
    prompts: list[str],
    *,
    most: int,
    size: tuple[int, ...] | None,
    text_length: int | None,
    guidance: float = GUIDED,
) -> list[dict[str, Any]]:
    """Keyword arguments of the first denoiser calls, at most `most`, of one pipeline run with guidance."""
    denoiser = getattr(pipeline, family.subfolder)
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    calls: list[dict[str, Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(dict(zip(names, args, strict=False)) | kwargs)
        if len(calls) == most:
            raise _Seen
        given = calls[-1][names[0]]
        return (given if isinstance(given, list) else torch.zeros_like(given),)

    accepted = inspect.signature(type(pipeline).__call__).parameters
    wanted: dict[str, Any] = {
        "prompt": prompts,
        "num_inference_steps": 2,
        "output_type": "latent",
        "guidance_scale": guidance,
        "use_resolution_binning": False,
        "clean_caption": False,
        "generator": torch.Generator().manual_seed(0),
    }
    if size is not None:
        scale: int = getattr(pipeline, "vae_scale_factor", 0) or getattr(pipeline, "vae_scale_factor_spatial", 1)
        wanted |= {"height": size[-2] * scale, "width": size[-1] * scale}
    if text_length is not None:
        wanted["max_sequence_length"] = text_length
    wanted |= family.call_options
    denoiser.forward = watched
    try:
        pipeline.set_progress_bar_config(disable=True)
        with torch.no_grad():
            pipeline(**{name: value for name, value in wanted.items() if name in accepted})
    except _Seen:
        pass
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many kinds, by what is lacking
        lacking = [part for part in TEXT_PARTS if getattr(pipeline, part, part) is None]
        told = f"it has no {' and no '.join(lacking)} ({error})" if lacking else error
        raise UsageError(
            f"{type(pipeline).__name__} cannot encode prompts: {told}", "check that the teacher's pipeline is complete"
        ) from error
    finally:
        del denoiser.forward
    return calls


def _pick(call: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    found = {}
    for name in names:
        value: Any = call
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, list):
            value, found[f"{name}.length"] = _padded(value)
        if value is None and name.removesuffix("_mask") in found:
            # Pipelines leave out a mask that hides nothing; longer prompts elsewhere may need it.
            value = torch.ones(found[name.removesuffix("_mask")].shape[:2], dtype=torch.long)
        if value is None:
            continue
        found[name] = value.detach().cpu()
    return found


def _nearer(alone: Mapping[str, Tensor], halves: Sequence[Mapping[str, Tensor]]) -> int:
    """Which of two halves begins with the prompt that was encoded `alone`; the second one when in doubt."""
    name = next(name for name, value in alone.items() if value.is_floating_point())
    own = alone[name][0].float()
    first, second = ((half[name][0, : len(own)].float() - own[: half[name].shape[1]]).abs().sum() for half in halves)
    return 0 if first < second else 1


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows `[length, D]` of different lengths as one tensor, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence([row.detach().cpu() for row in rows], batch_first=True), lengths


def _same_time(calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two calls belong to one step, so that the second is the null conditioning's."""
    times = [call.get("timestep", call.get("t")) for call in calls[:2]]
    return all(isinstance(t, Tensor) for t in times) and torch.equal(*(t.float().flatten()[:1] for t in times))  # type: ignore[union-attr]
