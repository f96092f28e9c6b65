"""AdamW, LAMB and Muon over float32 master weights, whatever type the model computes in.

One `Optimizer` holds everything a step needs. Its state is a flat table of named tensors, so that a checkpoint is a
plain safetensors file. A step is: gradient norm, clip, update of the masters, and a copy back into the model.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertkin.config import Train
from bertkin.models import kernels, touched
from bertkin.models.levels import levels, own_rates

BETA1 = 0.9
EPS = {"adamw": 1e-8, "lamb": 1e-6, "muon": 1e-8}
MOMENTUM = 0.95
# A quintic a step, each the best answer to what the one before leaves (Amsel et al. 2025, "The Polar Express").
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Rounding in bfloat16 lifts singular values over the bound a step was made for, where it drives them off; so aim below.
POLAR_SAFETY = 1.01
POLAR_STEPS = 4


@dataclass
class Slot:
    """One parameter with all that its update needs; float32 tensors of the parameter's shape."""

    name: str
    parameter: nn.Parameter
    master: Tensor
    first: Tensor
    second: Tensor | None
    """None for the matrices of Muon, which keep one moment only."""
    decayed: bool
    parts: int
    """Matrices that lie stacked in one (q, k and v; value and gate): Muon makes each orthogonal by itself."""
    updates: int = 0
    """How many there were: fewer than steps where it is a part of one task of several, or began to learn later."""
    rate: float = 1.0
    """Its learning rate as a share of the one of all."""
    opens: float = 0.0
    """Share of the budget after which it begins to learn."""
    moved: Tensor | None = None
    """uint8 [rows] of a table: which rows have had a gradient. AdamW passes over the others, with the same result."""


class Update(ctypes.Structure):
    """One tensor of an update by AdamW: `Update` of kernels.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "first", "second", "gradient", "copy", "moved", "marks")),
        *((name, ctypes.c_int64) for name in ("rows", "cols")),
        *((name, ctypes.c_float) for name in ("lr", "decay", "correct1", "correct2")),
        ("type", ctypes.c_int32),
    )


class Numbers(ctypes.Structure):
    """The numbers of a tensor: `Numbers` of kernels.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("at", "marks")),
        *((name, ctypes.c_int64) for name in ("rows", "cols")),
        ("type", ctypes.c_int32),
    )


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019), LAMB (You et al. 2020) or Muon (Jordan et al. 2024) as `train.optimizer` says.

    Weight decay reaches matrices and tables, never norms and biases. With Muon, the matrices between the embeddings and
    the vocabulary are orthogonalised and everything else is AdamW's.
    """

    def __init__(self, model: nn.Module, train: Train) -> None:
        self.train, self.steps = train, 0
        self.slots = []
        level, own = levels(model), own_rates(model)
        deepest = max(level.values(), default=0) or 1
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # frozen by a strategy of fine-tuning
            plain = parameter.dtype == torch.float32
            master = parameter.data if plain else parameter.data.float()
            matrix = train.optimizer == "muon" and is_hidden_matrix(name, parameter)
            second = None if matrix else torch.zeros_like(master)
            parts = stacked(name, model) if matrix else 1
            slot = Slot(name, parameter, master, torch.zeros_like(master), second, parameter.ndim >= 2, parts)
            slot.rate = own[name] / train.lr if name in own and train.lr else train.layer_decay ** level[name]
            if train.table_lr is not None and train.lr and TOKENS.search(name):
                slot.rate *= train.table_lr / train.lr
            slot.opens = train.unfreeze * level[name] / deepest
            if parameter.ndim == 2 and "embeddings" in name:
                slot.moved = torch.zeros(len(parameter), dtype=torch.uint8)
            self.slots.append(slot)
        self.average = {s.name: s.master.clone() for s in self.slots} if train.ema else {}

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take these as the masters. What the model holds of them is rounded to the type it computes in."""
        for slot in self.slots:
            slot.master.copy_(weights[slot.name])
            if self.average:
                self.average[slot.name].copy_(slot.master)

    def unfreeze(self, progress: float) -> None:
        """Let those learn whose time has come (`train.unfreeze`): the others get no gradient, and it is not computed."""
        if self.train.unfreeze:
            for slot in self.slots:
                slot.parameter.requires_grad_(slot.opens <= progress)

    def gradient_norm(self) -> float:
        """The norm of all gradients together."""
        gradients = {slot.parameter: slot.parameter.grad for slot in self.slots if slot.parameter.grad is not None}
        if any(
            g.is_cuda for g in gradients.values()
        ):  # asked once, not for each: a GPU must be done before it can answer
            return float(torch.stack(torch._foreach_norm([*gradients.values()], 2, torch.float32)).norm())
        total, told = 0.0, []
        for parameter, g in gradients.items():
            if kernels.usable(g):
                told.append(Numbers(g.data_ptr(), _marks(parameter), *_sizes(g), kernels.TYPES[g.dtype]))
            else:
                total += float(g.float().square().sum())
        if (library := kernels.get()) is not None and told:
            total += library.bk_square_sum((Numbers * len(told))(*told), len(told))
        return math.sqrt(total) if total >= 0 else math.nan

    @torch.no_grad()
    def step(self, factor: float, norm: float) -> None:
        """One update at `factor` of the peak rates, for gradients of this norm; gradients are gone afterwards."""
        self.steps += 1
        t = self.train
        clip = t.clip / norm if t.clip and norm > t.clip else 1.0
        matrices, others = [], []
        for slot in self.slots:
            if slot.parameter.grad is None:
                continue
            slot.updates += 1
            if slot.second is None:
                matrices.append(slot)
            elif t.optimizer == "lamb":
                self._lamb(slot, factor * t.lr * slot.rate, clip)
            else:
                others.append(slot)
        update = self._adamw_together if any(slot.parameter.is_cuda for slot in others) else self._adamw
        update(others, factor * t.lr, clip)
        self._muon(matrices, factor * (t.matrix_lr or 0.0), clip)
        for slot in self.slots:
            touched.clear(slot.parameter)
            if self.average:
                self.average[slot.name].lerp_(slot.master, 1 - t.ema)

    def _corrections(self, slot: Slot) -> tuple[float, float]:
        return 1 / (1 - BETA1**slot.updates), 1 / (1 - self.train.beta2**slot.updates)

    def _adamw(self, slots: list[Slot], lr: float, clip: float) -> None:
        t = self.train
        updates: list[Update] = []
        gradients: list[Tensor] = []
        for slot in slots:
            g, w = slot.parameter.grad, slot.master
            assert g is not None and slot.second is not None
            g = g.contiguous()
            one, two = self._corrections(slot)
            rate, decay = lr * slot.rate, t.weight_decay if slot.decayed else 0.0
            if not kernels.usable(g) or not w.is_contiguous():
                self._moments(slot, g, clip)
                w.mul_(1 - rate * decay)
                w.addcdiv_(slot.first, (slot.second * two).sqrt_().add_(EPS[t.optimizer]), value=-rate * one)
                self._publish(slot)
                continue
            gradients.append(g)  # so that what was made contiguous is there until the end
            copy = None if slot.parameter.data_ptr() == w.data_ptr() else slot.parameter.data_ptr()
            moved = None if slot.moved is None else slot.moved.data_ptr()
            states = (w.data_ptr(), slot.first.data_ptr(), slot.second.data_ptr())
            tensors = (*states, g.data_ptr(), copy, moved, _marks(slot.parameter))
            updates.append(Update(*tensors, *_sizes(w), rate, decay, one, two, kernels.TYPES[g.dtype]))
        if (library := kernels.get()) is not None and updates:
            library.bk_adamw((Update * len(updates))(*updates), len(updates), BETA1, t.beta2, EPS[t.optimizer], clip)

    def _adamw_together(self, slots: list[Slot], lr: float, clip: float) -> None:
        """The same in a few calls of torch's: on a GPU, calls are what a small update costs."""
        t = self.train
        gradients = [s.parameter.grad.float() for s in slots if s.parameter.grad is not None]
        if clip != 1.0:
            torch._foreach_mul_(gradients, clip)
        masters, first = [s.master for s in slots], [s.first for s in slots]
        second = [s.second for s in slots if s.second is not None]
        corrections = [self._corrections(s) for s in slots]
        torch._foreach_lerp_(first, gradients, 1 - BETA1)
        torch._foreach_mul_(second, t.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - t.beta2)
        torch._foreach_mul_(masters, [1 - lr * s.rate * t.weight_decay * s.decayed for s in slots])
        size = torch._foreach_mul(second, [two for _, two in corrections])
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, EPS[t.optimizer])
        rates = [-lr * s.rate * one for s, (one, _) in zip(slots, corrections, strict=True)]
        torch._foreach_addcdiv_(masters, first, size, rates)
        rounded = [s for s in slots if s.parameter.data_ptr() != s.master.data_ptr()]
        if rounded:
            torch._foreach_copy_([s.parameter for s in rounded], [s.master for s in rounded])

    def _lamb(self, slot: Slot, lr: float, clip: float) -> None:
        assert slot.parameter.grad is not None and slot.second is not None
        self._moments(slot, slot.parameter.grad, clip)
        one, two = self._corrections(slot)
        update = slot.first * one / ((slot.second * two).sqrt_().add_(EPS["lamb"]))
        if slot.decayed:
            update.add_(slot.master, alpha=self.train.weight_decay)
        weight, size = float(slot.master.norm()), float(update.norm())
        trust = weight / size if slot.decayed and weight > 0 and size > 0 else 1.0
        slot.master.add_(update, alpha=-lr * trust)
        self._publish(slot)

    def _muon(self, slots: list[Slot], lr: float, clip: float) -> None:
        """Matrices of one shape are made orthogonal together: small products in a batch run half as fast again."""
        shapes: dict[tuple[int, int], list[Slot]] = {}
        for slot in slots:
            rows, cols = slot.master.shape
            shapes.setdefault((rows // slot.parts, cols), []).append(slot)
        for (rows, cols), group in shapes.items():
            ahead = torch.cat([self._momentum(slot, clip).view(-1, rows, cols) for slot in group])
            update = orthogonalise(ahead, group[0].parameter.dtype).to(ahead.dtype).contiguous()
            scaled = lr * max(1.0, rows / cols) ** 0.5
            for slot, part in zip(group, update.split([slot.parts for slot in group]), strict=True):
                self._apply(slot, part.reshape(slot.master.shape), scaled * slot.rate)

    def _momentum(self, slot: Slot, clip: float) -> Tensor:
        """Take the gradient into the momentum; returns the momentum looked ahead by that gradient (Nesterov)."""
        g = slot.parameter.grad
        assert g is not None
        g = g.contiguous()
        library = kernels.get() if kernels.usable(g) else None
        if library is None:
            slot.first.lerp_(g.float() * clip, 1 - MOMENTUM)
            return (g.float() * clip).lerp(slot.first, MOMENTUM)
        ahead = torch.empty_like(g)
        state = (slot.first.data_ptr(), g.data_ptr(), ahead.data_ptr())
        library.bk_muon_momentum(kernels.TYPES[g.dtype], *state, g.numel(), MOMENTUM, clip)
        return ahead

    def _apply(self, slot: Slot, update: Tensor, lr: float) -> None:
        """Decay the master, step it, and copy it into the model."""
        keep = 1 - lr * self.train.weight_decay
        parameter = slot.parameter
        library = kernels.get() if kernels.usable(update, parameter) else None
        if library is None:
            slot.master.mul_(keep).add_(update, alpha=-lr)
            self._publish(slot)
            return
        state = (slot.master.data_ptr(), update.data_ptr(), parameter.data_ptr())
        library.bk_muon_apply(kernels.TYPES[update.dtype], *state, update.numel(), lr, keep)

    def _moments(self, slot: Slot, g: Tensor, clip: float) -> None:
        assert slot.second is not None
        g = g.float() * clip
        slot.first.lerp_(g, 1 - BETA1)
        slot.second.mul_(self.train.beta2).addcmul_(g, g, value=1 - self.train.beta2)

    def _publish(self, slot: Slot) -> None:
        if slot.parameter.data_ptr() != slot.master.data_ptr():
            slot.parameter.copy_(slot.master)

    def state(self) -> dict[str, Tensor]:
        """Everything a later run needs to go on, by name; float32."""
        table = {}
        for slot in self.slots:
            table[f"weight/{slot.name}"] = slot.master
            table[f"first/{slot.name}"] = slot.first
            if slot.second is not None:
                table[f"second/{slot.name}"] = slot.second
            if slot.updates != self.steps:
                table[f"updates/{slot.name}"] = torch.tensor(slot.updates)
        return table | {f"average/{name}": tensor for name, tensor in self.average.items()}

    @torch.no_grad()
    def load(self, table: dict[str, Tensor], steps: int) -> None:
        """Take up a saved state, weights included.

        Raises:
            KeyError, RuntimeError: the state is of another model or optimiser.
        """
        self.steps = steps
        for slot in self.slots:
            slot.updates = int(table.get(f"updates/{slot.name}", torch.tensor(steps)))
        for name, tensor in self.state().items():
            tensor.copy_(table[name])
        for slot in self.slots:
            self._publish(slot)
            if slot.moved is not None and slot.second is not None:
                slot.moved.copy_(((slot.first != 0) | (slot.second != 0)).any(1))

    @torch.no_grad()
    def revert(self, table: Mapping[str, Tensor]) -> None:
        """Take the weights to save from a saved state, and leave everything else as it is."""
        kind = "average" if self.average else "weight"
        for name, tensor in self.weights().items():
            tensor.copy_(table[f"{kind}/{name}"])

    @contextmanager
    def reverted(self, table: Mapping[str, Tensor]) -> Iterator[None]:
        """The weights to save as they were in a saved state, for as long as this lasts."""
        now = {name: tensor.clone() for name, tensor in self.weights().items()}
        self.revert(table)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.weights().items():
                    tensor.copy_(now[name])

    def weights(self) -> dict[str, Tensor]:
        """The float32 weights to save and evaluate: the moving average where there is one, else the masters."""
        return self.average or {slot.name: slot.master for slot in self.slots}


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows of a tensor, and numbers of a row."""
    rows = len(x) if x.ndim else 1
    return rows, x.numel() // rows


def _marks(parameter: Tensor) -> int | None:
    """Where the marks of its gradient are, if it has some."""
    kept = touched.of(parameter)
    return None if kept is None else kept.marks.data_ptr()


TOKENS = re.compile(r"\b(embeddings\.tokens|head\.table)$")
"""The table of tokens, or both where a model reads with one and answers with another."""
ANSWERS = re.compile(
    r"embeddings|^(model\.)?(sentence|detect)\b|head\.table$|places$|distances$|\bclassifier\b|\bcrf\b"
)
"""What is two-dimensional but no map from states to states: tables, and classifiers."""


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden states to hidden states: neither a table of embeddings nor a classifier."""
    return parameter.ndim == 2 and ANSWERS.search(name) is None


def stacked(name: str, model: nn.Module) -> int:
    """How many matrices lie stacked in this parameter: queries, keys and values; or a gate and its value."""
    owner = model.get_submodule(name.rsplit(".", 2)[0])
    if name.endswith("qkv.weight"):
        return int(getattr(owner, "parts", 3))
    return 2 if getattr(owner, "gated", False) and name.endswith("up.weight") else 1


def orthogonalise(g: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """About the nearest semi-orthogonal matrices to g [n, rows, cols]: singular values all come near 1.

    A polynomial iteration on the narrower side, of products only. bfloat16 does for it, where the processor has such
    products; where it has none they can take seventy times as long as in float32.
    """
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = (x / (POLAR_SAFETY * x.float().norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for a, b, c in POLAR_EXPRESS[:POLAR_STEPS]:
        a, b, c = a / POLAR_SAFETY, b / POLAR_SAFETY**3, c / POLAR_SAFETY**5
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
