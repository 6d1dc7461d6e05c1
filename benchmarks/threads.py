"""How OpenMP threads that wait for each other get on beside other work: steps of the demo's student, by how they wait.

Each way has a process of its own, with two threads; run it on a quiet machine, and again with two busy neighbours.

    python benchmarks/threads.py
"""

import os
import statistics
import subprocess
import sys
import time

WAYS = {"as it is": {}, "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"}}
WAYS |= {f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (1_000, 3_000, 10_000)}
WAYS |= {"one thread": {"OMP_NUM_THREADS": "1"}}
SECONDS = 5.0


def measure() -> str:
    import torch

    from diffcompress.families import registry
    from diffcompress.sources.resolve import resolve
    from diffcompress.student.plan import plan
    from diffcompress.student.size import build

    reference = resolve("demo")
    family = registry.find(reference.class_name)
    student = build(family, plan(family, reference.complete_config, ratio=0.05).config, "cpu")
    noisy, timestep = torch.randn(32, 1, 28, 28), torch.arange(32)
    spent: list[float] = []
    cpu = time.process_time()
    while sum(spent) < SECONDS or len(spent) < 3:
        started = time.perf_counter()
        family.predict(student, noisy, timestep, {}).square().mean().backward()
        student.zero_grad()
        spent.append(time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / len(spent)
    return f"{1 / statistics.median(spent):.2f} steps/s, {1000 * cpu:.0f} ms of CPU time a step"


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        print(measure())
        return
    for name, wanted in WAYS.items():
        own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
        command = [sys.executable, __file__, "measure"]
        told = subprocess.run(
            command, env={**own, "OMP_NUM_THREADS": "2", **wanted}, check=True, stdout=subprocess.PIPE
        )
        print(f"| {name} | {told.stdout.decode().strip()} | {os.getloadavg()[0]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
