"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/): momentum, made orthogonal before it is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from diffcompress.runtime import exact_float32

MOMENTUM = 0.95
# Newton-Schulz: five rounds of a x + b (x x') x + c (x x')^2 x bring singular values from 1e-2 up to 0.7 .. 1.2.
ROUNDS, A, B, C = 5, 3.4445, -4.7750, 2.0315
# Gram matrices of two sizes go as those of the larger size where that adds at most this share to the work on them.
PADDING = 0.1
# Elements that are worked on at once, beside some copies of them: large students take launches in place of memory.
TOGETHER = 1 << 28
Grams = Float[Tensor, "matrices side side"]


@dataclass(frozen=True)
class _Alike:
    """Weights of one shape as matrices; their Gram matrices are of `size` by `size`."""

    weights: tuple[Tensor, ...]
    rows: int
    columns: int
    size: int

    @property
    def side(self) -> int:
        return min(self.rows, self.columns)

    @property
    def numel(self) -> int:
        return len(self.weights) * self.rows * self.columns

    def parts(self, most: int) -> list[_Alike]:
        """Of `most` elements at most, or of a single weight."""
        count = max(1, most // (self.rows * self.columns))
        starts = range(0, len(self.weights), count)
        return [replace(self, weights=self.weights[start : start + count]) for start in starts]


class Muon:
    """For weights that act as matrices: `[rows, ...]`, flattened behind the rows. All of them have gradients.

    `torch.optim.Muon` orthogonalises in bfloat16, weight by weight. Its rounding, amplified five hundred times, fills
    the directions that have no gradient, so that one and two processes part after one step. Here it is float32, in few
    launches however many weights there are: moments are one flat tensor, and what the rounds make of a matrix is a
    polynomial of its Gram matrix times itself, so that matrices of different widths go together, up to `TOGETHER`
    elements. Updates are as large as AdamW's, so that both take learning rates of one size (arXiv 2502.16982).
    """

    def __init__(self, weights: Iterable[Tensor], weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self._given = list(weights)
        self._stretches = [_Stretch(groups) for groups in _stretches(_grouped(self._given))]

    @torch.no_grad()
    def step(self, learning_rate: float, finite: Tensor) -> None:
        """One update. Where `finite` (bool, 0-d) is False, weights and moments stay as they are."""
        for stretch in self._stretches:
            moves = stretch.moves(finite)
            weights = [_flat(weight) for weight in stretch.weights]
            if self.weight_decay:
                torch._foreach_mul_(weights, 1 - learning_rate * self.weight_decay * finite)
            torch._foreach_sub_(weights, moves, alpha=learning_rate)

    def tensors(self) -> dict[int, dict[str, Tensor]]:
        """The moment of each weight, shaped as it, by its number in the order given."""
        own = {id(weight): part for stretch in self._stretches for weight, part in stretch.moments()}
        return {
            number: {"moment": own[id(weight)].as_strided(weight.shape, weight.stride())}
            for number, weight in enumerate(self._given)
        }

    def load(self, tensors: Mapping[int, Mapping[str, Tensor]]) -> None:
        """What `tensors` gave, for weights of the same shapes."""
        for number, own in self.tensors().items():
            own["moment"].copy_(tensors[number]["moment"])


class _Stretch:
    """Weights that are worked on together, and their moments, end to end in one flat tensor."""

    def __init__(self, groups: list[_Alike]) -> None:
        self.groups = groups
        self.weights = [weight for group in groups for weight in group.weights]
        self._lengths = [weight.numel() for weight in self.weights]
        self._moment = torch.zeros(sum(self._lengths), device=self.weights[0].device)
        sizes = [0.2 * max(group.rows, group.columns) ** 0.5 for group in groups for _ in group.weights]
        self._sizes = torch.tensor(sizes, device=self._moment.device)

    def moments(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Of each weight."""
        return zip(self.weights, self._moment.split(self._lengths), strict=True)

    def moves(self, finite: Tensor) -> tuple[Tensor, ...]:
        """What each weight moves by at a learning rate of 1, flat; nothing where `finite` is False."""
        gradient = torch.cat([_flat(_laid_as(weight, weight.grad)) for weight in self.weights])
        gradient.masked_fill_(~finite, 0.0)
        self._moment.mul_(torch.where(finite, MOMENTUM, 1.0)).add_(gradient)
        ahead = gradient.add_(self._moment, alpha=MOMENTUM)
        with exact_float32():
            return self._orthogonal(ahead, self._sizes * finite).split(self._lengths)

    def _orthogonal(self, flat: Tensor, factors: Tensor) -> Tensor:
        """Each matrix of `flat`, its singular values brought near 1, times its factor; those below a thousandth of its
        norm stay small."""
        norms = torch.stack(torch._foreach_norm(flat.split(self._lengths))).clamp(min=1e-12)
        matrices = self._matrices(flat)
        found = torch.empty_like(flat)
        places = self._matrices(found)
        first = 0
        for size in dict.fromkeys(group.size for group in self.groups):
            members = [(g, x, y) for g, x, y in zip(self.groups, matrices, places, strict=True) if g.size == size]
            count = sum(len(x) for _, x, _ in members)
            rows = slice(first, first + count)
            grams = flat.new_zeros(count, size, size)
            parts = grams.split([len(x) for _, x, _ in members])
            for (group, x, _), part in zip(members, parts, strict=True):
                torch.bmm(x, x.mT, out=part[:, : group.side, : group.side])
            grams /= norms[rows].square()[:, None, None]
            powers = polynomial(grams).mul_((factors[rows] / norms[rows])[:, None, None])
            for (group, x, y), part in zip(members, powers.split([len(x) for _, x, _ in members]), strict=True):
                torch.bmm(part[:, : group.side, : group.side], x, out=y)
            first += count
        return found

    def _matrices(self, flat: Tensor) -> list[Tensor]:
        """A view `[count, rows, columns]` of each group's part of `flat`; never taller than wide."""
        parts = flat.split([group.numel for group in self.groups])
        shaped = [part.view(-1, g.rows, g.columns) for g, part in zip(self.groups, parts, strict=True)]
        return [x if x.shape[1] <= x.shape[2] else x.mT for x in shaped]


def polynomial(gram: Grams) -> Grams:
    """p(g) of Gram matrices `[N, n, n]` of norm 1 at most, so that p(x x') x is x after all rounds."""
    found = None
    for _ in range(ROUNDS - 1):
        step = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        found = _times(step, found)
        half = torch.baddbmm(gram, step, gram, beta=A)
        gram = torch.baddbmm(half, half, step, beta=A)
    return _times(torch.baddbmm(gram, gram, gram, beta=B, alpha=C), found)


def _times(step: Grams, found: Grams | None) -> Grams:
    """(a + step) found; nothing found yet is the identity."""
    if found is not None:
        return torch.baddbmm(found, step, found, beta=A)
    found = step.clone()
    found.diagonal(dim1=1, dim2=2).add_(A)
    return found


def _grouped(weights: Iterable[Tensor]) -> list[_Alike]:
    """Weights of one shape together, those of one Gram size one after another."""
    alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for weight in weights:
        rows, columns = weight.flatten(1).shape
        alike[rows, columns].append(weight)
    sizes = _padded([(min(shape), len(found)) for shape, found in alike.items()])
    groups = [_Alike(tuple(found), *shape, sizes[min(shape)]) for shape, found in alike.items()]
    return sorted(groups, key=lambda group: group.size)


def _stretches(groups: Iterable[_Alike]) -> list[list[_Alike]]:
    """`groups` in order, together up to `TOGETHER` elements."""
    found: list[list[_Alike]] = []
    room = 0
    for part in (part for group in groups for part in group.parts(TOGETHER)):
        if not found or part.numel > room:
            found.append([])
            room = TOGETHER
        found[-1].append(part)
        room -= part.numel
    return found


def _padded(sides: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The size that Gram matrices of each side are worked on as, from pairs of side and count."""
    counts: dict[int, int] = defaultdict(int)
    for side, count in sides:
        counts[side] += count
    allowed = PADDING * sum(count * side**3 for side, count in counts.items())
    found = {side: side for side in counts}
    for side, larger in zip(sorted(counts), sorted(counts)[1:], strict=False):
        together = sum(counts[one] for one, size in found.items() if size == side)
        cost = together * (larger**3 - side**3)
        if cost <= allowed:
            allowed -= cost
            found = {one: larger if size == side else size for one, size in found.items()}
    return found


def _laid_as(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """`gradient` in its weight's order in memory, which it has but for odd backward passes."""
    assert gradient is not None
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _flat(tensor: Tensor) -> Tensor:
    """All elements as they lie in memory, row after row: columns in another order are orthogonal just as well."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
