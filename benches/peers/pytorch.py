#!/usr/bin/env python3
"""Times PyTorch's batch normalization on the shapes that the Rust program times the others on: see README.md.

Needs PyTorch (`pip install torch`). Outputs are preallocated where PyTorch takes one: in the forward passes. What follows batch
norm is done in place (`add_`, `relu_`), its backward by `threshold_backward`. The loop that stands beside it is PyTorch's own:
torch.mul for two tensors' traffic, torch.add for more.

`--type bf16` or f16 is for tensors of 16 bits with parameters of f32. The operation is what torch.nn.functional.batch_norm
comes to, without its allocations. Ours beside it is by `cargo bench --bench half --features half -- --csv > half.csv` in the
repository's root: `--ours half.csv`, with as many threads, at another time in another program.
"""

import argparse
import csv
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch

EPS = 1e-5
PAUSE = 0.03  # seconds before each turn, as in src/timing.rs
SAMPLE = 20e-6  # what takes less is timed several runs at once
OPERATIONS = ["training", "inference", "backward"]
# What follows an operation in the network: PyTorch has ReLU and the addition in place, and ReLU's backward by itself.
EPILOGUES = ["", " + ReLU", " + add + ReLU"]
FORMS = [operation + epilogue for epilogue in EPILOGUES for operation in OPERATIONS]
LAYOUTS = ["nchw", "nhwc"]
COMPARED = ["PyTorch / ours nchw", "PyTorch / ours nhwc", "best / ours nchw", "best / best ours"]
COLUMNS = ["operation", "shape", "threads", "contender", "layout", "median_us", "fastest_us", "samples"]
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SHAPES = Path(__file__).resolve().parent.parent / "shapes" / "table.txt"
# How far a result may be off, relative to the largest value that there should be, beside the roundings of 16-bit numbers.
TOLERANCE = 1e-3


def read_shapes(path):
    """The dimensions N, C, spatial... of each line; `#` starts a comment, a last field `xK` is a number of layers."""
    lines = (line.split("#")[0].split() for line in path.read_text().splitlines())
    return [[int(field) for field in fields if not field.startswith("x")] for fields in lines if fields]


def name_of(dims):
    return "x".join(map(str, dims))


def in_layout(tensor, layout):
    """The same elements, in another order in memory."""
    if layout == "nchw":
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


class Layer:
    """A layer's tensors in NCHW and its parameters."""

    def __init__(self, dims, dtype):
        torch.manual_seed(0)
        channels = dims[1]
        self.x, self.dy, self.z = ((torch.rand(dims) * 2 - 1).to(dtype) for _ in range(3))
        self.gamma, self.beta = torch.rand(channels) + 0.5, torch.rand(channels) * 2 - 1
        var, mean = torch.var_mean(self.x.float(), self.axes(), correction=0)
        self.mean, self.var, self.invstd = mean, var, 1 / torch.sqrt(var + EPS)

    def axes(self):
        return [0, *range(2, self.x.dim())]

    def expected(self, form):
        """The form by its formulas in f64."""
        operation, *after = form.split(" + ")
        size = [1, -1] + [1] * (self.x.dim() - 2)
        gamma, beta = self.gamma.double().view(size), self.beta.double().view(size)
        x = self.x.double()
        var, mean = torch.var_mean(x, self.axes(), correction=0, keepdim=True)
        invstd = 1 / torch.sqrt(var + EPS)
        xhat = (x - mean) * invstd
        u = xhat * gamma + beta + (self.z.double() if "add" in after else 0)
        if operation != "backward":
            return u.clamp(min=0) if after else u
        # ReLU's gradient is decided by the y that PyTorch has, rounded, as everyone does.
        dy = self.dy.double() * (self.result(form) > 0) if after else self.dy.double()
        terms = dy.mean(self.axes(), keepdim=True), (dy * xhat).mean(self.axes(), keepdim=True)
        return gamma * invstd * (dy - terms[0] - xhat * terms[1])

    def result(self, form):
        """y of training, with what follows it in the form."""
        y = torch.empty_like(self.x)
        return self.function(form.replace("backward", "training"), self.x, self.dy, self.z, y)()

    def contenders(self, form):
        """Functions by (name, layout); each returns what it has computed."""
        functions = {}
        for layout in LAYOUTS:
            x, dy, z = (in_layout(tensor, layout) for tensor in (self.x, self.dy, self.z))
            # Only backward of ReLU looks at what y holds.
            y = self.result(form) if form.startswith("backward +") else torch.empty_like(self.x)
            y = in_layout(y, layout)
            functions["PyTorch", layout] = self.function(form, x, dy, z, y)
            if layout == "nchw":
                functions["loop", layout] = loop(form, x, dy, torch.empty_like(x))
        return functions

    def function(self, form, x, dy, z, y):
        operation, *after = form.split(" + ")
        gamma, beta, mean, var, invstd = self.gamma, self.beta, self.mean, self.var, self.invstd
        if operation == "backward":
            backward, mask = torch.ops.aten.native_batch_norm_backward, [True, True, True]
            if after:
                # ReLU's own backward gives what the residual's gradient is.
                threshold = torch.ops.aten.threshold_backward
                return lambda: backward(threshold(dy, y, 0), x, gamma, None, None, mean, invstd, True, EPS, mask)[0]
            return lambda: backward(dy, x, gamma, None, None, mean, invstd, True, EPS, mask)[0]
        train = operation == "training"
        # In inference nothing is saved, in training the running statistics are left out, as they are for everyone.
        save = [torch.empty(len(gamma) if train else 0) for _ in range(2)]
        running = (None, None) if train else (mean, var)
        out = (y, *save)

        def bare():
            return torch.native_batch_norm(x, gamma, beta, *running, train, 0.1, EPS, out=out)[0]

        if "add" in after:
            return lambda: bare().add_(z).relu_()
        return (lambda: bare().relu_()) if after else bare


def loop(form, x, dy, y):
    """The least traffic of the form that there is a function for: y from x, or y from x and another tensor."""
    if form.startswith("backward") or "add" in form:
        return lambda: torch.add(x, dy, alpha=0.25, out=y)
    return lambda: torch.mul(x, 0.75, out=y)


def take_turn(function, seconds):
    """Samples of `seconds` of runs; the first two runs are not counted."""
    start = time.perf_counter()
    function()
    second = time.perf_counter()
    function()
    runs = int(SAMPLE / max(time.perf_counter() - second, 1e-9)) + 1
    samples = []
    while time.perf_counter() - start < seconds or len(samples) < 3:
        before = time.perf_counter()
        for _ in range(runs):
            function()
        samples.append((time.perf_counter() - before) / runs)
    return samples


def measure(functions, options):
    """Samples by contender, who take turns; every other round goes backwards."""
    samples = {key: [] for key in functions}
    for turn in range(options.rounds):
        for key in list(functions)[:: -1 if turn % 2 else 1]:
            time.sleep(PAUSE)
            samples[key] += take_turn(functions[key], options.seconds)
    return samples


def check(layer, operation, functions, shape):
    """Ends the program if PyTorch computes something else than the formulas say."""
    expected = layer.expected(operation)
    # Half an eps each for batch norm and for an addition of its own.
    rounding = 0 if layer.x.dtype == torch.float32 else torch.finfo(layer.x.dtype).eps
    bound = (TOLERANCE + rounding) * expected.abs().max()
    for (name, layout), function in functions.items():
        if name == "PyTorch" and not (function() - expected).abs().max() <= bound:
            sys.exit(f"{operation} of {shape}: {name} {layout} is not what the formulas give")


def markdown(head, lines):
    """A table that is aligned as text too."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def text(line):
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([text(head), text(rule), *map(text, lines)])


def compared(times, ours):
    """How many times as long PyTorch takes on a shape, as `COMPARED` names it; `ours` by layout."""
    nchw, nhwc = (times["PyTorch", layout] for layout in LAYOUTS)
    our_nchw, our_nhwc = (ours[layout] for layout in LAYOUTS)
    best = min(nchw, nhwc)
    return [nchw / our_nchw, nhwc / our_nhwc, best / our_nchw, best / min(our_nchw, our_nhwc)]


def geometric_mean(ratios):
    return math.exp(statistics.fmean(map(math.log, ratios)))


def table(medians, ours):
    """The table of one form: `medians` in microseconds by shape, then by contender; `ours` by shape, by layout."""
    head = ["shape", "loop", "PyTorch nchw", "PyTorch nhwc", "loop / nchw", "loop / nhwc"]
    if ours:
        head += ["ours nchw", "ours nhwc", *COMPARED]
    lines, ratios = [], []
    for shape, times in medians.items():
        loop_time, nchw, nhwc = (times[key] for key in [("loop", "nchw"), ("PyTorch", "nchw"), ("PyTorch", "nhwc")])
        row_times, row_ratios = [loop_time, nchw, nhwc], [loop_time / nchw, loop_time / nhwc]
        cells = [f"{value:.2f}" for value in row_times + row_ratios]
        if ours:
            our, beside = [ours[shape][layout] for layout in LAYOUTS], compared(times, ours[shape])
            cells += [f"{value:.2f}" for value in our + beside]
            row_ratios += beside
        lines.append([shape, *cells])
        ratios.append(row_ratios)
    means = [f"{geometric_mean(column):.2f}" for column in zip(*ratios)]
    blank = [""] * 2
    least = [f"{min(column):.2f}" for column in zip(*ratios)]
    for name, figures in (("least", least), ("geometric mean", means)):
        lines.append([name, "", *blank, *figures[:2], *(blank + figures[2:] if ours else [])])
    return markdown(head, lines)


def summary(medians, ours):
    """A line for each form: the geometric mean of each ratio, and the shape that is worst for us."""
    lines = []
    for operation, shapes in medians.items():
        ratios = {shape: compared(times, ours[operation][shape]) for shape, times in shapes.items()}
        cells = [operation]
        for column, _ in enumerate(COMPARED):
            worst = min(ratios, key=lambda shape: ratios[shape][column])
            mean = geometric_mean([row[column] for row in ratios.values()])
            cells.append(f"{mean:.2f} ({ratios[worst][column]:.2f} {worst})")
        lines.append(cells)
    return markdown(["geometric mean (worst)", *COMPARED], lines)


def read_ours(path, number, threads):
    """Our medians in microseconds by operation, shape and layout, from the Rust program's file or that of the bench `half`."""
    ours, forms = {}, {form.lower(): form for form in FORMS}
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        of_half = f"{number}_microseconds"
        column = of_half if of_half in (reader.fieldnames or []) else "median_us"
        if column not in (reader.fieldnames or []) or number != "f32" and column != of_half:
            raise ValueError(f"{path} has no times of {number}: `cargo bench --bench half --features half -- --csv` writes some")
        for row in reader:
            if int(row["threads"]) != threads:
                raise ValueError(f"{path} is of {row['threads']} threads, and PyTorch has {threads}: --threads chooses")
            form = forms.get(row["operation"].lower())
            # Of two ways of ours, the faster; the bench `half` has nobody else.
            if form and row.get("contender", "ours") in ("ours", "ours by mask"):
                layouts = ours.setdefault(form, {}).setdefault(row["shape"], {})
                time = float(row[column])
                layouts[row["layout"]] = min(time, layouts.get(row["layout"], time))
    return ours


def arguments():
    parser = argparse.ArgumentParser(description="Times PyTorch's batch normalization next to its own plain loops.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--seconds", type=float, default=0.05, help="how long each contender runs at a time")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender's turn comes")
    parser.add_argument("--shapes", default="", help="only shapes with one of these in their names, such as 56x56,7x7")
    ops = "of training, inference, backward, and each of them with +relu and +add+relu; default: all nine, or those of --ours"
    parser.add_argument("--ops", help=ops)
    parser.add_argument("--type", choices=TYPES, default="f32", help="what tensors hold; parameters are f32 (default: f32)")
    parser.add_argument("--csv", help="also writes every median there")
    ours = "a file to compare with, which the Rust program has written with --csv, or the bench half, for 16-bit types too"
    parser.add_argument("--ours", help=ours)
    options = parser.parse_args()
    try:
        options.our_medians = read_ours(options.ours, options.type, options.threads) if options.ours else {}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    known = {form.replace(" ", "").lower(): form for form in FORMS}
    ops = ",".join(options.our_medians or FORMS) if options.ops is None else options.ops
    names = [name.replace(" ", "").lower() for name in ops.split(",")]
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))} is none of: {', '.join(known)}")
    options.operations = [form for name, form in known.items() if name in names]
    if options.threads < 1 or options.rounds < 1:
        parser.error("threads and rounds are numbers from 1 on")
    wanted = options.shapes.split(",")
    options.problems = [dims for dims in read_shapes(SHAPES) if any(part in name_of(dims) for part in wanted)]
    if not options.problems:
        parser.error(f"no shape of the table has {options.shapes!r} in its name")
    for operation in options.operations if options.ours else []:
        for shape in map(name_of, options.problems):
            if set(LAYOUTS) - set(options.our_medians.get(operation, {}).get(shape, {})):
                parser.error(f"{options.ours} has nothing on {operation} of {shape}: --shapes and --ops choose")
    return options


@torch.no_grad()
def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = [COLUMNS]
    medians = {operation: {} for operation in options.operations}
    for number, dims in enumerate(options.problems):
        shape, layer = name_of(dims), Layer(dims, TYPES[options.type])
        for operation in options.operations:
            progress = f"{number + 1}/{len(options.problems)} {shape} {operation}"
            print(f"\r{progress:60}", end="", file=sys.stderr, flush=True)
            functions = layer.contenders(operation)
            check(layer, operation, functions, shape)
            times = medians[operation][shape] = {}
            for (name, layout), samples in measure(functions, options).items():
                times[name, layout] = median = statistics.median(samples) * 1e6
                figures = f"{median:.3f}", f"{min(samples) * 1e6:.3f}", len(samples)
                # The columns know no types: in the file, one that is not f32 is part of the name.
                contender = name if options.type == "f32" else f"{name} {options.type}"
                rows.append([operation, shape, options.threads, contender, layout, *figures])
    print(f"\r{'':60}\r", end="", file=sys.stderr)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"PyTorch {torch.__version__}. Threads: {torch.get_num_threads()}.")
    for operation, shapes in medians.items():
        print(f"\n{operation}, {options.type}, microseconds (medians) and ratios\n")
        print(table(shapes, options.our_medians.get(operation)))
    if options.ours:
        print(f"\nall of them, {options.type}, ratios\n")
        print(summary(medians, options.our_medians))


if __name__ == "__main__":
    main()
