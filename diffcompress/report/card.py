"""The model card: README.md of the exported pipeline, written from provenance and facts. It never flatters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffcompress.families import registry
from diffcompress.records.layout import CARD, RECIPE
from diffcompress.records.provenance import Provenance, TeacherFiles
from diffcompress.records.report import Report
from diffcompress.records.request import command
from diffcompress.records.run_files import write_text
from diffcompress.report import figures, numbers, trust
from diffcompress.sources.hub_names import public_name
from diffcompress.sources.licence import UNKNOWN

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Markdown is not HTML: nothing is escaped, and line ends of blocks go.
_TEMPLATES = Environment(
    loader=PackageLoader("diffcompress.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ELSEWHERE = "path/to/pipeline"
# DiTPipeline takes label 1000 for the one that stands for none.
IMAGENET_CLASSES = 1000
_SAMPLING = ("sampler", "sampler_steps", "guidance", "seed")


def write(folder: Path, provenance: Provenance, report: Report, repo: str | None = None) -> None:
    """README.md in `folder`, which will lie in `repo` on the Hub; `provenance` is diffcompress.json."""
    write_text(folder / CARD, render(provenance, report, repo))


def render(provenance: Provenance, report: Report, repo: str | None = None) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    licence = provenance.license
    teacher = base_model(provenance.teacher)
    title = f"{provenance.teacher.name}, compressed to {numbers.percent(report.student.ratio)}"
    known = licence.id != UNKNOWN
    results = eval_results(provenance, report)
    data = ModelCardData(
        base_model=teacher,
        library_name="diffusers",
        pipeline_tag=provenance.pipeline_tag,
        # The Hub knows no "unknown": "other" with that name is how it is said there.
        license=licence.id if known else "other",
        license_name=licence.name if known else UNKNOWN,
        license_link=licence.link,
        tags=["diffcompress", "knowledge-distillation", "compressed"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    content = _TEMPLATES.get_template("model_card.md.j2").render(
        card_data=data.to_yaml(),
        f=report,
        p=provenance,
        w=numbers,
        title=title,
        teacher_named=teacher or provenance.teacher.name,
        demo=is_demo(provenance),
        quality=figures.quality(report.metrics),
        costs=figures.costs(report.metrics),
        use=usage(provenance, repo or (report.pushed.repo if report.pushed else ELSEWHERE)),
        limits=trust.remarks(report),
        command=repeat(provenance, report.asked),
        data=public_name(report.asked.get("data")),
    )
    return str(ModelCard(content).content)


def base_model(teacher: TeacherFiles) -> str | None:
    """The teacher's Hub id, else None: a path means nothing to others, and may be private."""
    return teacher.id if teacher.id and teacher.revision else None


def is_demo(provenance: Provenance) -> bool:
    return str(provenance.teacher.id).partition(":")[0] == "demo"


def eval_results(provenance: Provenance, report: Report) -> list[EvalResult]:
    """Only what was measured against a data set that others can get; with its protocol, or not at all."""
    from huggingface_hub import EvalResult

    found = []
    for metric, measured in figures.quality(report.metrics):
        if measured.reference in (None, "data") or not measured.samples or not numbers.is_number(measured.value):
            continue
        sampling = report.protocol.to_json() if report.protocol else {}
        found.append(
            EvalResult(
                task_type=provenance.pipeline_tag,
                dataset_type=str(measured.reference).split()[0],
                dataset_name=str(measured.reference),
                metric_type=metric.name,
                metric_name=f"{metric.label}, {measured.samples:,} samples",
                metric_value=measured.value,
                metric_args={key: sampling[key] for key in _SAMPLING if key in sampling}
                | {key: value for key, value in (("low", measured.low), ("high", measured.high)) if value is not None},
            )
        )
    return found


def repeat(provenance: Provenance, asked: Mapping[str, Any]) -> str:
    """The command that makes this student again from the card's own recipe, with no path of this machine in it."""
    teacher = provenance.teacher
    typed = Path(str(asked.get("teacher")))
    # The name of a single checkpoint lacks the suffix.
    place = typed.name if typed.stem == teacher.name else teacher.name
    name = f"{teacher.id}@{teacher.revision}" if base_model(teacher) else teacher.id or place
    public = dict(asked) | {"teacher": name}
    public |= {key: public_name(asked.get(key)) for key in ("data", "prompts", "scheduler")}
    return command(public, recipe=RECIPE, output=f"{teacher.name}-again")


def usage(provenance: Provenance, where: str = ELSEWHERE) -> str:
    """Python that samples from the student with diffusers alone; that loads it, where it is a denoiser alone."""
    if provenance.is_alone:
        name = provenance.denoiser
        place = f"{json.dumps(where)}, subfolder={json.dumps(registry.find(name).subfolder)}"
        return f"from diffusers import {name}\n\ndenoiser = {name}.from_pretrained({place})\n"
    tag = provenance.pipeline_tag
    # transformers keeps text encoders in the dtype they are stored in, diffusers does not: one must be said.
    dtype = ", torch_dtype=torch.float32" if tag.startswith("text-to-") else ""
    load = "import torch\n" if dtype else ""
    load += "from diffusers import DiffusionPipeline\n\n"
    absent = "".join(f", {part}=None" for part in provenance.left_out)
    load += f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(where)}{dtype}{absent})\n"
    if tag == "text-to-video":
        return (
            load + 'frames = pipeline("a cat on a sofa").frames[0]\n\n'
            'from diffusers.utils import export_to_video\n\nexport_to_video(frames, "sample.mp4")\n'
        )
    if tag == "text-to-image":
        return load + f'image = pipeline({json.dumps(_prompt(provenance))}).images[0]\nimage.save("sample.png")\n'
    if provenance.pipeline == "DiTPipeline":
        # Of another table its guidance reads another row, or none: a crash.
        plain = "" if provenance.num_classes == IMAGENET_CLASSES else ", guidance_scale=1.0"
        return load + f'image = pipeline(class_labels=[0]{plain}).images[0]\nimage.save("sample.png")\n'
    if provenance.num_classes is None:
        steps = "min(100, pipeline.scheduler.config.num_train_timesteps)"
        return load + f'image = pipeline(num_inference_steps={steps}).images[0]\nimage.save("sample.png")\n'
    return (
        "import torch\n" + load + "denoiser, scheduler = pipeline.unet, pipeline.scheduler\n"
        "scheduler.set_timesteps(min(100, scheduler.config.num_train_timesteps))\nlabels = torch.tensor([0])\n"
        "size = denoiser.config.sample_size\nheight, width = (size, size) if isinstance(size, int) else size\n"
        "image = scheduler.init_noise_sigma * torch.randn(1, denoiser.config.in_channels, height, width)\n"
        "with torch.no_grad():\n    for timestep in scheduler.timesteps:\n"
        "        scaled = scheduler.scale_model_input(image, timestep)\n"
        "        prediction = denoiser(scaled, timestep, class_labels=labels).sample\n"
        "        image = scheduler.step(prediction, timestep, image).prev_sample\n"
    )


def _prompt(provenance: Provenance) -> str:
    return "a photo of a sneaker" if is_demo(provenance) else "a photograph of a cat on a sofa"
