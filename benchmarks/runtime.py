"""What an exported tagger saves: `python benchmarks/runtime.py --model runs/first --img_dir photos`.

Exports the tagger for ONNX Runtime and OpenVINO. `deep_fashion tag` of one photo and of many is then measured with each and with the
original, in processes of their own, one after the other and several times: start-up (the time for one photo), the time for every
further photo, also as that of all cores together, and peak memory (Linux only). The table shows the least of each,
and in brackets the ratio to PyTorch. Writes `runtime.json` to `--out`."""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENGINES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
# The peak that `resource` knows counts the process that this one was forked from.
TAG = """
import re, sys, time
from deep_fashion.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], time.process_time())
sys.exit(status)
"""


def tagged(model, photos):
    "Seconds, seconds of the processor, and peak memory in MiB of tagging the folder `photos`."
    with tempfile.TemporaryDirectory() as folder:
        words = ["tag", "--model", model, "--img_dir", photos, "--out_csv", f"{folder}/tags.csv"]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", TAG, *map(str, words)], capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode: sys.exit(done.stderr[-2000:])
    memory, of_processor = done.stdout.split()[-2:]
    return seconds, float(of_processor), int(memory) / 1024


def summary(runs, n):
    "What the least of several measurements amounts to: other work on the machine only adds."
    (start_up, processor_start_up, of_one), (seconds, processor, of_all) = ([min(o) for o in zip(*runs[part])] for part in ("one", "many"))
    return {
        "start-up, s": start_up,
        "MiB, one photo": of_one,
        "ms per further photo": 1000 * (seconds - start_up) / (n - 1),
        "ms of a core": 1000 * (processor - processor_start_up) / (n - 1),
        "MiB, all photos": of_all,
    }


def as_table(found):
    "In brackets the ratio to PyTorch."
    base = found["torch"]
    lines = ["| engine | " + " | ".join(base) + " |", "|---" * (len(base) + 1) + "|"]
    for engine, of_engine in found.items():
        cells = [f"{value:.4g}" + ("" if engine == "torch" else f" ({value / base[name]:.2f})") for name, value in of_engine.items()]
        lines.append(f"| {ENGINES[engine]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--img_dir", required=True)
    parser.add_argument("--limit", type=int, default=200, help="photos (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    from deep_fashion.predict.export import export_tagger
    from deep_fashion.predict.photo_list import photo_names

    names = photo_names(args.img_dir)[: args.limit]
    with tempfile.TemporaryDirectory() as folder:
        folder, models = Path(folder), {"torch": args.model}
        for engine in ("onnx", "openvino"):
            models[engine] = folder / engine
            comparison = export_tagger(model=args.model, img_dir=args.img_dir, out=folder / engine, format=engine, photos=args.limit)
            print(f"{engine}:\n{comparison}", file=sys.stderr)
        for i, name in enumerate(names):
            for part in ("one", "many")[i > 0 :]:
                (folder / part).mkdir(exist_ok=True)
                shutil.copy(Path(args.img_dir) / name, folder / part / f"{i}{Path(name).suffix}")
        runs = {engine: {"one": [], "many": []} for engine in ENGINES}
        for _ in range(args.repeats):
            for engine, model in models.items():
                for part, found in runs[engine].items(): found.append(tagged(model, folder / part))
    found = {engine: summary(of_engine, len(names)) for engine, of_engine in runs.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "runtime.json").write_text(json.dumps({"photos": len(names), "runs": runs, "summary": found}, indent=1) + "\n")
    print(as_table(found))


if __name__ == "__main__": main()
