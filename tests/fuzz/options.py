"""Options and places: numbers, devices, outputs that are taken, teachers that are none."""

from __future__ import annotations

import os
from random import Random

from tests.fuzz import odd
from tests.fuzz.place import Case, Place
from tests.fuzz.texts import _typed

NUMBERS = (
    "0.4",
    "0.0001",
    "0.99",
    "0",
    "1",
    "-1",
    "2",
    "nan",
    "inf",
    "1e-400",
    "0.4,0.2",
    "0.4,",
    ",",
    "0,4",
    "40%",
    "½",
)
SIZES = ("30k", "40M", "1", "0", "-5", "1e3", "1e400", "5 apples", "80MB", "80MiB", "1k k", "9" * 400, "0.5")
PLACES = (
    "out",
    "./out",
    "a/b/c",
    ".",
    "..",
    "/proc/x",
    "pipe",
    "device",
    "x" * 300,
    "file",
    "full",
    "link",
    "loop",
)


def make(random: Random, place: Place) -> Case:
    (place.work / "file").write_text("mine")
    (place.work / "full").mkdir()
    (place.work / "full" / "thesis.txt").write_text("years of work")
    (place.work / "link").symlink_to(place.outside)
    (place.work / "loop").symlink_to("loop")
    os.mkfifo(place.work / "pipe")
    (place.work / "device").symlink_to("pipe")
    teacher = random.choice((str(place.take("ddpm")), "demo", *(_typed(random.choice(odd.TEXTS)) for _ in range(3))))
    command = random.choice(("plan", "plan", "shrink", "shrink", "evaluate", "report", "recipes"))
    if command == "report":
        return Case(("report", _typed(random.choice((*PLACES, *odd.TEXTS)))))
    if command == "recipes":
        return Case(
            ("recipes", random.choice(("list", "show", "x")), *random.choice(((), (_typed(random.choice(odd.TEXTS)),))))
        )
    chosen: list[str] = []
    if command != "evaluate":
        chosen += random.choice((["--ratio", random.choice(NUMBERS)], ["--params", random.choice(SIZES)]))
        chosen += random.choice(
            ([], [], ["--size", random.choice(SIZES)], ["--dtype", random.choice(("fp16", "x", "float64"))])
        )
    if command == "shrink":
        for option, values in (
            ("--output", PLACES), ("--max-time", ("1s", "0s", "x", "1e9d", "5", "-1s")), ("--method", ("none",
            "x", "")),
            ("--seed", ("0", "-1", "9" * 30, "x")), ("--device", ("cpu", "cuda", "cuda:7", "tpu", "")),
            ("--push-to-hub", ("a/b", "a", "a/b/c", "a/b@c", " ")), ("--data", odd.TEXTS), ("--scheduler",
            ("gone", "file")),
            ("--license", ("mit", "a b", "")), ("--prompts", ("file", "gone")),
        ):  # fmt: skip
            if option == "--output" or random.random() < 0.2:
                chosen += [option, _typed(random.choice(values))]
        chosen += random.choice(([], [], ["--overwrite"], ["--public"], ["--offline"]))
    if command == "evaluate":
        chosen += [
            "--output",
            random.choice(("out", "file", "/proc/x", "loop")),
            "--num-samples",
            random.choice(("2", "0", "x")),
        ]
        chosen += random.choice(
            ([], ["--teacher", _typed(random.choice(odd.TEXTS))], ["--junit", random.choice(PLACES)])
        )
        chosen += random.choice(([], ["--feature-weights", random.choice(("file", "gone", ".", "/dev/zero"))]))
    if random.random() < 0.05:
        chosen.append(random.choice(("--bogus", "-x", "--json", "--quiet", os.fsdecode(b"--\xff"))))
    output = chosen[chosen.index("--output") + 1] if "--output" in chosen else None
    folder = place.work / output if output else None
    seen = folder / ("cache" if command == "evaluate" else "bank") if folder and not os.path.islink(folder) else None
    return Case((command, teacher, *chosen), seen or place.work / "ddpm-0.4" / "bank")
