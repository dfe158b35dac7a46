"""Tagging on Ray where machines fail, and how much memory it takes: `python benchmarks/ray_tagging.py nodes` or `memory`.

`nodes` starts a cluster of two nodes of one core on this machine, tags `--rows` rows, kills the process of a worker, then removes a
node, and compares the tags with those of one machine. `memory` tags lists of `--rows` rows (several numbers) that name a few small
photos again and again, and prints the largest memory of the driver and of all workers, each as the sum of what no other process shares.
Both take an exported tagger of sample photos, which is made first."""
import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
from kills import tagger_in

from deep_fashion.data.samples import make_samples
from deep_fashion.predict.export import export_tagger
from deep_fashion.predict.ray_tags import tag_with_ray
from deep_fashion.predict.tags import tag

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
WORKER = "MapWorker(MapBatches(PartWorker))"


def workers():
    "The processes of this program's cluster that tag."
    found = []
    for process in psutil.Process().children(recursive=True):
        try: name = " ".join(process.cmdline())
        except psutil.Error: continue
        if WORKER in name: found.append(process)
    return found


def prepared(folder):
    "An exported tagger and a folder of photos, one of them damaged."
    samples = make_samples(folder / "samples", n=20, faults=True)
    export_tagger(model=tagger_in(folder), img_dir=samples / "images", out=folder / "exported", photos=5)
    return folder / "exported", samples / "images"


def list_of(rows, photos, path):
    "A Parquet table that names the photos again and again."
    names = sorted(o.name for o in photos.iterdir())
    pd.DataFrame(dict(filename=(names * (rows // len(names) + 1))[:rows])).to_parquet(path)
    return path


def parts_in(out): return len(list(out.glob("work/done-*.json")))


def nodes(folder, rows):
    "A worker killed and a node removed."
    import ray
    from ray.cluster_utils import Cluster
    model, photos = prepared(folder)
    table, out, said = list_of(rows, photos, folder / "list.parquet"), folder / "out", []
    pd.read_parquet(table).to_csv(folder / "list.csv", index=False)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, object_store_memory=2**28))
    second = cluster.add_node(num_cpus=1, object_store_memory=2**28)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)

    def harm():
        while parts_in(out) < 2: time.sleep(.05)
        victim = workers()[0]
        victim.kill()
        said.append(f"killed process {victim.pid} after {parts_in(out)} parts")
        while parts_in(out) < rows // 100 // 2: time.sleep(.05)
        said.append(f"removed a node after {parts_in(out)} parts")
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=harm, daemon=True).start()
    start = time.perf_counter()
    found = tag_with_ray(model=model, img_dir=photos, csv_path=table, out_dir=out, engine="ray", part_rows=100)
    seconds = time.perf_counter() - start
    ray.shutdown()
    cluster.shutdown()
    tag(model=model, img_dir=photos, csv_path=folder / "list.csv", out_csv=folder / "tags.csv")
    tags = pd.read_parquet(out / "tags")
    local = pd.read_csv(folder / "tags.csv", dtype={a: str for a, kind in tags.dtypes.items() if kind.kind != "f"})
    pd.testing.assert_frame_equal(tags, local, check_dtype=False)
    errors, local_errors = pd.read_csv(out / "errors.csv"), pd.read_csv(folder / "tags.errors.csv")
    assert errors.equals(local_errors)
    print(*said, sep="; ")
    print(f"{found.photos:,} tagged, {found.unreadable} unreadable, all as on one machine, in {seconds:.0f} s")


def mebibytes(process):
    "Memory that no other process shares."
    try: return process.memory_full_info().uss / 2**20
    except psutil.Error: return 0


def memory(folder, rows):
    "The largest memory of driver and workers, per length of the list."
    model, photos = prepared(folder)
    (photos / "broken.jpg").unlink()
    print("| rows | parts | seconds | rows/s while tagging | driver, MiB at the start and at most | workers together, MiB at most |")
    print("|---|---|---|---|---|---|", flush=True)
    for n in rows:
        out, driver, stop = folder / f"out{n}", [], threading.Event()
        table, of_workers, times = list_of(n, photos, folder / f"{n}.parquet"), [0], []

        def watch(out=out, driver=driver, of_workers=of_workers, times=times, stop=stop):
            while not stop.wait(1):
                driver.append(mebibytes(psutil.Process()))
                of_workers.append(sum(map(mebibytes, workers())))
                times.append((time.perf_counter(), parts_in(out)))

        before = mebibytes(psutil.Process())
        threading.Thread(target=watch, daemon=True).start()
        start = time.perf_counter()
        tag_with_ray(model=model, img_dir=photos, csv_path=table, out_dir=out, engine="ray", part_rows=1000)
        seconds = time.perf_counter() - start
        stop.set()
        busy = [(t, parts) for t, parts in times if parts]
        rate = (busy[-1][1] - busy[0][1]) * 1000 / (busy[-1][0] - busy[0][0]) if len(busy) > 1 else float("nan")
        memory_used = f"{before:.0f}, {max(driver):.0f} | {max(of_workers):.0f}"
        print(f"| {n:,} | {-(-n // 1000)} | {seconds:.0f} | {rate:.0f} | {memory_used} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["nodes", "memory"])
    parser.add_argument("--rows", type=int, nargs="+", help="(default: 3000; for memory 1000 10000 100000)")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as d:
        if args.what == "nodes": nodes(Path(d), (args.rows or [3000])[0])
        else: memory(Path(d), args.rows or [1000, 10_000, 100_000])


if __name__ == "__main__": sys.exit(main())
