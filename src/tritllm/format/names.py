"""Names of the files of a model folder, and of the method in config.json."""

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MANIFEST = "tritllm.json"
CARD = "README.md"
PICTURE = "layers.png"  # no part of the checkpoint; a card that is written beside it shows it
