"""Damaged and crafted files, read by every reader: no traceback, no hang, no large memory.

    python -m benchmarks.fuzz_readers [--count=10000] [--seed=0] [--formats=png,nifti]

Good files of every format are changed at random: bytes flipped, blocks cut out, doubled or zeroed, numbers in the first
bytes replaced by extremes. Each is read as a run would read it, in a process of its own that is watched. A reader may
return an image or raise `BadImage` or `UserError`; anything else is a failure. Hanging means more than 10 s; the peak
memory of a reading process, without what Python and its libraries take, must stay below 1 GB.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import common
from benchmarks import damaged_files as damaged

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 1e9
BATCH = 50


def peak():
    """Peak memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_batch(jobs, results):
    """Read files one after the other, and say of each what happened."""
    damaged.warm_up()
    before = peak()
    for number, kind, path in jobs:
        results.put(("start", number, time.time()))
        try:
            outcome = damaged.read(kind, path)
            results.put(("done", number, outcome))
        except BaseException:
            results.put(("traceback", number, traceback.format_exc()))
    results.put(("memory", -1, peak() - before))


def run(jobs):
    """Read `jobs` in a process that is ended when one of them hangs; the rest goes on in another process."""
    context = multiprocessing.get_context("fork")
    found, memory, rest = {}, 0, list(jobs)
    while rest:
        results = context.Queue()
        process = context.Process(target=read_batch, args=(rest, results))
        process.start()
        current, started = None, time.time()
        while True:
            try:
                what, number, value = results.get(timeout=0.5)
            except Exception:
                if not process.is_alive() and results.empty():
                    if current is not None:
                        found[current] = f"the process died (exit {process.exitcode})"
                    break
                if current is not None and time.time() - started > LIMIT_SECONDS:
                    found[current] = f"hangs for more than {LIMIT_SECONDS:g} s"
                    process.kill()
                    break
                continue
            if what == "start":
                current, started = number, value
            elif what == "memory":
                memory = max(memory, value)
                current = None
                break
            else:
                found[number] = value if what == "done" else f"traceback\n{value}"
                if what == "done" and time.time() - started > LIMIT_SECONDS:
                    found[number] = f"took {time.time() - started:.1f} s"
                current = None
        process.join()
        rest = [job for job in rest if job[0] not in found]
        if process.exitcode == 0 and current is None:
            rest = []
    return found, memory


def main():
    """Make, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(damaged.FORMATS))
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    formats = options.formats.split(",")
    random = np.random.default_rng(options.seed)
    failures, counts, memory, start = [], {}, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = {kind: damaged.good_file(kind, folder / "good") for kind in formats}
        done = 0
        while done < options.count:
            jobs = []
            for _ in range(min(BATCH, options.count - done)):
                kind = formats[done % len(formats)]
                path = damaged.mutated(good[kind], folder / f"{done}", random)
                jobs.append((done, kind, path))
                done += 1
            found, used = run(jobs)
            memory = max(memory, used)
            for number, kind, path in jobs:
                outcome = found.get(number, "no answer")
                entry = counts.setdefault(kind, {"read": 0, "refused": 0, "failed": 0})
                ok = outcome in ("read", "refused")
                entry[outcome if ok else "failed"] += 1
                if not ok:
                    kept = Path(tempfile.gettempdir()) / f"fuzz_failure_{number}_{kind}"
                    os.system(f"cp -r '{Path(path).parent}' '{kept}'")
                    failures.append({"number": number, "kind": kind, "kept": str(kept), "outcome": outcome[-1500:]})
                    print(f"{kind} {number}: {outcome[-600:]}", file=sys.stderr)
                damaged.remove(path)
            print(f"{done} files, {len(failures)} failures, {memory / 1e6:.0f} MB", file=sys.stderr)
    result = {
        "files": options.count, "seed": options.seed, "failures": len(failures), "by_format": counts,
        "peak_memory_mb": round(memory / 1e6, 1), "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    common.write(options.output, "fuzz_readers", __doc__.splitlines()[0], result)
    return 1 if failures or memory > LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
