"""A client's own notes on a request: short names to short texts, within OpenAI's bounds. They change no answer."""

from typing import Final

from sidecar.protocol.fields import Fields, as_text, invalid_value

MAX_METADATA: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512


def read_metadata(fields: Fields) -> dict[str, str]:
    """Raises ApiError 400."""
    metadata = fields.object("metadata")
    if metadata is None:
        return {}
    names = metadata.names()
    if len(names) > MAX_METADATA:
        raise invalid_value("metadata", f"at most {MAX_METADATA} pairs are allowed.")
    found: dict[str, str] = {}
    for name in names:
        if len(name) > MAX_METADATA_KEY_CHARS:
            raise invalid_value("metadata", f"a key may have {MAX_METADATA_KEY_CHARS} characters at most.")
        found[name] = as_text(metadata.value(name), metadata.path(name))
        if len(found[name]) > MAX_METADATA_VALUE_CHARS:
            raise invalid_value("metadata", f"a value may have {MAX_METADATA_VALUE_CHARS} characters at most.")
    return found
