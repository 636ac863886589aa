"""Checks a model folder before anything of it is loaded: the files are there, and loading them runs no code of theirs.

Pickled weights and `auto_map` both run code from the folder. Here they are only found; nothing is imported or loaded.
"""

import json
from pathlib import Path
from typing import Final

from sidecar.catalog.errors import CatalogError

MAX_JSON_BYTES: Final = 64 * 1024 * 1024
WEIGHTS: Final = "model.safetensors"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_WITH_AUTO_MAP: Final = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")


def check_folder(folder: Path) -> None:
    """Raises CatalogError if this is not a folder in Hugging Face layout with safetensors and a fast tokenizer."""
    if not folder.is_dir():
        raise CatalogError(
            f"{folder} is not a folder",
            "Give a folder in Hugging Face layout, a .gguf file, or a name that `tollhouse-sidecar list` shows.",
        )
    config = _read(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CatalogError(f"{folder / 'config.json'} has no model_type", "It is not the config of a model.")
    if not (folder / "tokenizer.json").is_file():
        raise CatalogError(
            f"{folder} has no tokenizer.json",
            "Save the model's fast tokenizer there: AutoTokenizer.from_pretrained(…).save_pretrained(folder).",
        )
    weight_files(folder)
    for name in _WITH_AUTO_MAP:
        if (folder / name).is_file() and "auto_map" in _read(folder, name):
            raise CatalogError(
                f"{folder / name} has an auto_map: loading this model would run code from its folder",
                "Use a model that Transformers has built in.",
            )


def weight_files(folder: Path) -> list[Path]:
    """What is loaded of a folder, as Transformers chooses it: some have their weights twice, in another layout too.

    Raises CatalogError if there is nothing to load, or not all of it.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if index.is_file():
        found = [folder / name for name in _shards(folder, index)]
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise CatalogError(f"{folder} has no {missing[0]}, which {index.name} names", "Copy the missing files.")
        return found
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise CatalogError(
            f"{folder} has its weights as {pickled[0]}: loading a pickle runs code from it",
            "Convert them to safetensors first: model.save_pretrained(folder), on a machine you can spare.",
        )
    raise CatalogError(f"{folder} has no {WEIGHTS}", "Weights must be in safetensors files.")


def _shards(folder: Path, index: Path) -> list[str]:
    weight_map = _read(folder, index.name).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    shards = sorted(name for name in names if isinstance(name, str))
    if not shards or any("/" in name or not name.endswith(".safetensors") for name in shards):
        raise CatalogError(
            f"{index} does not name safetensors files beside it", "Weights must be in safetensors files."
        )
    return shards


def _read(folder: Path, name: str) -> dict[str, object]:
    path = folder / name
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CatalogError(f"{path} is longer than {MAX_JSON_BYTES} bytes", "It is not what its name says.")
        data = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise CatalogError(f"{folder} has no {name}", "Give a folder in Hugging Face layout.") from exc
    except OSError as exc:
        raise CatalogError(f"{path} cannot be read: {exc.strerror}", "Check who owns it.") from exc
    except (ValueError, RecursionError) as exc:
        raise CatalogError(f"{path} is not JSON", "Copy the file again from where the model comes from.") from exc
    if not isinstance(data, dict):
        raise CatalogError(f"{path} is not a JSON object", "Copy the file again from where the model comes from.")
    return data
