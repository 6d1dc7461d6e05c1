"""What lies in a teacher's folder beside the teacher: links out of it, loops, pipes, notes, cards and licences."""

from __future__ import annotations

import os
import shutil
from random import Random

from tests.fuzz import odd
from tests.fuzz.place import Case, Place

CARDS = (
    "---\nlicense: mit\n---\n", "---\nlicense: [mit, apache-2.0]\n---\n",
    "---\ntitle: a: b\nlicense: cc-by-nc-4.0\n---\n",
    "\ufeff---\nlicense: mit\n---\n", "---\nlicense: &a mit\nother: *a\n---\n", "---\nlicense: 2020-02-31\n---\n",
    "license: mit", "---\n" + "[" * 3000, "---\nlicense:\n  - mit\n---\n",
    "---\nlicense: other\nlicense_name: x\n---\n",
    "---\nlicense: \x1b[31mmit\n---\n", "", "# only words",
)  # fmt: skip


def make(random: Random, place: Place) -> Case:
    teacher = place.take(random.choice(("ddpm", "classes", "sd", "dit")))
    more: list[str] = []
    for _ in range(random.choice((1, 1, 2, 3))):
        part = random.choice([path for path in sorted(teacher.iterdir()) if path.is_dir() and not path.is_symlink()])
        kind = random.randrange(9)
        if kind == 0:
            target = random.choice((place.outside, place.outside / "secret.txt", teacher, part, "/etc", "/dev/zero"))
            name = random.choice(("notes.txt", "LICENSE", "config.json", "extra", "README.md"))
            (part / name).unlink(missing_ok=True)
            (part / name).symlink_to(target)
        elif kind == 1:
            outside = place.outside / f"{part.name}.{random.random()}"
            shutil.move(part, outside)
            part.symlink_to(outside)
        elif kind == 2:
            os.mkfifo(
                part / f"{random.choice(('README.md', 'prompts.txt', 'merges', 'vocab.txt', 'x'))}.{random.random()}"
            )
        elif kind == 3:
            file = random.choice((teacher / "README.md", teacher / "LICENSE"))
            file.unlink(missing_ok=True)
            os.mkfifo(file)
        elif kind == 4:
            text = random.choice(CARDS)
            (teacher / "README.md").unlink(missing_ok=True)
            (teacher / "README.md").write_bytes(text.encode() + random.choice((b"", b"\xe9")))
            more += random.choice(((), ("--license", "mit"), ("--license", random.choice(odd.TEXTS))))
        elif kind == 5:
            (teacher / "prompts.txt").write_bytes(random.choice((b"mine", b"\xff", b"")))
        elif kind == 6:
            shutil.rmtree(part)
        elif kind == 7:
            odd.damage(random, random.choice([file for file in sorted(teacher.rglob("*")) if file.is_file()]))
        else:
            (part / os.fsdecode(random.choice((b"n\xff", b"a\nb", b"-x", b" ")))).write_text("x")
        if not any(path.is_dir() and not path.is_symlink() for path in teacher.iterdir()):
            break
    if more:
        return place.shrink(teacher, *more)
    name = random.choice((str(teacher), f"{teacher}/", os.path.relpath(teacher, place.work), str(teacher / "unet")))
    return place.either(random, name)
