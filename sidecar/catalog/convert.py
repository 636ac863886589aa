"""Makes a folder of fp32 safetensors, config and tokenizer out of a GGUF file.

Run as a program, in a process of its own: it takes more than a gigabyte and imports torch, and the sidecar's front
should hold neither. It prints `Progress 3 of 100` as it goes on.

    python -m sidecar.catalog.convert weights.gguf folder
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")
# How far it is, in percent of the time, when each part is done; of the small model, 24 s on a CPU. From TOKENIZER to
# READ Transformers parses the file and does not tell how far it is.
IMPORTED: Final = 8
TOKENIZER: Final = 28
READ: Final = 84
UNPACKED: Final = 88
TAKEN: Final = 96


def tell(percent: int) -> None:
    """Say how far it is; whoever started this reads along."""
    sys.stdout.write(f"Progress {percent} of 100\n")
    sys.stdout.flush()


def told(items: Iterable[T], *_: object, **__: object) -> Iterator[T]:
    """In the place of Transformers' own bar over a file's tensors."""
    tensors = list(items)
    for number, item in enumerate(tensors):
        yield item
        tell(READ + (UNPACKED - READ) * (number + 1) // len(tensors))


def convert(gguf: Path, folder: Path) -> None:
    """Write `folder`. Raises what Transformers raises for a file it cannot read."""
    # Both take seconds to import, and the command that starts this needs neither.
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils  # noqa: PLC0415

    # The name of its bar there, since version 4; should it go, the bar stands still for a while.
    modeling_gguf_pytorch_utils.tqdm = told

    tell(IMPORTED)
    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    tell(TOKENIZER)
    if hasattr(transformers, "GgufConfig"):
        # Where a kernel package is installed, weights would stay packed, and packed ones cannot be saved.
        place["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
    tell(UNPACKED)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A plain model of the same shape takes the weights: that each fits shows that none is missing or still packed.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    tell(TAKEN)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tell(100)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
