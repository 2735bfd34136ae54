"""Which model a loaded one is, so that a profile is used on the model that it was measured on.

The hash of the stored weights and the shape of the attention decide. How the weights are held while it runs does not:
a model in another dtype, on another device, quantized to 8 or 4 bits while loading, or with its context extended is
the same model, because its files are. Another file of weights, such as a GGUF with fewer bits, is another model.
"""

from uncomp_cli.models.catalog import ModelInfo
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["fingerprint", "fingerprint_of"]


def fingerprint(loaded: LoadedModel) -> ModelFingerprint:
    """The fingerprint of a loaded model."""
    return fingerprint_of(loaded.info, loaded.spec)


def fingerprint_of(info: ModelInfo, spec: ModelSpec) -> ModelFingerprint:
    """The same of a model that is on this machine and not loaded, from what is known about it and its shape."""
    return ModelFingerprint(
        name=info.name,
        model_type=spec.model_type,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        weights_sha256=info.sha256,
    )
