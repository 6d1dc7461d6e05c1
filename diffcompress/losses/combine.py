"""The total loss of a step, and what the log gets to see of it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .reduction import Scalar
from .terms import LossTerms


def combine(
    terms: Mapping[str, LossTerms | Scalar], weights: Mapping[str, float] | None = None
) -> tuple[Scalar, dict[str, Scalar]]:
    """The sum of `weights[name] * terms[name]`, and a flat dict of detached 0-d tensors for the log.

    In the log `loss` is the total, everything else unweighted. A scalar term (`output_kd`, `feature_kd`, `diffusion`,
    `variance_kd`) has its name; a LIFT or PLACE term gives `coarse`, `fine`, `fine_weight`, `slope` (mean) and
    `intercept` (mean of absolute values). A term without a weight weighs 1; one of weight 0 is logged only. Raises
    ValueError for no terms, for more than one LossTerms, and for a weight other than 0 whose term is missing.
    """
    weights = weights or {}
    missing = sorted(name for name, weight in weights.items() if name not in terms and weight != 0)
    if missing:
        raise ValueError(f"weights for terms that are not there: {', '.join(missing)}")
    if not terms:
        raise ValueError("no loss terms to combine")
    if sum(isinstance(term, LossTerms) for term in terms.values()) > 1:
        raise ValueError(f"at most one of the terms can be LIFT or PLACE, got {', '.join(terms)}")

    log: dict[str, Tensor] = {}
    losses = []
    for name, term in terms.items():
        loss = term.loss if isinstance(term, LossTerms) else term
        weight = weights.get(name, 1.0)
        if weight != 0:
            losses.append(weight * loss)
        log |= _details(term) if isinstance(term, LossTerms) else {name: term}
    if not losses:
        raise ValueError(f"all terms have weight 0: {', '.join(terms)}")
    total = torch.stack(losses).sum()
    return total, {name: value.detach() for name, value in {"loss": total, **log}.items()}


def _details(terms: LossTerms) -> dict[str, Scalar]:
    return {
        "coarse": terms.coarse,
        "fine": terms.fine,
        "fine_weight": terms.fine_weight,
        "slope": terms.slope.mean(),
        "intercept": terms.intercept.abs().mean(),
    }
