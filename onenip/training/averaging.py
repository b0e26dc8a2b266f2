"""A running average of trained weights: smoother than the last step's, and often better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average of tensors that a training changes in place.

    Args:
        tensors: what is averaged, by name; only floating-point ones count.
        decay: share of the average that a step keeps, 0..1; less in the first steps, so that where
            training began is forgotten.

    Source: Polyak and Juditsky 1992; the warm-up `(1 + step) / (10 + step)` is TensorFlow's.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, decay: float) -> None:
        self._live = {k: v.detach() for k, v in tensors.items() if v.is_floating_point()}
        self._average = {key: value.clone() for key, value in self._live.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        """Take in the tensors as they are after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages, by name."""
        return self._average

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from averages that `state` gave."""
        for key, value in self._average.items():
            value.copy_(state[key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in the place of the tensors for the length of a block."""
        live = {key: value.clone() for key, value in self._live.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in self._live.items():
                    value.copy_(live[key])

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages in the place of the tensors."""
        for key, value in self._live.items():
            value.copy_(self._average[key])
