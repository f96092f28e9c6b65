"""The projection that every layer is made of: what a fine-tuning strategy wraps, so that no model is ever edited."""

from __future__ import annotations

from torch import Tensor, nn

from bertkin.models.ops import linear

ALL = slice(None)


class Linear(nn.Linear):
    """`x @ weight.T + bias` by `ops.linear`: [tokens, in] to [tokens, out].

    Whoever wraps one (`bertkin.models.adapt`) is one too, with the same weight and bias under the same names.
    """

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """With `rows`, those outputs alone: [tokens, as many as they are]."""
        weight, bias = self.weight, self.bias
        if rows is ALL:
            return linear(x, weight, bias)
        return linear(x, weight[rows], None if bias is None else bias[rows])
