"""The peers of benchmarks/quality.py: a file each, named in PEERS.

A peer's file has `recipes(job) -> list[Recipe]`, the rows it adds to the table. It imports its
library inside a recipe, so that a missing one costs that row alone. A recipe hands back the weights
of the linear layers as the quantized file gives them, and the bytes that the file holds for them.
"""

PEERS = {
    "v2": "tritllm_v2",
    "v3": "tritllm_v3",
    "calibrated": "tritllm_calibrated",
    "mixed": "tritllm_mixed",
    "trained": "tritllm_trained",
    "ggml": "ggml",
    "bitsandbytes": "bitsandbytes_nf4",
    "hqq": "hqq_groups",
    "gptq": "gptq",
    "autoround": "autoround",
    "exl3": "exl3",
}
