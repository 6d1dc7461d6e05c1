"""Every knob with its default, in frozen validated sections. `recipes show` tells a description beside its value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take true for 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("Input should be no true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any, info: ValidationInfo) -> Any:
        """As `--set student.without=text_encoder_3` has it."""
        is_list = cls.model_fields[str(info.field_name)].annotation == tuple[str, ...]
        return (value,) if is_list and isinstance(value, str) else value


class StudentSection(Section):
    channels_per_group: int = Field(
        2, ge=1, description="fewest channels in a GroupNorm group; 1 blinds blocks to the timestep"
    )
    widths: Literal["balanced", "proportional"] = Field(
        "balanced",
        description="of U-Nets: parameters balanced over the resolutions, or one share of the teacher's widths",
    )
    prediction: Literal["teacher", "v"] = Field(
        "teacher", description="what the student predicts: what its teacher does, or v (a flow's velocity is one)"
    )
    start: Literal["inherit", "random"] = Field(
        "inherit", description="initial weights: the teacher's most important channels, or random"
    )
    importance: Literal["magnitude", "taylor"] = Field("taylor", description="how channels are ranked when inheriting")
    without: tuple[str, ...] = Field(
        (), description="parts of the pipeline that the student, and its teacher beside it, does without"
    )
    refit: bool = Field(True, description="fit inherited layers to their teacher's outputs before training (U-Nets)")


class BankSection(Section):
    num_samples: int = Field(2048, ge=1, description="clean samples drawn from the teacher")
    grow: bool = Field(
        True,
        description="draw more samples where steps would use the stored calls of these more often than targets.reuse; "
        "of teachers with guidance, whose stored calls cost twice, for students of a tenth and more",
    )
    stored_gib: float = Field(
        128.0,
        ge=0.0,
        description="most that the teacher's calls may take on disk, in half precision, where memory does not hold "
        "them; half of what is free at most",
    )
    sampler_steps: int = Field(25, ge=1, description="denoiser evaluations per bank sample")
    eta: float = Field(1.0, ge=0.0, le=1.0, description="0: deterministic DDIM, 1: ancestral sampling")
    jitter: bool = Field(
        True, description="shift every sample's timestep grid at random, so trajectories visit all timesteps"
    )
    guidance: float = Field(
        1.0, ge=0.0, description="classifier-free guidance scale of bank samples, where there is a null conditioning"
    )
    null_share: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="share of targets with the null conditioning, so that guidance works on students",
    )
    num_prompts: int = Field(1024, ge=1, description="prompts of the built-in grammar, for text-conditional teachers")
    text_length: int | None = Field(
        None, ge=1, description="max_sequence_length of pipelines that take one; null: their default"
    )
    sample_size: int | None = Field(
        None, ge=1, description="height and width of samples (of latents); null: as the teacher's pipeline makes them"
    )


class TargetsSection(Section):
    reuse: int = Field(
        8, ge=1, description="times a stored teacher prediction is used; 1: a teacher forward each step, as published"
    )
    pool_size: int = Field(8192, ge=1, description="teacher predictions kept at a time, as far as 4 GiB hold them")
    trajectory_share: float = Field(
        1.0, ge=0.0, le=1.0, description="most of a pool that may come from bank trajectories, at no teacher cost"
    )
    timesteps: Literal["uniform", "antithetic"] = Field("antithetic", description="how noise levels are drawn")
    levels: Literal["timesteps", "noise"] = Field(
        "timesteps",
        description="what is spread evenly: timesteps, or the square of the noise's share, which leaves few that are "
        "almost clean or almost pure noise",
    )


class LossWeights(Section):
    """By the name of the loss, `losses/<name>.py`; a title is that of its curve in reports."""

    lift: float = Field(0.0, ge=0.0)
    place: float = Field(0.0, ge=0.0)
    output_kd: float = Field(0.0, ge=0.0, title="Output distillation")
    feature_kd: float = Field(0.0, ge=0.0, title="Feature distillation")
    diffusion: float = Field(0.0, ge=0.0, title="Diffusion loss")
    variance_kd: float = Field(1.0, ge=0.0, description="of a learned variance, where the teacher has one")


class StageSection(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="names the stage's folder")
    num_steps: int = Field(ge=0, description="optimizer updates")
    least_gain: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="of the last stage: all steps so far are trained again as often as that takes such a share of the "
        "error on held-out samples away; null, or with --max-time or num_steps set: never",
    )
    weights: LossWeights
    group_size: int = Field(4, ge=1, description="elements per PLACE group")
    norm: Literal["l1", "squared", "relative", "explained"] = Field(
        "relative",
        description="rho of the coarse term; explained: mean square that lines explain; relative: to what they leave",
    )
    reduction: Literal["mean", "sum"] = "mean"
    fine: Literal["squared", "l1", "relative"] = Field(
        "relative", description="fine term: squared residual (published), absolute, or per-sample root mean square"
    )
    gate: Literal["global", "per_sample", "soft"] = Field(
        "soft", description="fine weight from the whole batch (published), per sample, or one that never shuts"
    )
    coarse_weight: float = Field(1.0, ge=0.0, description="factor on the coarse term; 1 as published")
    power: float = Field(1.0, gt=0.0, le=1.0, description="each sample's lift, place or output_kd loss is raised to it")
    output_norm: Literal["squared", "l1", "rms"] = Field("squared", description="norm of output_kd")
    feature_norm: Literal["relative", "squared"] = Field(
        "relative",
        description="of feature_kd: last block of each resolution by the teacher's norm, or every block (published)",
    )

    @model_validator(mode="after")
    def _one_objective(self) -> StageSection:
        """Refuse what no step could compute."""
        if self.weights.lift and self.weights.place:
            raise ValueError("a stage is either lift or place, and both have a weight")
        if not any(weight for name, weight in self.weights.model_dump().items() if name != "variance_kd"):
            raise ValueError("all loss weights are 0")
        return self


class TrainingSection(Section):
    batch_size: int = Field(64, ge=1, description="global batch, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples of a process's share in one forward; null: all of them, or what memory holds"
    )
    recompute: bool = Field(
        False,
        description="compute the student's activations again for the backward pass: less memory, more time; true by "
        "itself where one sample's step does not fit otherwise",
    )
    shard: bool | None = Field(
        None,
        description="the optimizer's moments and the averages shared out over all processes; null: where one does not "
        "hold all of them",
    )
    compile: bool | None = Field(
        None,
        description="compile the student's forward and backward pass; null: on a GPU, where a run is long enough to "
        "pay for it and a few steps are faster so",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon: orthogonal steps for matrices and AdamW for the rest; adamw: for all, as published"
    )
    learning_rate: float = Field(1e-2, gt=0.0, description="of students of up to tuned_ratio")
    tuned_ratio: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="share of the teacher's parameters; larger students learn at learning_rate times the root of it by "
        "theirs; null: all alike",
    )
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[Share, Share] = Field((0.9, 0.99), description="of AdamW")
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the student's activations; weights, losses and devices without bfloat16: float32"
    )
    ema_half_life: float = Field(0.04, ge=0.0, description="as a fraction of the planned steps")
    checkpoint_every_seconds: float = Field(120.0, gt=0.0)
    preview_every_steps: int = Field(500, ge=1)
    log_every_steps: int = Field(10, ge=1)
    trackers: tuple[str, ...] = Field(
        (), description="where the log goes, too: tensorboard, trackio, wandb, if installed"
    )


class EvaluationSection(Section):
    num_samples: int = Field(2048, ge=1)
    interval: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="as many samples, num_samples at most, as bring the distance's 95 % interval within this share of "
        "it; null: num_samples, as far as these cost no more than a quarter of the training",
    )
    sampler_steps: int = Field(25, ge=1)
    guidance: float = Field(1.0, ge=0.0, description="classifier-free guidance scale, for teacher and student alike")


class ExportSection(Section):
    onnx: bool = Field(False, description="also the denoiser as ONNX, checked with onnxruntime (diffcompress[onnx])")
    single_file: bool = Field(False, description="also the denoiser as one safetensors file with its config inside")
    original: bool = Field(False, description="also the denoiser in the layout of its authors (SD, FLUX.1)")
    gguf: bool = Field(False, description="that in GGUF, weights of 8 bits (SD 3, FLUX.1; diffcompress[gguf])")
    adapter: str | None = Field(
        None, description="a LoRA adapter of the teacher (.safetensors): also its layers that the student kept whole"
    )
    half_parts: bool = Field(
        False, description="encoders and autoencoder in half precision, where the teacher's are stored in more"
    )

    @property
    def formats(self) -> dict[str, bool | str | None]:
        """What is asked for beside the pipeline."""
        return self.model_dump(exclude={"half_parts"})


# Where training more is worth little: docs/decisions/0021.
LEAST_GAIN = 0.04


def default_stages() -> tuple[StageSection, ...]:
    """LIFT, then PLACE, for pixels (docs/decisions/0016); recipes of latent teachers hold them with relative terms."""
    form: dict[str, Any] = {"norm": "explained", "fine": "squared", "power": 0.625}
    return (
        StageSection(name="lift", num_steps=140, weights=LossWeights(lift=1.0), **form),
        StageSection(name="place", num_steps=1860, least_gain=LEAST_GAIN, weights=LossWeights(place=1.0), **form),
    )


class Recipe(Section):
    """All settings of one run. `description` is for people; every other value changes what is computed."""

    description: str = ""
    seed: int = Field(0, ge=0)
    student: StudentSection = StudentSection()
    bank: BankSection = BankSection()
    targets: TargetsSection = TargetsSection()
    stages: tuple[StageSection, ...] = Field(default_factory=default_stages, min_length=1)
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    export: ExportSection = ExportSection()

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
