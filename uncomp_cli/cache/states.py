"""What layers without keys and values carry from token to token: states of recurrent and convolutional layers.

    output, state' = layer(token, state)

A state has one size however long the text is, and says nothing of single tokens: nothing can be evicted from it, and
it cannot go back. To go back, as every further question of a document does, is to have kept a copy. A copy shares all
tensors until one of the two is written, which then makes its own.

The layers of stock models read and write theirs by the names that transformers' caches have for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Place(NamedTuple):
    """Where a state belongs: convolution's last inputs (`conv`) or what is `recurrent`, of a layer of the model."""

    kind: str
    layer: int
    number: int = 0

    @classmethod
    def parse(cls, name: str) -> "Place | None":
        """The place that a name of `States.named` says; None for another."""
        parts = name.split(".")
        if len(parts) != 3 or parts[0] not in ("conv", "recurrent") or not all(map(str.isdecimal, parts[1:])):
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]))

    def __str__(self) -> str:
        return ".".join(map(str, self))


class States:
    """The states [B, …] of all layers that have one; of a model without such layers it stays empty.

    `before` are those before the last token of the latest prompt, from which an answer can be replayed.
    """

    def __init__(self, held: Mapping[Place, Tensor] | None = None) -> None:
        self._held = dict(held or {})
        self._shared = set(self._held)
        self.before: States | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Allocated bytes, those of the states before the last token included."""
        tensors = [*self._held.values(), *(() if self.before is None else self.before._held.values())]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    def named(self) -> dict[str, Tensor]:
        """Every tensor by the name of its place."""
        return {str(place): tensor for place, tensor in sorted(self._held.items())}

    def copy(self) -> "States":
        """The same states, which go their own way from here on."""
        self._shared = set(self._held)
        copied = States(self._held)
        copied.before = None if self.before is None else self.before.copy()
        return copied

    def follow(self, other: "States", layer: int) -> None:
        """Go on in a layer from where `other` is."""
        for place in [place for place in other._held if place.layer == layer]:
            self._held[place] = other._held[place]
            self._shared.add(place)
            other._shared.add(place)

    def remember(self, layer: int) -> None:
        """The last token of a prompt comes next: what a layer has now is what is `before` it."""
        self.before = self.before or States()
        self.before.follow(self, layer)

    def rows(self, rows: Sequence[int]) -> "States":
        """The states of some rows, in that order."""
        return States({place: tensor[list(rows)] for place, tensor in self._held.items()})

    @classmethod
    def stack(cls, parts: Iterable["States"]) -> "States":
        """The rows of all `parts`, one behind the other."""
        every = list(parts)
        return cls({place: torch.cat([part._held[place] for part in every]) for place in every[0]._held})

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._held.values())

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The last inputs [B, channels, width] of a layer's convolution, to be changed in place; None at the start."""
        return self._own(Place("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A layer's recurrent state [B, …], to be changed in place; None at the start."""
        return self._own(Place("recurrent", layer_idx, state_idx))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> Tensor:
        """Put new inputs [B, channels, N] behind the last ones; all of them, of which the last are kept."""
        place = Place("conv", layer_idx, state_idx)
        before = self._held.get(place)
        every = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        width = conv_kernel_size or conv_states.shape[-1]
        every = pad(every, (max(0, width - every.shape[-1]), 0))
        self._write(place, every[..., -width:].clone())
        return every

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Take a new state; what it was a part of is let go."""
        alone = recurrent_states.untyped_storage().nbytes() == recurrent_states.nbytes
        taken = recurrent_states if alone else recurrent_states.clone()
        self._write(Place("recurrent", layer_idx, state_idx), taken)
        return taken

    def is_recording_past(self, layer_idx: int) -> bool:
        """Nothing is kept of what was before."""
        return False

    def _write(self, place: Place, tensor: Tensor) -> None:
        self._held[place] = tensor
        self._shared.discard(place)

    def _own(self, place: Place) -> Tensor | None:
        """A state that nobody else has."""
        held = self._held.get(place)
        if held is not None and place in self._shared:
            held = held.clone()
            self._write(place, held)
        return held
