#!/usr/bin/env python3
"""The figures in README.md and docs/: every one between `<!-- figures: NAME -->` and `<!-- /figures -->` is made here, from
the files of benches/record. So the pages agree, and none has a figure that nobody can trace.

    python3 benches/figures.py                     # writes the sections anew
    python3 benches/figures.py --check             # fails if one is out of date, or if this crate no longer has its accuracy
    python3 benches/figures.py --measure           # measures accuracy again (PyTorch needed), then writes

Speed is measured by benches/peers and the example resnet50: benches/record/README.md has the commands. Sizes of libraries in
docs/linking.md are `.ci/sizes`' work.
"""

import argparse
import csv
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "record" / "2026-11-28"
DATE = RECORD.name
# What the folder's README says of the machine.
MACHINE = "2 cores of an Intel Xeon (Emerald Rapids, AVX-512), a virtual machine that others use too"
PAGES = ["README.md", "docs/accuracy.md"]
OPERATIONS = ["training", "inference", "backward"]
VERSIONS = {"oneDNN": "3.14", "PyTorch": "2.15", "candle": "0.11", "burn": "0.22"}
LAYOUTS = {"nchw": "NCHW", "nhwc": "NHWC", "nChw16c": "nChw16c"}
# The contenders of the recorded files that are plain loops.
LOOPS = ["plain loops", "limit"]


def rows(name):
    with open(RECORD / name, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(name, table):
    with open(RECORD / name, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(table):
    lines = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


# --- accuracy

ERROR_ROW = re.compile(r"^(\S.*?)\s{2,}([0-9.e+-]+)\s+([0-9.e+-]+)$")


def own_errors():
    """What `cargo run --release --example errors` prints, NCHW and NHWC, by data."""
    # With the features of the other examples that CI runs, which saves it a build: no bit depends on them.
    command = ["cargo", "run", "--quiet", "--release", "--features", "half,tuning", "--example", "errors"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = filter(None, map(ERROR_ROW.match, out.splitlines()))
    return {match[1]: (float(match[2]), float(match[3])) for match in found}


def measure_accuracy():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peers.csv"
        subprocess.run([sys.executable, ROOT / "benches" / "accuracy.py", "--csv", path], check=True)
        with open(path, newline="") as file:
            table = list(csv.reader(file))
    for data, errors in own_errors().items():
        table += [[data, "batchnorm", "", layout, "any", f"{error:.1e}"] for layout, error in zip(LAYOUTS, errors)]
    write_rows("accuracy.csv", table)


def figure(error):
    """3.2e-07 as 3e-7; 4.3e+00 as 4.3; 0 as 0."""
    if error == 0:
        return "0"
    if error >= 0.1:
        return f"{error:.2f}" if error < 0.995 else f"{error:.1f}"
    mantissa, exponent = f"{error:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def accuracy():
    table = rows("accuracy.csv")
    version = {row["contender"]: ".".join(row["version"].split(".")[:2]) for row in table}
    columns = {
        f"PyTorch {version['PyTorch']}, NCHW": ("PyTorch", "nchw"),
        "NHWC": ("PyTorch", "nhwc"),
        f"oneDNN {version['oneDNN']}, PyTorch's": ("oneDNN", "nchw"),
        "batchnorm, either": ("batchnorm", None),
    }

    def error(data, contender, layout):
        errors = [row["error"] for row in table if (row["data"], row["contender"]) == (data, contender) and layout in (None, row["layout"])]
        return figure(max(map(float, errors)))

    lines = [[data, *(error(data, *key) for key in columns.values())] for data in dict.fromkeys(row["data"] for row in table)]
    threads = next(row["threads"] for row in table if row["contender"] == "PyTorch")
    note = f"Largest error of y: training, f32, 32x8x56x56, gamma 1, beta 0. {DATE}, {threads} threads (on which PyTorch's sums in NHWC depend)."
    return f"{markdown([['data', *columns], *lines])}\n\n{note}"


def check_accuracy():
    """What is wrong with the recorded errors of this crate."""
    recorded = {}
    for row in rows("accuracy.csv"):
        if row["contender"] == "batchnorm":
            recorded.setdefault(row["data"], []).append(float(row["error"]))
    now = {data: list(errors) for data, errors in own_errors().items()}
    if now == recorded:
        return []
    return [f"errors of y: {data} {now.get(data)}, recorded {recorded.get(data)}" for data in {*now, *recorded} if now.get(data) != recorded.get(data)]


# --- speed


def sittings():
    """For each sitting the medians by operation, shape and (contender, layout)."""
    all_of_them = []
    for number in (1, 2):
        medians = {}
        for row in rows(f"peers-{number}.csv") + [row for row in rows(f"pytorch-{number}.csv") if row["contender"] == "PyTorch"]:
            name = "plain loops" if row["contender"] in LOOPS else row["contender"]
            of_shape = medians.setdefault(row["operation"], {}).setdefault(row["shape"], {})
            of_shape[name, row["layout"]] = float(row["median_us"])
        all_of_them.append(medians)
    return all_of_them


def threads_of_speed():
    """The number of threads; there is but one in a record."""
    (threads,) = {row["threads"] for name in ("peers-1.csv", "peers-2.csv", "pytorch-1.csv", "pytorch-2.csv") for row in rows(name)}
    return threads


def ours(medians):
    return {layout: medians["ours", layout] for layout in ("nchw", "nhwc")}


def fastest(medians):
    """The fastest peer in whatever layout."""
    peers = [key for key in medians if key[0] in VERSIONS]
    return min(peers, key=medians.get)


def ratios(operation, of):
    """The geometric mean over all shapes of a ratio, for each sitting; none if a shape has none."""
    means = []
    for sitting in sittings():
        values = [of(medians) for medians in sitting[operation].values()]
        if None in values:
            return None
        means.append(mean(values))
    return means


def peer(name, layout):
    def of(medians):
        time = medians.get((name, layout))
        return time and time / medians["ours", layout]

    return of


def loops(layout):
    def of(medians):
        return medians.get(("plain loops", layout), medians["plain loops", "nchw"]) / medians["ours", layout]

    return of


def best_to(layouts):
    """The fastest peer's time, in units of ours in the fastest of some layouts."""
    return lambda medians: medians[fastest(medians)] / min(ours(medians)[layout] for layout in layouts)


def pair(means):
    return ", ".join(f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}" for value in means or [])


def speed():
    lines = [
        ["**the fastest peer in its best layout** / ours in our best", best_to(["nchw", "nhwc"])],
        ["the fastest peer in its best layout / ours in NCHW", best_to(["nchw"])],
    ]
    for name in VERSIONS:
        for layout in ("nhwc", "nchw"):
            if ratios("training", peer(name, layout)):
                lines.append([f"{name} {VERSIONS[name]}, {LAYOUTS[layout]} / ours, {LAYOUTS[layout]}", peer(name, layout)])
    lines += [[f"plain loops / ours, {LAYOUTS[layout]}", loops(layout)] for layout in ("nchw", "nhwc")]
    table = [["time of the others / ours", *OPERATIONS]]
    table += [[name, *(pair(ratios(operation, of)) for operation in OPERATIONS)] for name, of in lines]
    counts = {}
    for sitting in sittings():
        for operation in OPERATIONS:
            for medians in sitting[operation].values():
                name, layout = fastest(medians)
                key = f"{name} in {LAYOUTS[layout]}"
                counts[key] = counts.get(key, 0) + 1
    who = ", ".join(f"{key} ({count})" for key, count in sorted(counts.items(), key=lambda item: -item[1]))
    note = (
        f"{DATE}, {MACHINE}; {threads_of_speed()} threads, f32.\n"
        "Geometric means over twelve shapes of real networks, one for each of two sittings. Above 1, ours is faster. All but PyTorch ran\n"
        f"in turns in one process, PyTorch some minutes later. Of {sum(counts.values())} times\nthe fastest peer was {who}."
    )
    return f"{markdown(table)}\n\n{note}"


def speed_summary():
    each = {operation: mean(ratios(operation, best_to(["nchw", "nhwc"]))) for operation in OPERATIONS}
    names = [f"{name} {version}" for name, version in VERSIONS.items()]
    times = [f"{each[operation]:.2f} times in {operation}" for operation in OPERATIONS[1:]]
    return (
        f"The fastest of {', '.join(names[:-1])} and {names[-1]}, each in its best layout, takes\n"
        f"{each['training']:.2f} times as long in training, {' and '.join(times)} ({threads_of_speed()} threads,\n"
        f"Intel Emerald Rapids, {DATE}; [each of them, layout by layout](#figures))."
    )


def resnet50():
    parts = []
    for layout in ("nchw", "nhwc"):
        shares = []
        for operation in OPERATIONS:
            ours_time = loops_time = 0.0
            for row in rows(f"resnet50-{layout}.csv"):
                if row["operation"] == operation:
                    layers = int(row["layers"])
                    ours_time += layers * float(row["microseconds"])
                    loops_time += layers * float(row.get("loops_microseconds") or row["limit_microseconds"])
            shares.append(f"{operation} {loops_time / ours_time:.2f}")
        parts.append(f"in {LAYOUTS[layout]} {', '.join(shares[:-1])} and {shares[-1]}")
    return (
        "Summed over ResNet-50's 53 layers at a batch of 32, of the speed of plain read, copy and triad loops over the same bytes (a\n"
        f"reference, no limit: some kernels are faster), there: {'; '.join(parts)}."
    )


SECTIONS = {"accuracy": accuracy, "speed": speed, "speed-summary": speed_summary, "resnet50": resnet50}
SECTION = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)


def written(text):
    return SECTION.sub(lambda match: f"{match[1]}{SECTIONS[match[2]]()}\n{match[4]}", text)


def main():
    parser = argparse.ArgumentParser(description="Writes the figures of README.md and docs/ from benches/record, or checks them.")
    parser.add_argument("--check", action="store_true", help="changes nothing; fails if a figure is out of date")
    parser.add_argument("--measure", action="store_true", help="measures accuracy first, into benches/record")
    options = parser.parse_args()
    if options.measure:
        measure_accuracy()
    wrong, used = [], set()
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        new = written(text)
        used |= {match[2] for match in SECTION.finditer(text)}
        if new != text and options.check:
            wrong.append(f"{page}: its figures are not those of benches/record; run benches/figures.py")
        elif new != text:
            path.write_text(new)
            print(f"{page}: written")
    wrong += [f"no page has the section {name}" for name in SECTIONS.keys() - used]
    if options.check:
        wrong += check_accuracy()
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"figures: {len(used)} sections in {len(PAGES)} pages agree with benches/record/{DATE}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
