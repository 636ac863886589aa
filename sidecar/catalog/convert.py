"""Makes a folder of fp32 safetensors, config and tokenizer out of a GGUF file.

Run as a program, in a process of its own: it takes more than a gigabyte and imports torch, and the sidecar's front
should hold neither.

    python -m sidecar.catalog.convert weights.gguf folder
"""

import os
import sys
from pathlib import Path
from typing import Any


def convert(gguf: Path, folder: Path) -> None:
    """Write `folder`. Raises what Transformers raises for a file it cannot read."""
    # Both take seconds to import, and the command that starts this needs neither.
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    if hasattr(transformers, "GgufConfig"):
        # Where a kernel package is installed, weights would stay packed, and packed ones cannot be saved.
        place["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A plain model of the same shape takes the weights: that each fits shows that none is missing or still packed.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
