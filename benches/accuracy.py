#!/usr/bin/env python3
"""The largest error of y that PyTorch's batch norm makes on the data of examples/errors.rs.

pip install torch numpy; python3 benches/accuracy.py
"""

import numpy as np
import torch

BATCH, CHANNELS, SIDE = 32, 8, 56


def variates(count):
    """SplitMix64, four 16-bit parts of it summed: mean 0, variance 1, the same elements as in Rust."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    total = sum((z >> np.uint64(16 * part)) & np.uint64(0xFFFF) for part in range(4))
    return (total.astype(np.float64) / 65536 - 2) * np.sqrt(3.0)


def main():
    shape = (BATCH, CHANNELS, SIDE, SIDE)
    unit = variates(BATCH * CHANNELS * SIDE * SIDE).reshape(shape)
    print(f"PyTorch {torch.__version__}\n{'largest |y error|':<16}{'NCHW':>12}{'NHWC':>12}")
    for name, mean, std in [
        ("N(0, 1)", 0, 1),
        ("N(1e4, 1)", 1e4, 1),
        ("N(1e5, 0.1)", 1e5, 0.1),
        ("N(1e6, 1)", 1e6, 1),
        ("constant 1e4/3", 1e4 / 3, 0),
    ]:
        x = (mean + std * unit).astype(np.float32)
        wide = x.astype(np.longdouble)
        mu = wide.mean(axis=(0, 2, 3), keepdims=True)
        var = ((wide - mu) ** 2).mean(axis=(0, 2, 3), keepdims=True)
        exact = (wide - mu) / np.sqrt(var + np.longdouble(1e-5))
        errors = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)
            y = torch.nn.functional.batch_norm(tensor, None, None, training=True, eps=1e-5)
            errors.append(float(np.abs(y.contiguous().numpy() - exact).max()))
        print(f"{name:<16}{errors[0]:>13.1e}{errors[1]:>12.1e}")


if __name__ == "__main__":
    main()
