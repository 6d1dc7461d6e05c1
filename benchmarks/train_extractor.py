"""Train the demo's feature extractor and write the real images' statistics, which `fd_demo` and `kd_demo` measure to.

A classifier of the 60,000 Fashion-MNIST training images; the 10,000 test images are only looked at when it is done.
Seeded; ten minutes on one busy thread. Writes extractor.safetensors and reference.safetensors, and prints one JSON
line: test accuracy and the distances of real images to real images, the floor under every fd_demo.

    python benchmarks/train_extractor.py
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from benchmarks import fashion_mnist
from diffcompress.evaluation.features import Extractor, FeatureSpace
from diffcompress.evaluation.frechet import Moments, frechet_distance, kernel_distance
from diffcompress.records.fingerprints import sha256

SEED = 0
BATCH_SIZE = 128
NUM_EPOCHS = 6
LEARNING_RATE = 4e-3
NUM_FEATURES_KEPT = 2048


def train(images: torch.Tensor, labels: torch.Tensor) -> Extractor:
    torch.manual_seed(SEED)
    extractor = Extractor().train()
    num_steps = NUM_EPOCHS * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    for epoch in range(NUM_EPOCHS):
        stream = torch.Generator().manual_seed(SEED + epoch)
        order, flips = torch.randperm(len(images), generator=stream), torch.rand(len(images), generator=stream) < 0.5
        for start in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
            index = order[start : start + BATCH_SIZE]
            batch = torch.where(flips[index].view(-1, 1, 1, 1), images[index].flip(-1), images[index])
            loss = functional.cross_entropy(extractor(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(json.dumps({"epoch": epoch + 1, "loss": round(loss.item(), 4)}), flush=True)
    return extractor.eval()


def write(extractor: Extractor, folder: Path) -> dict[str, object]:
    """Write both files; returns what is printed: test accuracy and distances of real images to real images."""
    test_images, test_labels = fashion_mnist.load("test")
    with torch.no_grad():
        predicted = torch.cat([extractor(part).argmax(1) for part in test_images.split(500)])
    accuracy = (predicted == test_labels).double().mean().item()

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "extractor.safetensors"
    about = {"data": "Fashion-MNIST train, MIT licence", "test_accuracy": f"{accuracy:.4f}"}
    save_file(extractor.state_dict(), file, metadata=about)
    space = FeatureSpace("demo", sha256(file), extractor)
    features = {"train": space.features(fashion_mnist.load("train")[0]), "test": space.features(test_images)}
    tensors = {}
    for split, values in features.items():
        moments = Moments.of(values)
        kept = torch.randperm(len(values), generator=torch.Generator().manual_seed(SEED))[:NUM_FEATURES_KEPT]
        tensors[f"{split}_mean"], tensors[f"{split}_covariance"] = moments.mean, moments.covariance
        tensors[f"{split}_features"] = values[kept].half()
    stamp = {"extractor_sha256": space.digest, "data": "Fashion-MNIST, MIT licence"}
    save_file(tensors, folder / "reference.safetensors", metadata=stamp)

    train_moments, test = Moments.of(features["train"]), features["test"]
    shuffled = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))]
    noise = space.features(torch.randn(2048, 1, 28, 28, generator=torch.Generator().manual_seed(SEED)))
    return {
        "test_accuracy": accuracy,
        "extractor_bytes": file.stat().st_size,
        "fd_train_vs_test": frechet_distance(test, train_moments).value,
        "fd_train_vs_2048_test": frechet_distance(shuffled[:2048], train_moments),
        "fd_2048_test_vs_rest": frechet_distance(shuffled[:2048], Moments.of(shuffled[2048:])),
        "kd_2048_test_vs_2048_train": kernel_distance(shuffled[:2048], tensors["train_features"]),
        "fd_pure_noise": frechet_distance(noise, train_moments).value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "diffcompress" / "demo")
    options = parser.parse_args()
    os.nice(5)
    torch.set_num_threads(1)
    print(json.dumps(write(train(*fashion_mnist.load("train")), options.output)))


if __name__ == "__main__":
    main()
