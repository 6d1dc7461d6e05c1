"""Prompts, recipes, single values and gates, as people type them and worse."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz import odd
from tests.fuzz.place import Case, Place

KEYS = (
    "seed", "bank.num_samples", "bank.text_length", "bank.sample_size", "stages", "stages.0", "stages.0.num_steps",
    "stages.0.weights.lift", "training.betas", "training", "training.learning_rate", "targets.reuse", "export.onnx",
    "student.start", "description", "base", "a.b.c", "stages.9.x", ".", "..", "seed.x", "training.batch_size",
)  # fmt: skip
GATES = (
    "params<50M", "agreement>0.9", "fd<1.2*teacher", "failed_samples<=5%", "params<", "<5", "params<<5", "a<5",
    "params==1",
    "params!=1", "params=1", "params<1e999", "params<nan", "agreement>2", "params<5*", "params<5*x", "params<-5",
    "params<5 and agreement>0", "((((params<5", "params<5%", "kd<0.5*untrained", "params < 50 M", "\u2264", "params≤5",
)  # fmt: skip
BODIES = (
    "a: &a [1]\nb: *a", "x: !!python/object/apply:os.system ['touch ran']", "? [1]\n: 2", "a: 2020-02-31", "- 1\n- 2",
    "seed: 1\nseed: 2", "<<: {seed: 1}", "a: !!binary xx", "%YAML 9.9\n---\na: 1", "\t: 1", "--- 1\n--- 2",
    "base: ./r.yaml",
    "stages: []", "stages: {}", "stages: [{name: a}]", "training: null", "seed: .inf", "seed: 0o17", "seed: 1:30",
)  # fmt: skip


def recipe(random: Random, place: Place) -> Case:
    file = place.inputs / "r.yaml"
    kind = random.randrange(7)
    if kind == 0:
        file.write_text(random.choice(BODIES))
    elif kind == 1:
        file.write_bytes(odd.text_of(random, {random.choice(KEYS).split(".")[0]: odd.value(random) for _ in range(3)}))
    elif kind == 2:
        file.write_text(f"? {random.choice('xy') * random.choice((5000, 400_000))}\n: 1\n")
    elif kind == 3:
        depth = random.choice((50, 3000))
        file.write_text(random.choice(("[" * depth, "a: " + "{a: " * depth, "- " * depth)))
    elif kind == 4:
        lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
        lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        file.write_text("\n".join(lines))
    elif kind == 5:
        _strange(random, file)
    else:
        file.write_text(
            "".join(f"{key.split('.')[0]}: {random.choice(odd.TEXTS)!r}\n" for key in random.sample(KEYS, 3))
        )
    if random.random() < 0.3:
        return Case(("recipes", "show", str(file)))
    return place.plan("demo", "--recipe", str(file))


def single_values(random: Random, place: Place) -> Case:
    chosen = []
    for _ in range(random.choice((1, 1, 2, 5))):
        value = random.choice((random.choice(odd.TEXTS), repr(odd.value(random)), random.choice(BODIES)))
        key = random.choice((random.choice(KEYS), random.choice(KEYS), random.choice(odd.TEXTS)))
        chosen += [
            "--set",
            _typed(random.choice((f"{key}={value}", f"{key}={value}", key, f"={value}", f"{key}:{value}"))),
        ]
    return place.plan("demo", *chosen)


def prompts(random: Random, place: Place) -> Case:
    file = place.inputs / "p.txt"
    kind = random.randrange(6)
    if kind == 0:
        _strange(random, file)
    elif kind == 1:
        file.write_bytes(
            random.choice(
                (b"", b"\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"a\x00b", b"a\xed\xa0\x80", random.randbytes(99))
            )
        )
    elif kind == 2:
        file.write_text("x" * random.choice((20_000, 20_001, 3_000_000)))
    elif kind == 3:
        file.write_text("".join(f"prompt {i % 7}\n" for i in range(random.choice((3, 20_000)))))
    elif kind == 4:
        file.write_text("\n".join(text for text in random.sample(odd.TEXTS, 9) if text.isprintable()))
    else:
        file.write_text("a cat\na dog\n")
    teacher = place.take(random.choice(("sd", "sd", "ddpm")))
    return place.shrink(teacher, "--prompts", str(random.choice((file, file, file.parent, "gone.txt"))))


def gates(random: Random, place: Place) -> Case:
    """The model does not exist, so that nothing is sampled for gates that are right."""
    chosen = [text for gate in random.sample(GATES, random.choice((1, 1, 3))) for text in ("--gate", gate)]
    if random.random() < 0.4:
        chosen += ["--gate", _typed("".join(random.choice(odd.TEXTS[:30]) for _ in range(3)))]
    if random.random() < 0.3:
        chosen += ["--teacher", random.choice(("demo", "gone"))]
    return Case(("evaluate", "./gone", *chosen))


def _strange(random: Random, file: Path) -> None:
    """No regular file."""
    kind = random.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to(random.choice(("/dev/zero", "/dev/null", "/nowhere", file.name, "/proc/self/mem")))
    elif kind == 2:
        file.write_text("seed: 1")
        file.chmod(0)
    else:
        file.symlink_to("/dev/stdin")  # which is closed


def _typed(text: str) -> str:
    """What a command line can hold."""
    return text.replace("\x00", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
