#!/usr/bin/env python3
"""The largest error of y that PyTorch's batch norm, and oneDNN's in it, make on the data of examples/errors.rs.

pip install torch numpy; python3 benches/accuracy.py
"""

import argparse
import csv
import re

import numpy as np
import torch

BATCH, CHANNELS, SIDE = 32, 8, 56
EPS = 1e-5
DATA = [
    ("N(0, 1)", 0, 1),
    ("N(1e4, 1)", 1e4, 1),
    ("N(1e5, 0.1)", 1e5, 0.1),
    ("N(1e6, 1)", 1e6, 1),
    ("constant 1e4/3", 1e4 / 3, 0),
]


def variates(count):
    """SplitMix64, four 16-bit parts of it summed: mean 0, variance 1, the same elements as in Rust."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    total = sum((z >> np.uint64(16 * part)) & np.uint64(0xFFFF) for part in range(4))
    return (total.astype(np.float64) / 65536 - 2) * np.sqrt(3.0)


def pytorch(x, memory_format):
    tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)
    y = torch.nn.functional.batch_norm(tensor, None, None, training=True, eps=EPS)
    return y.contiguous().numpy()


def onednn(x):
    """The primitive of the oneDNN that PyTorch holds, on a tensor in oneDNN's own keeping."""
    one, zero = torch.ones(CHANNELS), torch.zeros(CHANNELS)
    tensor = torch.from_numpy(x).to_mkldnn()
    y = torch.nn.functional.batch_norm(tensor, zero.clone(), one.clone(), one, zero, True, 0.1, EPS)
    return y.to_dense().numpy()


def contenders():
    """Functions by (name, version, layout)."""
    torch_version = torch.__version__.split("+")[0]
    onednn_version = re.search(r"MKL-DNN v([0-9.]+)", torch.__config__.show())[1]
    return {
        ("PyTorch", torch_version, "nchw"): lambda x: pytorch(x, torch.contiguous_format),
        ("PyTorch", torch_version, "nhwc"): lambda x: pytorch(x, torch.channels_last),
        ("oneDNN", onednn_version, "nchw"): onednn,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=4, help="PyTorch's sums in NHWC follow it [default: 4]")
    parser.add_argument("--csv", help="also writes every error there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    all_of_them = contenders()
    print(f"largest |y error|, {options.threads} threads")
    print(f"{'':<16}" + "".join(f"{' '.join(key):>20}" for key in all_of_them))
    shape = (BATCH, CHANNELS, SIDE, SIDE)
    unit = variates(BATCH * CHANNELS * SIDE * SIDE).reshape(shape)
    rows = [["data", "contender", "version", "layout", "threads", "error"]]
    for name, mean, std in DATA:
        x = (mean + std * unit).astype(np.float32)
        wide = x.astype(np.longdouble)
        mu = wide.mean(axis=(0, 2, 3), keepdims=True)
        var = ((wide - mu) ** 2).mean(axis=(0, 2, 3), keepdims=True)
        exact = (wide - mu) / np.sqrt(var + np.longdouble(EPS))
        errors = {key: float(np.abs(function(x) - exact).max()) for key, function in all_of_them.items()}
        print(f"{name:<16}" + "".join(f"{error:>20.1e}" for error in errors.values()))
        rows += [[name, *key, options.threads, f"{error:.1e}"] for key, error in errors.items()]
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
