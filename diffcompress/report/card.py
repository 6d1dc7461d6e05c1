"""The model card: README.md of the exported pipeline, written from provenance and facts. It never flatters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffcompress.families import registry
from diffcompress.records.run_folder import write_text
from diffcompress.report import numbers, reading, trust
from diffcompress.sources.hub_names import public_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Markdown is not HTML: nothing is escaped, and line ends of blocks go.
_TEMPLATES = Environment(
    loader=PackageLoader("diffcompress.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
UNCONDITIONAL = "unconditional-image-generation"
ELSEWHERE = "path/to/pipeline"
# DiTPipeline takes label 1000 for the one that stands for none.
IMAGENET_CLASSES = 1000
_SAMPLING = ("sampler", "sampler_steps", "guidance", "seed")


def write(folder: Path, provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> None:
    """README.md in `folder`; `provenance` is diffcompress.json, `collected` the report's facts."""
    write_text(folder / "README.md", render(provenance, collected))


def render(provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    licence = provenance["license"]
    teacher = base_model(provenance["teacher"])
    title = f"{provenance['teacher']['name']}, compressed to {numbers.percent(collected['student']['ratio'])}"
    known = licence["id"] != "unknown"
    results = eval_results(provenance, collected)
    data = ModelCardData(
        base_model=teacher,
        library_name="diffusers",
        pipeline_tag=provenance.get("pipeline_tag", UNCONDITIONAL),
        # The Hub knows no "unknown": "other" with that name is how it is said there.
        license=licence["id"] if known else "other",
        license_name=licence.get("name") if known else "unknown",
        license_link=licence.get("link"),
        tags=["diffcompress", "knowledge-distillation", "compressed"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    where = (collected.get("pushed") or {}).get("repo") or ELSEWHERE
    content = _TEMPLATES.get_template("model_card.md.j2").render(
        card_data=data.to_yaml(),
        f=collected,
        p=provenance,
        w=numbers,
        title=title,
        teacher_named=teacher or provenance["teacher"]["name"],
        demo=is_demo(provenance),
        quality={n: m for n, m in collected["metrics"].items() if not (numbers.is_cost(m) or numbers.is_corrected(n))},
        costs={n: m for n, m in collected["metrics"].items() if numbers.is_cost(m)},
        use=usage(provenance, where),
        limits=trust.remarks(collected, reading.seed_of(collected["asked"])),
        command=repeat(provenance, collected),
        data=public_name(collected["asked"].get("data")),
    )
    return str(ModelCard(content).content)


def base_model(teacher: Mapping[str, Any]) -> str | None:
    """The teacher's Hub id, else None: a path means nothing to others, and may be private."""
    name = teacher.get("id")
    return str(name) if name and teacher.get("revision") else None


def is_demo(provenance: Mapping[str, Any]) -> bool:
    return str(provenance["teacher"]["id"]).partition(":")[0] == "demo"


def eval_results(provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> list[EvalResult]:
    """Only what was measured against a data set that others can get; with its protocol, or not at all."""
    from huggingface_hub import EvalResult

    protocol, found = collected["protocol"], []
    for name, metric in collected["metrics"].items():
        reference = metric.get("reference")
        if (
            numbers.is_corrected(name)
            or reference in (None, "data")
            or not metric.get("samples")
            or not numbers.is_number(metric.get("value"))
        ):
            continue
        found.append(
            EvalResult(
                task_type=provenance.get("pipeline_tag", UNCONDITIONAL),
                dataset_type=str(reference).split()[0],
                dataset_name=str(reference),
                metric_type=name,
                metric_name=f"{numbers.label(name)}, {metric['samples']:,} samples",
                metric_value=metric["value"],
                metric_args={key: protocol[key] for key in _SAMPLING if key in protocol}
                | {key: metric.get(key) for key in ("low", "high") if metric.get(key) is not None},
            )
        )
    return found


def repeat(provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> str:
    """The command that makes this student again from the card's own recipe, with no path of this machine in it."""
    teacher, asked = provenance["teacher"], collected["asked"]
    typed = Path(str(asked.get("teacher")))
    # The name of a single checkpoint lacks the suffix.
    place = typed.name if typed.stem == teacher["name"] else teacher["name"]
    name = f"{teacher['id']}@{teacher['revision']}" if base_model(teacher) else teacher["id"] or place
    public = dict(asked) | {"teacher": name}
    public |= {key: public_name(asked.get(key)) for key in ("data", "prompts", "scheduler")}
    return reading.command(public, recipe="recipe.yaml", output=f"{teacher['name']}-again")


def usage(provenance: Mapping[str, Any], where: str = ELSEWHERE) -> str:
    """Python that samples from the student with diffusers alone; that loads it, where it is a denoiser alone."""
    if "pipeline" in provenance and provenance["pipeline"] is None:
        name = provenance["denoiser"]
        place = f"{json.dumps(where)}, subfolder={json.dumps(registry.find(name).subfolder)}"
        return f"from diffusers import {name}\n\ndenoiser = {name}.from_pretrained({place})\n"
    tag = str(provenance.get("pipeline_tag"))
    # transformers keeps text encoders in the dtype they are stored in, diffusers does not: one must be said.
    dtype = ", torch_dtype=torch.float32" if tag.startswith("text-to-") else ""
    load = "import torch\n" if dtype else ""
    load += "from diffusers import DiffusionPipeline\n\n"
    absent = "".join(f", {part}=None" for part in provenance.get("left_out", ()))
    load += f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(where)}{dtype}{absent})\n"
    if tag == "text-to-video":
        return (
            load + 'frames = pipeline("a cat on a sofa").frames[0]\n\n'
            'from diffusers.utils import export_to_video\n\nexport_to_video(frames, "sample.mp4")\n'
        )
    if tag == "text-to-image":
        return load + f'image = pipeline({json.dumps(_prompt(provenance))}).images[0]\nimage.save("sample.png")\n'
    if provenance.get("pipeline") == "DiTPipeline":
        # Of another table its guidance reads another row, or none: a crash.
        plain = "" if provenance.get("num_classes") == IMAGENET_CLASSES else ", guidance_scale=1.0"
        return load + f'image = pipeline(class_labels=[0]{plain}).images[0]\nimage.save("sample.png")\n'
    if provenance.get("num_classes") is None:
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


def _prompt(provenance: Mapping[str, Any]) -> str:
    return "a photo of a sneaker" if is_demo(provenance) else "a photograph of a cat on a sofa"
