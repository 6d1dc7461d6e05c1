import diffusers
import torch

from diffcompress.families.registry import find
from diffcompress.pipeline.trace import calls_of

FAMILY = find("DiTTransformer2DModel")


def denoiser() -> diffusers.DiTTransformer2DModel:
    return diffusers.DiTTransformer2DModel.from_config(FAMILY.tiny_config()).eval()


@torch.no_grad()
def test_calls_are_told_by_name_in_the_order_of_the_forward() -> None:
    model, inputs = denoiser(), FAMILY.example_inputs(FAMILY.tiny_config(), 2)
    labels, timestep = inputs["class_labels"], inputs["timestep"].long()
    expected = model(inputs["noisy"], timestep, labels)[0]
    with calls_of(model) as calls:
        found = model(inputs["noisy"], class_labels=labels, timestep=timestep)[0]
    assert torch.equal(found, expected)
    assert [*calls[0]] == ["hidden_states", "timestep", "class_labels"]
    assert torch.equal(calls[0]["class_labels"], labels)
    assert torch.equal(model(inputs["noisy"], timestep, labels)[0], expected) and len(calls) == 1


def test_the_last_call_asked_for_computes_nothing_and_ends_the_block() -> None:
    model, inputs = denoiser(), FAMILY.example_inputs(FAMILY.tiny_config(), 2)
    with calls_of(model, most=2, computes=False) as calls:
        first = model(inputs["noisy"], inputs["timestep"], inputs["class_labels"])[0]
        assert torch.equal(first, torch.zeros_like(inputs["noisy"]))
        model(hidden_states=inputs["noisy"])
        raise AssertionError("the block goes on")
    assert [*calls[1]] == ["hidden_states"]
    assert "forward" not in vars(model)
