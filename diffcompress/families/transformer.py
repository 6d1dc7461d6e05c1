"""What the transformer families share: one width (heads x head size) for all blocks, and stacks of like blocks.

A family file fills in the facts about its class: config keys, the tensors with a role of their own, how it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffcompress.families import transformer_rules
from diffcompress.families.base import Config, Knob, Stack, TensorRules, Variant, complete, plain_config
from diffcompress.families.transformer_rules import RESIDUAL, Role, Rules, Width, spread

# A head keeps at least this share of the teacher's head size, and this many channels.
LEAST_HEAD, FEWEST_HEAD_CHANNELS = 0.25, 4
NUM_FEATURES = 4

Predict = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


def _everything(_config: Config) -> int:
    return 1


@dataclass(frozen=True)
class Transformer:
    """A family from facts. Every field that is a function takes the teacher's config.

    stacks: the deepest one first: students shrink all of them alike. size: heads and head size. resized: config
    changes for (teacher config, heads, head size, depths by key). rules: the tensor rules of (teacher, student); see
    `simple_rules`. forward: `predict` of the Family. shape: of one sample. inputs: example conditioning of (config,
    batch). tiny: the test config. channels: the width is a multiple of this (positions embeddings, group norms).
    heads_step: heads are a multiple of it. head_sizes: what a head may have in place of the teacher's channels,
    descending; None: any even number. rotary: channels of a head mean something by position, so that a student's
    heads are the teacher's and never more.
    """

    class_name: str
    pipelines: tuple[str, ...]
    stacks: tuple[Stack, ...]
    size: Callable[[Config], tuple[int, int]]
    resized: Callable[[Config, int, int, Mapping[str, int]], dict[str, Any]]
    rules: Callable[[Config, Config], Rules]
    forward: Predict
    shape: Callable[[Config], tuple[int, ...]]
    inputs: Callable[[Config, int], dict[str, Tensor]]
    tiny: Callable[[], dict[str, Any]]
    text: Callable[[Config], tuple[str, ...]] = lambda _config: ()
    classes: Callable[[Config], int | None] = lambda _config: None
    null: Callable[[Config], int | None] = lambda _config: None
    channels: Callable[[Config], int] = _everything
    heads_step: Callable[[Config], int] = _everything
    head_sizes: Callable[[Config], Sequence[int]] | None = None
    rotary: bool = False
    check: Callable[[Config], None] = lambda _config: None
    patch: Callable[[Config], int] = lambda config: int(config["patch_size"])
    feature_output: int = 0
    former: str | None = None
    optional_encoders: tuple[str, ...] = ()
    call_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "mmdit"
    subfolder: str = "transformer"
    kind: Literal["unet", "transformer"] = "transformer"

    def bare_pipeline(self, scheduler: str) -> str | None:
        return None

    def variants(self, config: Config, *, channels_per_group: int) -> tuple[Variant, ...]:
        """The teacher's head size, then smaller ones; heads of the kept size come in widths that are multiples of 16
        first (the search sees to it)."""
        self.check(config)
        heads, head_dim = self.size(config)
        depths = tuple(self._depth(stack, config) for stack in self.stacks)
        found = []
        for size in (head_dim, *self._other_sizes(config, head_dim)):
            step = math.lcm(self.heads_step(config), self.channels(config) // math.gcd(self.channels(config), size))
            values = range(step, heads + 1, step)
            if size != head_dim and not self.rotary:  # smaller heads may be more
                values = range(step, heads * head_dim // size + 1, step)
            if values:
                # Attention kernels like head sizes that are multiples of 8.
                cost = 0.15 * abs(math.log2(head_dim / size)) + (0.05 if size % 8 else 0.0)
                knobs = (Knob("heads", values, heads, "width"), *depths)
                found.append(Variant({"head_dim": size}, knobs, cost))
        return tuple(found)

    def _other_sizes(self, config: Config, head_dim: int) -> Sequence[int]:
        least = max(FEWEST_HEAD_CHANNELS, math.ceil(LEAST_HEAD * head_dim))
        sizes = range(head_dim - 1, 0, -1) if self.head_sizes is None else self.head_sizes(config)
        return [size for size in sizes if least <= size < head_dim and size % 2 == 0]

    def _depth(self, stack: Stack, config: Config) -> Knob:
        number = config[stack.key]
        return Knob(stack.key, range(min(stack.step, number), number + 1, stack.step), number, "depth")

    def shrunk_config(self, config: Config, choice: Mapping[str, int]) -> dict[str, Any]:
        """Students have no dropout: their targets are the teacher's predictions, not the data."""
        depths = {stack.key: choice[stack.key] for stack in self.stacks}
        changes = depths | self.resized(config, choice["heads"], choice["head_dim"], depths)
        if "dropout" in config:
            changes["dropout"] = 0.0
        return plain_config(self.class_name, config, **changes)

    def reasons(self, config: Config, student: Config) -> Mapping[str, str]:
        (heads, head_dim), shape = self.size(student), self.shape(config)
        values = math.prod(shape) // self.num_tokens(config, shape)
        width = f"{heads * head_dim} channels, where a token has {values} values"
        depth = {stack.key: "depth shrinks about as width does" for stack in self.stacks}
        return {**depth, "num_attention_heads": width, "attention_head_dim": width}

    def blocks(self, model: nn.Module) -> tuple[str, ...]:
        """NUM_FEATURES blocks spread over the deepest stack, the last one among them; over the next if it is empty."""
        sizes = {stack.module: len(model.get_submodule(stack.module)) for stack in self.stacks}  # type: ignore[arg-type]
        module, depth = next((module, depth) for module, depth in sizes.items() if depth)
        ends = [max(1, round((part + 1) * depth / NUM_FEATURES)) - 1 for part in range(NUM_FEATURES)]
        return tuple(f"{module}.{end}" for end in ends)

    def feature(self, output: Any) -> Tensor:
        """The tokens `[B, N, C]` in a block's output as features `[B, C, N]`."""
        tokens = output if isinstance(output, Tensor) else output[self.feature_output]
        return tokens.transpose(1, 2)

    def tensor_rules(self, teacher: Config, student: Config) -> TensorRules:
        return transformer_rules.tensor_rules(self.class_name, teacher, student, self.rules(teacher, student))

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return self.forward(model, noisy, timestep, conditioning)

    def sample_shape(self, config: Config) -> tuple[int, ...]:
        return self.shape(config)

    def num_tokens(self, config: Config, shape: tuple[int, ...]) -> int:
        """Patches of the two last axes, in every frame of a video."""
        patch = self.patch(config)
        return math.prod(shape[1:-2]) * (shape[-2] // patch) * (shape[-1] // patch)

    def num_classes(self, config: Config) -> int | None:
        return self.classes(config)

    def null_class(self, config: Config) -> int | None:
        return self.null(config)

    def text_conditioning(self, config: Config) -> tuple[str, ...]:
        return self.text(config)

    def tiny_config(self) -> dict[str, Any]:
        return complete(self.class_name, {"_class_name": self.class_name, **self.tiny()})

    def example_inputs(self, config: Config, batch: int = 1) -> dict[str, Tensor]:
        noisy = torch.zeros(batch, *self.shape(config))
        return {"noisy": noisy, "timestep": torch.ones(batch, dtype=torch.long), **self.inputs(config, batch)}


def mlp_roles(name: str, *, hidden: str = "hidden", out: str | None = None) -> tuple[Role, ...]:
    """Roles of embedder MLPs (linear_1, linear_2) whose name ends in the pattern `name`: hidden channels of their own.

    hidden: the role of these; out: the role of what comes out, None for the residual width.
    """
    at, own = rf"(?P<at>.*{name})", f"{{at}}.{hidden}"
    return (
        Role(rf"{at}\.linear_1\.(weight|bias)", (own,)),
        Role(rf"{at}\.linear_2\.weight", (out, own)),
        Role(rf"{at}\.linear_2\.bias", (out,)),
    )


def simple_rules(
    family_stacks: Sequence[Stack],
    teacher: Config,
    student: Config,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    *,
    ffn: tuple[int, int] | None = None,
    residual: tuple[int, ...] | None = None,
    head: tuple[int, ...] | None = None,
    normed: bool = False,
    widths: Mapping[str, Width] | None = None,
    roles: tuple[Role, ...] = (),
    sources: Mapping[str, Sequence[int]] | None = None,
) -> Rules:
    """The rules of most transformers.

    sizes: (heads, head size) of teacher and student. ffn: hidden channels of both (default: four times the width).
    residual: residual channels that stay, where they mean something by position; head: the same inside a head (rotary
    embeddings; needed too where one vector normalises all heads). normed: queries and keys are normalised, so that a
    smaller head needs no other scale. widths, roles, sources: more of them, before the usual ones.
    """
    (old_heads, old_dim), (new_heads, new_dim) = sizes
    wide, narrow = old_heads * old_dim, new_heads * new_dim
    known = {
        RESIDUAL: Width(wide, narrow, positions=residual),
        "heads": Width(wide, narrow, old_heads, new_heads, positions=head if new_dim != old_dim else None),
        "head": Width(old_dim, new_dim, positions=head),
        "ffn": Width(*(ffn or (4 * wide, 4 * narrow))),
        "hidden": Width(wide, narrow),
    }
    scaled: tuple[Role, ...] = ()
    if new_dim != old_dim and not normed:
        # Attention divides by the root of the head size: what is left of a head must weigh as it did.
        factor = math.sqrt(new_dim / old_dim)
        scaled = (
            Role(r"(?P<at>.*(attn\d?|attention))\.(to_q|add_q_proj)\.weight", ("{at}.heads", None), factor),
            Role(r"(?P<at>.*(attn\d?|attention))\.(to_q|add_q_proj)\.bias", ("{at}.heads",), factor),
        )
    depths = {stack.module: spread(student[stack.key], teacher[stack.key]) for stack in family_stacks}
    return Rules(known | dict(widths or {}), (*roles, *scaled), depths | dict(sources or {}))
