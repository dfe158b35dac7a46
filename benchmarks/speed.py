"""How many times as fast as plain PyTorch: `python benchmarks/speed.py [--csv_path CSV --img_dir DIR]`.

Every figure is the ratio of two measurements made one after the other. Each pair is repeated several times; the table shows the
median and the range. Writes `speed.json` and `speed.png` to `--out`. Without a table, sample photos are drawn."""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent


def measured(script, *words):
    "The result of a measurement that runs in its own process."
    done = subprocess.run([sys.executable, HERE / script, *map(str, words)], capture_output=True, text=True)
    if done.returncode: sys.exit(f"{script} {' '.join(map(str, words))} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(*command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def ratio(title, ours, plain, pairs):
    "Median, lowest and highest ratio of `ours` to `plain` over paired measurements."
    found = []
    for _ in range(pairs):
        base, fast = plain(), ours()
        found.append({"plain": base, "ours": fast, "ratio": fast / base})
        print(f"  {title}: {fast:.1f} / {base:.1f} = {fast / base:.2f}", file=sys.stderr)
    ratios = [pair["ratio"] for pair in found]
    return {"what": title, "ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios), "pairs": found}


def rows_of(args, folder):
    "All comparisons."
    photos = ("--csv_path", args.csv_path, "--img_dir", args.img_dir)
    limit = ("--limit", args.limit)
    measured("ours.py", "export", *photos, "--model", folder)
    better = max(
        (1, 32), key=lambda size: measured("plain.py", "predict", *photos, "--limit", 300, "--batch_size", size)["photos_per_second"]
    )

    def plain(*words): return lambda: measured("plain.py", *words, *photos, *limit)["photos_per_second"]
    def ours(*words): return lambda: measured("ours.py", *words, *photos, *limit)["photos_per_second"]

    yield ratio("training, all layers", ours("train", "--cache", folder / "cache"), plain("train"), args.pairs)
    # All frozen epochs of the baseline take the same time, so that two are enough to measure the rate.
    yield ratio(
        "training, frozen body, 20 epochs",
        ours("frozen", "--epochs", 20, "--cache", folder / "cache"),
        plain("train", "--frozen", "--epochs", 2),
        args.pairs,
    )
    for title, name in (
        ("tagging, PyTorch", "pytorch"),
        ("tagging, OpenVINO, 16 bits if possible", "bfloat16"),
        ("tagging, OpenVINO, 8 bits", "int8"),
    ):
        yield ratio(title, ours("tag", "--model", folder / f"{name}.pkl"), plain("predict", "--batch_size", better), args.pairs)
    command = [sys.executable, "-c", "from deep_fashion.cli import main; main(['--help'])"]
    yield ratio(
        "deep_fashion --help, rate beside importing fastai",
        lambda: 1 / seconds_of(*command),
        lambda: 1 / seconds_of(sys.executable, "-c", "import fastai.vision.all"),
        args.pairs,
    )


def as_table(rows):
    lines = ["| what | times as fast | range |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['ratio']:.1f} | {row['lowest']:.1f} to {row['highest']:.1f} |" for row in rows]
    return "\n".join(lines)


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    names, values = [row["what"] for row in rows], [row["ratio"] for row in rows]
    spread = [[row["ratio"] - row["lowest"] for row in rows], [row["highest"] - row["ratio"] for row in rows]]
    # On a logarithmic axis, bars begin at the baseline: as fast as plain PyTorch.
    bars = ax.barh(names, [value - 1 for value in values], left=1, xerr=spread, color="#4c72b0", ecolor="#333333", capsize=3)
    ax.bar_label(bars, [f"{value:.1f}x" for value in values], padding=10)
    ax.axvline(1, color="#333333", linewidth=1)
    ax.set(
        xscale="log",
        xlabel="times as fast as plain PyTorch\n(for --help: as importing fastai)",
        xlim=(0.8, max(row["highest"] for row in rows) * 2),
    )
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick < ax.get_xlim()[1]]
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def processor():
    "The name of the processor, if the system reports it."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv_path", help="table with a column filename and one column per attribute (default: sample photos are drawn)")
    parser.add_argument("--img_dir")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of measurements per figure (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=600, help="photos per measurement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if bool(args.csv_path) != bool(args.img_dir): parser.error("--csv_path and --img_dir have to be given together")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if not args.csv_path:
            from deep_fashion.data.samples import make_samples

            make_samples(folder / "samples", n=args.limit)
            args.csv_path, args.img_dir = folder / "samples" / "attributes.csv", folder / "samples" / "images"
        rows = list(rows_of(args, folder))
    args.out.mkdir(parents=True, exist_ok=True)
    import torch

    facts = {
        "processor": processor(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "pairs": args.pairs,
        "photos": args.limit,
    }
    (args.out / "speed.json").write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    plot(rows, args.out / "speed.png")
    print(as_table(rows))


if __name__ == "__main__": main()
