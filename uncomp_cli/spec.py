"""What the rest of the program needs to know about a model's shape.

Letters, fixed everywhere: B batch, L layers, H query heads, G KV heads, S sequence length, D head_dim,
W observation window, N new tokens in a forward pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder's attention and the cost of its cache.

    Its layers are those that attend, which have keys and values: `attending[l]` is the number of layer l among all
    layers of the model; without any, all attend. `sliding_windows[l]` is its window in tokens, or None when it attends
    to everything. Others may carry a state from token to token, those numbered `recurrent`: `state_bytes` in all, and
    one takes `mixing_bytes` a token while it is computed.
    """

    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    trained_length: int
    dtype_bytes: int
    sliding_windows: tuple[int | None, ...]
    attending: tuple[int, ...] = ()
    recurrent: tuple[int, ...] = ()
    state_bytes: int = 0
    mixing_bytes: int = 0

    @property
    def places(self) -> tuple[int, ...]:
        """The number [L] of each layer that attends among all layers of the model."""
        return self.attending or tuple(range(self.num_layers))

    @property
    def ends_in_attention(self) -> bool:
        """Whether no layer behind the last one that attends mixes tokens."""
        return not self.recurrent or max(self.recurrent) <= self.places[-1]

    @property
    def kv_bytes_per_entry(self) -> int:
        """Bytes of one key and one value of one KV head."""
        return 2 * self.head_dim * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers and KV heads, when every layer attends to all."""
        return self.num_layers * self.num_kv_heads * self.kv_bytes_per_entry

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers without a sliding window: the ones that a budget may compress."""
        return tuple(layer for layer, window in enumerate(self.sliding_windows) if window is None)

    def full_entries(self, seq_len: int) -> int:
        """KV entries (one head, one token) that a full cache of `seq_len` tokens holds; sliding layers a window."""
        per_layer = (seq_len if window is None else min(seq_len, window) for window in self.sliding_windows)
        return self.num_kv_heads * sum(per_layer)

    def window_entries(self, seq_len: int) -> int:
        """Of these, what layers with a sliding window hold whatever the budget."""
        windows = (min(seq_len, window) for window in self.sliding_windows if window is not None)
        return self.num_kv_heads * sum(windows)

    def full_kv_bytes(self, seq_len: int) -> int:
        """Bytes of a full cache of `seq_len` tokens: keys and values, and the states of other layers."""
        return self.full_entries(seq_len) * self.kv_bytes_per_entry + self.state_bytes
