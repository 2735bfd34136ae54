"""RoPE's frequencies as a loaded model holds them, for who must turn queries and keys himself."""

from torch import Tensor, nn

__all__ = ["rope_frequencies"]


def rope_frequencies(model: object) -> Tensor | None:
    """Radians a position [R] by which every layer of a transformers model turns its R pairs of dimensions.

    None when there is not one set for all layers: several rotary embeddings, one with a set for each kind of layer
    (gemma3), layers without RoPE (smollm3), or no rotary embedding at all.
    """
    if not isinstance(model, nn.Module):
        return None
    rotary = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    everywhere = all(getattr(module, "use_rope", True) for module in model.modules())
    frequencies = getattr(rotary[0], "inv_freq", None) if len(rotary) == 1 and everywhere else None
    return frequencies if isinstance(frequencies, Tensor) else None
