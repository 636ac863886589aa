"""What the sidecar and its callers agree on: frames, usage slots, internal bodies, error objects.

A leaf: stdlib and msgspec only. The proxy imports this package and nothing else of the sidecar but the two readers
`sidecar.yamlfile` and `sidecar.jsonlog`.
"""
