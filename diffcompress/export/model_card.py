"""The model card: README.md of the exported pipeline, written from provenance and facts. It never flatters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffcompress.export import words
from diffcompress.run_folder import write_text

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Markdown is not HTML: nothing is escaped, and line ends of blocks go.
_TEMPLATES = Environment(
    loader=PackageLoader("diffcompress.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write(folder: Path, provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> None:
    """README.md in `folder`; `provenance` is diffcompress.json, `collected` the report's facts."""
    write_text(folder / "README.md", render(provenance, collected))


def render(provenance: Mapping[str, Any], collected: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    licence = provenance["license"]
    teacher = base_model(provenance["teacher"]["id"])
    data = ModelCardData(
        base_model=teacher,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=licence["id"],
        license_name=licence.get("name"),
        license_link=licence.get("link"),
        tags=["diffcompress", "knowledge-distillation", "compressed"],
    )
    content = _TEMPLATES.get_template("model_card.md.j2").render(
        card_data=data.to_yaml(),
        f=collected,
        p=provenance,
        w=words,
        title=f"{provenance['teacher']['name']}, compressed to {words.percent(collected['student']['ratio'])}",
        teacher_named=teacher or provenance["teacher"]["name"],
        demo=str(provenance["teacher"]["id"]).partition(":")[0] == "demo",
        quality={n: m for n, m in collected["metrics"].items() if not words.is_cost(m)},
        costs={n: m for n, m in collected["metrics"].items() if words.is_cost(m)},
        use=usage(provenance),
    )
    return str(ModelCard(content).content)


def base_model(teacher_id: str) -> str | None:
    """The teacher's Hub id, else None: a path means nothing to others, and may be private."""
    name = teacher_id.partition("@")[0]
    return name if _HUB_ID.fullmatch(name) and not Path(teacher_id).exists() else None


def usage(provenance: Mapping[str, Any]) -> str:
    """Python that samples from the student with diffusers alone."""
    if not provenance.get("class_conditional"):
        return (
            "from diffusers import DiffusionPipeline\n\n"
            'pipeline = DiffusionPipeline.from_pretrained("path/to/pipeline")\n'
            'image = pipeline(num_inference_steps=100).images[0]\nimage.save("sample.png")\n'
        )
    return (
        "import torch\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("path/to/pipeline")\n'
        "denoiser, scheduler = pipeline.unet, pipeline.scheduler\n"
        "scheduler.set_timesteps(100)\nlabels = torch.tensor([0])\n"
        "size = denoiser.config.sample_size\nimage = torch.randn(1, denoiser.config.in_channels, size, size)\n"
        "with torch.no_grad():\n    for timestep in scheduler.timesteps:\n"
        "        prediction = denoiser(image, timestep, class_labels=labels).sample\n"
        "        image = scheduler.step(prediction, timestep, image).prev_sample\n"
    )
