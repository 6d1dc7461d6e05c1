"""Where each tensor of a UNet2DModel student comes from: its attention layers and time embeddings."""

from __future__ import annotations

import math

from diffcompress.families.base import Config, TensorRules
from diffcompress.families.unet_rules import Axis, Walk


def tensor_rules(teacher: Config, student: Config) -> TensorRules:
    """Rules for every parameter of `UNet2DModel(student)`, a shrunk `teacher`."""
    return _Walk(teacher, student).run()


def mid_attends(config: Config) -> bool:
    return config["mid_block_type"] is not None and config["add_attention"]


class _Walk(Walk):
    def time(self) -> None:
        kind = self.student["time_embedding_type"]
        source = self.sinusoid(kind)
        if kind == "learned":
            self.rule("time_proj.weight", "time_proj.weight", (self.student["num_train_timesteps"], source))
        self.embed(source)

    def mid(self, hidden: Axis) -> Axis:
        if self.student["mid_block_type"] is None:
            return hidden
        mid = self.levels
        hidden = self.resnet("mid_block.resnets.0", "mid_block.resnets.0", hidden, mid)
        if mid_attends(self.student):
            own = self.student["attn_norm_num_groups"] is not None
            normed = own or self.student["resnet_time_scale_shift"] == "default"
            self.attention("mid_block.attentions.0", "mid_block.attentions.0", hidden, mid, normed)
        return self.resnet("mid_block.resnets.1", "mid_block.resnets.1", hidden, mid)

    def attention(self, name: str, source: str, hidden: Axis, level: int, normed: bool = True) -> None:
        dims = tuple(
            config["attention_head_dim"] or widths[level]
            for config, widths in ((self.teacher, self.wide), (self.student, self.narrow))
        )
        heads = (self.wide[level] // dims[0], self.narrow[level] // dims[1])
        inner = self.new(f"{name}.heads", (heads[0] * dims[0], heads[1] * dims[1]), heads)
        if normed:
            self.norm(f"{name}.group_norm", f"{source}.group_norm", hidden)
        # Attention divides by sqrt(head size): what is left of a head must weigh as it did.
        self.layer(f"{name}.to_q", inner, hidden, f"{source}.to_q", scale=math.sqrt(dims[1] / dims[0]))
        self.layer(f"{name}.to_k", inner, hidden, f"{source}.to_k")
        self.layer(f"{name}.to_v", inner, hidden, f"{source}.to_v")
        self.layer(f"{name}.to_out.0", hidden, inner, f"{source}.to_out.0")
