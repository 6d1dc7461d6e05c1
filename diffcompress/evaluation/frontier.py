"""Size against quality over several students: which are beaten by none, and a plot of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffcompress.records.evaluation import Evaluation, Measured
from diffcompress.records.metrics import Metric, full_name
from diffcompress.records.run_folder import write_atomically

# The first that all students have is plotted.
QUALITIES = ("fid", "fd", "fd_teacher", "kd", "kd_teacher", "agreement", "paired_distance", "failed_samples")
STUDENT, TEACHER = "#2563eb", "#6b7280"


def quality(results: Sequence[Evaluation]) -> str | None:
    """The metric that all `results` (of one protocol) have in common and that tells most about quality."""
    space = results[0].protocol.feature_space
    for wanted in QUALITIES:
        name = full_name(wanted, results[0].metrics, space)
        measured = [result.metrics.get(name) for result in results]
        if all(one is not None and one.value is not None for one in measured):
            return name
    return None


def unbeaten(results: Sequence[Evaluation], metric: str) -> list[bool]:
    """Whether no other result is as small and as good, and better in one of the two."""
    points = []
    for result in results:
        measured = result.metrics[metric]
        sign = 1 if measured.better == "lower" else -1
        points.append((result.metrics["params"].known, sign * measured.known))
    return [not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]


def draw(path: Path, results: Sequence[Evaluation], metric: str) -> None:
    """An SVG of `metric` over denoiser parameters with 95 % intervals; the frontier is the line."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    best = unbeaten(results, metric)
    points = []
    for result, on in zip(results, best, strict=True):
        x, one = result.metrics["params"].known, result.metrics[metric]
        y, spread = one.known, None
        if one.low is not None and one.high is not None:
            spread = [[max(0.0, y - one.low)], [max(0.0, one.high - y)]]
        face = STUDENT if on else "white"
        axes.errorbar(x, y, yerr=spread, fmt="o", color=STUDENT, mfc=face, capsize=3)
        axes.annotate(result.student.name, (x, y), (6, 6), textcoords="offset points", fontsize=8)
        points += [(x, y)] if on else []
    axes.plot(*zip(*sorted(points), strict=True), color=STUDENT, linewidth=1, zorder=0)
    shared, protocol = results[0].metrics, results[0].protocol
    if (size := shared["params"].teacher) is not None and size.value is not None:
        x, y = size.value, _of_teacher(metric, shared[metric])
        axes.axhline(y, color=TEACHER, linewidth=1, linestyle=":")
        axes.plot(x, y, marker="*", color=TEACHER, markersize=11)
        axes.annotate("teacher", (x, y), (6, 6), textcoords="offset points", fontsize=8, color=TEACHER)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("denoiser parameters, log scale")
    axes.set_ylabel(f"{metric} ({shared[metric].better} is better)")
    told = f"{protocol.num_samples:,} samples, {protocol.sampler_steps} steps, 95 % intervals"
    axes.set_title(told, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    # Ids that follow from the content, and no date: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "diffcompress", "svg.fonttype": "none"}):
        write_atomically(path, lambda part: figure.savefig(part, format="svg", metadata={"Date": None}))


def _of_teacher(name: str, measured: Measured) -> float:
    """The teacher's own value; of what compares with the teacher, that of equal models."""
    if measured.teacher is not None and measured.teacher.value is not None:
        return measured.teacher.value
    return Metric.named(name).kind.like_teacher
