"""anomalib's PatchCore on the same images, by an interpreter that has anomalib.

Run by `benchmarks.quality --peer PYTHON`, with that interpreter: imports nothing of this project. One model a
category, through anomalib's own engine: `python peer.py REQUEST.json` reads backbone, weights and images from
the request, and writes each category's scores and maps beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import anomalib
import numpy as np
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms import v2


def main() -> None:
    """Fit and predict every category of the request."""
    path = Path(sys.argv[1])
    request = json.loads(path.read_text())
    torch.set_num_threads(request["threads"])
    for number, (name, images) in enumerate(request["categories"].items()):
        found = judge(request, images, path.parent / f"run-{number}")
        np.savez(path.parent / f"{number}.npz", version=anomalib.__version__, **found)
        print(f"anomalib's PatchCore: {name}", flush=True)


def judge(request: dict, images: dict, folder: Path) -> dict[str, np.ndarray]:
    """Scores [n], maps [n, H, W] and milliseconds an image of the test images, and the model's megabytes."""
    torch.manual_seed(request["seed"])
    side = tuple(request["input_size"])
    transform = v2.Compose(
        [v2.Resize(side, antialias=True), v2.Normalize(request["mean"], request["std"])]
    )
    model = Patchcore(
        backbone=request["backbone"],
        layers=request["layers"],
        pre_trained=False,
        pre_processor=PreProcessor(transform=transform),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    weights = torch.load(request["weights"], weights_only=True)
    backbone = model.model.feature_extractor.feature_extractor
    loaded = backbone.load_state_dict(
        weights, strict=False
    )  # blocks after the last layer are not read
    if loaded.unexpected_keys or not weights:
        raise SystemExit(f"weights of another backbone: {loaded.unexpected_keys[:3]}")
    for kind in ("normal", "test"):
        (folder / kind).mkdir(parents=True)
        for number, file in enumerate(images[kind]):
            (folder / kind / f"{number:06d}{Path(file).suffix}").symlink_to(file)
    data = Folder(
        name="peer",
        root=folder,
        normal_dir="normal",
        train_batch_size=8,
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
    )
    engine = Engine(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder / "engine",
        logger=False,
        limit_val_batches=0,
    )
    engine.fit(model, datamodule=data)
    started_at = time.perf_counter()
    batches = engine.predict(model, dataset=PredictDataset(folder / "test"))
    seconds = time.perf_counter() - started_at
    items = sorted((item for batch in batches for item in batch), key=lambda item: item.image_path)
    bank = model.model.memory_bank
    count = sum(value.numel() for value in weights.values())
    return {
        "scores": np.array([float(item.pred_score) for item in items]),
        "maps": np.stack([item.anomaly_map.squeeze().numpy() for item in items]).astype(np.float32),
        "milliseconds": np.array(1000 * seconds / len(items)),
        "megabytes": np.array(4 * (bank.numel() + count) / 1e6),
    }


if __name__ == "__main__":
    main()
