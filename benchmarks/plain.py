"""The baseline: a typical first multi-head resnet18 in plain PyTorch.

Pillow opens and resizes photos, loader processes flip them, and Adam trains in 32 bits with the default memory layout (NCHW).
Prints one line of JSON: photos per second of wall time, including loading but not the first batch."""
import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import resnet18

NORMALISE = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
SQUEEZE = transforms.Resize((224, 224))
FLIP = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()])


class Photos(torch.utils.data.Dataset):
    "Photos with class indices; a missing label is a class of its own."

    def __init__(self, csv_path, img_dir, limit, transform):
        rows = pd.read_csv(csv_path, dtype=str).drop_duplicates("filename")
        rows = rows[[(Path(img_dir) / name).is_file() for name in rows.filename]][:limit]
        self.paths = [Path(img_dir) / name for name in rows.pop("filename")]
        codes = [pd.Categorical(column.fillna("gap")) for _, column in rows.items()]
        self.sizes = [len(code.categories) for code in codes]
        self.targets = torch.tensor([code.codes.tolist() for code in codes]).T
        self.transform = transform

    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return self.transform(Image.open(self.paths[i]).convert("RGB")), self.targets[i]


class Network(nn.Module):
    def __init__(self, sizes, frozen):
        super().__init__()
        self.body = resnet18()
        self.body.fc = nn.Identity()
        self.body.requires_grad_(not frozen)
        self.heads = nn.ModuleList(nn.Linear(512, size) for size in sizes)

    def forward(self, photos):
        features = self.body(photos)
        return [head(features) for head in self.heads]


def train(args, device):
    photos = Photos(args.csv_path, args.img_dir, args.limit, transforms.Compose([SQUEEZE, FLIP, NORMALISE]))
    loader = torch.utils.data.DataLoader(photos, args.batch_size or 24, shuffle=True, num_workers=args.num_workers)
    network = Network(photos.sizes, args.frozen).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(args.epochs):
        for batch, targets in loader:
            losses = [F.cross_entropy(logits, column) for logits, column in zip(network(batch.to(device)), targets.to(device).T)]
            loss = sum(losses) / len(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(batch)


def predict(args, device):
    photos = Photos(args.csv_path, args.img_dir, args.limit, transforms.Compose([SQUEEZE, NORMALISE]))
    size = args.batch_size or 1
    loader = torch.utils.data.DataLoader(photos, size, num_workers=args.num_workers if size > 1 else 0)
    network = Network(photos.sizes, True).to(device).eval()
    with torch.no_grad():
        for batch, _ in loader:
            for logits in network(batch.to(device)): logits.argmax(1).cpu()
            yield len(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "predict"])
    parser.add_argument("--csv_path", required=True)
    parser.add_argument("--img_dir", required=True)
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = {"train": train, "predict": predict}[args.what](args, device)
    next(batches)
    start = time.perf_counter()
    photos = sum(batches)
    print(json.dumps({"photos_per_second": photos / (time.perf_counter() - start)}))


if __name__ == "__main__": main()
