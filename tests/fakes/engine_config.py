"""A configuration of the engine, as small as most tests want it."""

from pathlib import Path

from sidecar.engine.config import EngineConfig


def engine_config(model: Path, slots: Path, **changed: object) -> EngineConfig:
    """Of a model's folder, on the CPU."""
    told: dict[str, object] = {
        "model_path": str(model),
        "slots_path": str(slots),
        "precision": "fp32",
        "device": "cpu",
        "max_sequences": 8,
        "step_token_budget": 16,
        "max_context": None,
        "kv_tokens": 600,
        "threads": None,
        **changed,
    }
    return EngineConfig(**told)  # type: ignore[arg-type]  # a test's shorthand
