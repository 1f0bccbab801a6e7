#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch's attention on a GPU, with each back end it has: the peer of `checkops --bench --device cuda:0 --op attention`.

Normal values in bfloat16, one sequence, no mask, heads side by side in a row as Kinora has them; caches flushed before
every run, times by the GPU's events, the median. The last line is a JSON document. Needs torch with CUDA, nothing else.
"""
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 128
SHAPES = [(12, 4096), (12, 8192), (12, 16384), (12, 32760), (12, 75600), (40, 8192), (40, 32760)]
BACK_ENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
WARM, REPEATS, BUDGET = 2, 20, 0.3  # runs, runs at most, seconds


def measure(call, flush):
    seconds = []
    for i in range(WARM + REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= WARM:
            seconds.append(begin.elapsed_time(end) * 1e-3)
        if len(seconds) >= 3 and sum(seconds) > BUDGET:
            break
    return statistics.median(seconds)


def main():
    torch.manual_seed(1)
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    rows = []
    for heads, tokens in SHAPES:
        q, k, v = (torch.randn(1, tokens, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
                   for _ in range(3))
        for name, back_end in BACK_ENDS.items():
            row = {"peer": name, "heads": heads, "tokens": tokens}
            try:
                with sdpa_kernel(back_end):
                    row["seconds"] = measure(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), flush)
                row["tflops"] = 4e-12 * tokens * tokens * heads * HEAD_DIM / row["seconds"]
            except RuntimeError as error:
                row["error"] = str(error).splitlines()[0]
            rows.append(row)
    print(json.dumps({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "results": rows}))


if __name__ == "__main__":
    main()
