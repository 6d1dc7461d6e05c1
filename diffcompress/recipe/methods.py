"""`--method`: the recipe's own losses, or a baseline's in their place at equal budget."""

from __future__ import annotations

from diffcompress.recipe.sections import LossWeights, Recipe

OURS = "lift-place"
# Feature KD keeps output KD, as published baselines do.
BASELINES = {
    "output-kd": LossWeights(output_kd=1.0),
    "feature-kd": LossWeights(output_kd=1.0, feature_kd=1.0),
    "none": LossWeights(diffusion=1.0),
}
METHODS = (OURS, *BASELINES)


def as_baseline(recipe: Recipe, method: str) -> Recipe:
    """`recipe` with all its steps in one stage, of a baseline's losses."""
    changes = {"name": method.replace("-", "_"), "weights": BASELINES[method], "num_steps": recipe.num_steps}
    return recipe.model_copy(update={"stages": (recipe.stages[-1].model_copy(update=changes),)})
