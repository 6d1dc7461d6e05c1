"""Watching a denoiser: which arguments it is called with, by the names of its own forward.

How a pipeline encodes prompts is not re-implemented but watched: it is called, and what it would hand its denoiser is
kept. So every class's templates, masks, pooled vectors and size conditions are those of its pipeline.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.families.base import Family

# Guidance that makes a pipeline compute its null conditioning; its size does not matter here.
GUIDED = 4.0
TEXT_PARTS = tuple(f"{part}{number}" for number in ("", "_2", "_3") for part in ("tokenizer", "text_encoder"))


class _Enough(Exception):
    """Ends whatever is calling a denoiser that has been called often enough."""


@contextlib.contextmanager
def calls_of(denoiser: nn.Module, *, most: int | None = None, computes: bool = True) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call of `denoiser` in the block, as they come: by name, in the order of its forward's.

    most: the block ends with that call, which computes nothing. computes: without, earlier ones return zeros of the
    shape of the sample.
    """
    forward, own = denoiser.forward, vars(denoiser).get("forward")  # a hook of accelerate's, where there is one
    signature = inspect.signature(type(denoiser).forward)
    calls: list[dict[str, Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        _, *given = signature.bind(denoiser, *args, **kwargs).arguments.items()
        calls.append(dict(given))
        if len(calls) == most:
            raise _Enough
        if computes:
            return forward(*args, **kwargs)
        (_, sample), *_ = given
        return (sample if isinstance(sample, list) else torch.zeros_like(sample),)

    denoiser.forward = watched  # type: ignore[method-assign]
    try:
        with contextlib.suppress(_Enough):
            yield calls
    finally:
        del denoiser.forward
        if own is not None:
            denoiser.forward = own


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
    watch = partial(_asked, pipeline, family, size=size, text_length=text_length)
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


def _asked(
    pipeline: Any,
    family: Family,
    prompts: list[str],
    *,
    most: int,
    size: tuple[int, ...] | None,
    text_length: int | None,
    guidance: float = GUIDED,
) -> list[dict[str, Any]]:
    """The first denoiser calls, at most `most`, of one run of `pipeline` with guidance."""
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
    try:
        pipeline.set_progress_bar_config(disable=True)
        with torch.no_grad(), calls_of(getattr(pipeline, family.subfolder), most=most, computes=False) as calls:
            pipeline(**{name: value for name, value in wanted.items() if name in accepted})
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many kinds, by what is lacking
        lacking = [part for part in TEXT_PARTS if getattr(pipeline, part, part) is None]
        told = f"it has no {' and no '.join(lacking)} ({error})" if lacking else error
        raise UsageError(
            f"{type(pipeline).__name__} cannot encode prompts: {told}", "check that the teacher's pipeline is complete"
        ) from error
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
