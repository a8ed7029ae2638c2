"""torch operators on packed weights, and the layer that runs on them; needs torch.

Importing this package registers `torch.ops.tritllm.*`; definitions.py says what they are.
"""

from tritllm.ops import backends, gradients  # noqa: F401  (they register the operators' kernels)
