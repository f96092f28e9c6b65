"""How much of a pretrained model a fine-tuning trains: all of it, a part, or a little that is wrapped around it.

`apply` freezes and wraps in place, for any family and any head; nothing else has to know. `changed` is what there is to
save afterwards, `restore` puts it back, and `merge` makes an ordinary model again where the change folds into the weights.
"""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.linear import Linear
from bertkin.models.names import in_stack
from bertkin.models.pals import Projected, put_beside
from bertkin.models.strategy import Matrix, check
from bertkin.models.strategy import Strategy as Strategy
from bertkin.models.task_heads import TaskModel
from bertkin.models.transformer import Attention, Block, FeedForward, Stack
from bertkin.models.wraps import Adapted, Low, LowRank, Mixed, Prefixed
from bertkin.text.layout import Layout

MIXING = 0.01
"""Peak rate of the shares of layers beside a stock that is trained, too: a stock's would leave them all alike."""
SAMPLE = 7
"""A prefix begins as what the stock makes of tokens from this number on: words, whatever the tokenizer's marks are."""


def apply(model: TaskModel | LanguageModel, strategy: Strategy, fresh: Collection[str] | None = None) -> None:
    """Freeze and wrap a model in place. Its outputs stay what they were, but for `layers` and `prefix`.

    To be called once, on the pretrained weights: what they are is remembered (`stock_of`).

    Args:
        fresh: what the names of parameters begin with that are trained whatever the strategy, for they were never
            pretrained; by default the head of a task model, and of a language model what its folder did not have.

    Raises:
        UserError: the strategy makes no sense, or not for this model.
    """
    if isinstance(model, LanguageModel) and strategy.kind in ("layers", "prefix", "pals"):
        raise UserError(f"{strategy.kind} is for models of a task", where="strategy.kind", mend="use lora or adapter")
    new = freeze(model, strategy, fresh)
    generator = torch.Generator().manual_seed(strategy.seed)
    match strategy.kind:
        case "last":
            thaw(_last(model, strategy.last))
        case "layers":
            _mix(model, alone=strategy.light)
        case "adapter":
            _insert(model, strategy, generator)
        case "lora":
            for path, block, matrices in projections(model):
                lows = _lows(block, matrices, strategy)
                if lows:
                    wrap_low(model, path, lows, strategy.dropout, generator)
        case "bias":
            biases = [p for name, p in _stock(model) if name.endswith("bias")]
            if not biases:
                problem = f"{model.architecture.family} has no biases to train"
                raise UserError(problem, where="strategy.kind", mend="lora and adapter train as little")
            thaw(biases)
        case "prefix":
            _put_before(model, strategy, generator)
        case "pals":
            for _, stack in stacks(model):
                put_beside(stack, strategy.size, strategy.heads, generator)
    thaw(new)


def freeze(
    model: TaskModel | LanguageModel, strategy: Strategy, fresh: Collection[str] | None = None
) -> list[nn.Parameter]:
    """Note down a strategy and the stock it begins from, and freeze what it does not train: all, where it is light.

    Returns:
        The parameters that are trained whatever the strategy; see `apply`.
    """
    check(strategy)
    if strategy_of(model) is not None:
        raise ValueError("a strategy was applied to this model before")
    vars(model)["strategy"], vars(model)["stock"] = strategy, "" if strategy.kind == "full" else fingerprint(model)
    # The same objects before and after what follows: wrapping renames nothing.
    new = [p for name, p in model.named_parameters() if name.startswith(_fresh(model, fresh))]
    model.requires_grad_(not strategy.light)
    return new


def strategy_of(model: nn.Module) -> Strategy | None:
    """What was applied to a model."""
    found: Strategy | None = vars(model).get("strategy")
    return found


def stock_of(model: nn.Module) -> str:
    """The fingerprint of the weights that a light strategy was applied to."""
    found: str = vars(model).get("stock", "")
    return found


def fingerprint(model: TaskModel | LanguageModel) -> str:
    """A hash of the pretrained weights, rounded to bfloat16: the same whatever type they are held in."""
    found = hashlib.blake2b(digest_size=16)
    for name, parameter in _stock(model):
        rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        found.update(f"{name} {list(rounded.shape)}".encode())
        found.update(rounded.view(torch.int16).numpy().data)
    return found.hexdigest()


def trainable(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def flops_per_token(model: nn.Module) -> int:
    """Floating-point operations of a training step for each token that the whole model reads: two for each weight forward,
    two for its gradient where it is trained, and two where the gradient goes on to something trained before it. Tables of
    embeddings are looked up, which costs none."""
    found, before = 0, False
    for name, p in model.named_parameters():
        if "embeddings" not in name:
            found += 2 * p.numel() * (1 + p.requires_grad + before)
        before = before or p.requires_grad
    return found


def changed(model: nn.Module) -> dict[str, Tensor]:
    """A float32 copy of all that is trained, by name: what a light strategy saves."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in trained.items()}


def restore(model: nn.Module, tensors: Mapping[str, Tensor], where: str | Path | None = None) -> None:
    """Put back what `changed` gave, in place, into a model that the same strategy was applied to.

    Args:
        where: what a message names.

    Raises:
        UserError: they are of another strategy, head or model.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(trained.keys() ^ tensors.keys())
    odd = odd or [name for name, p in trained.items() if p.shape != tensors[name].shape]
    if odd:
        raise UserError(f"saved for another strategy, head or model: {odd[0]} does not fit", where=where)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def merge(model: TaskModel | LanguageModel) -> None:
    """Fold low-rank changes into the weights, in place: an ordinary model, of which everything may be trained.

    In the type that the model has: best in float32. Models of strategies that wrapped nothing are ordinary as they are.

    Raises:
        UserError: what was put around the model is not a change of its weights.
    """
    for module in model.modules():
        if isinstance(module, Adapted | Prefixed | Mixed | Projected):
            kinds = {Adapted: "an adapter", Prefixed: "a prefix", Mixed: "a mean of layers", Projected: "an attention"}
            kind = kinds[type(module)]
            raise UserError(f"{kind} does not fold into the weights", mend="save what changed, or train with lora")
    for path, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            _replace(model, path, module.merged())
    vars(model).update(strategy=None, stock="")
    model.requires_grad_(True)


def layer_shares(model: TaskModel | LanguageModel) -> list[float]:
    """With the strategy `layers`, the share of the embeddings and of each layer in what the head reads."""
    stack = answering(model)
    if not isinstance(stack, Mixed):
        raise ValueError("no layers are weighted here")
    found: list[float] = stack.shares.detach().tolist()
    return found


def answering(model: TaskModel | LanguageModel) -> Stack:
    """The stack whose states the head reads."""
    stack = model.source if model.stack is None else model.stack
    assert stack is not None
    return stack


def stacks(model: TaskModel | LanguageModel) -> Iterator[tuple[str, Stack]]:
    """The stacks there are, with their names."""
    for name in ("stack", "source"):
        stack = getattr(model, name)
        if stack is not None:
            yield name, stack


def projections(
    model: TaskModel | LanguageModel,
) -> Iterator[tuple[str, Attention | FeedForward, dict[str, Matrix]]]:
    """Every projection of every layer by its path, the block it is of, and what in it are matrices of their own
    (`rows_of`): each with what a strategy calls it."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Attention):
            yield f"{path}.qkv", module, {"query": "query", "key": "key", "value": "value"}
            yield f"{path}.out", module, {"out": "out"}
        elif isinstance(module, FeedForward):
            yield f"{path}.up", module, {"gate": "up", "up": "up"} if module.gated else {"up": "up"}
            yield f"{path}.down", module, {"down": "down"}


def rows_of(block: Attention | FeedForward, matrix: str) -> tuple[int, int, int]:
    """Of a matrix: its inputs, the first of its rows in the projection it is in, and how many they are."""
    if isinstance(block, Attention):
        width, keys = block.heads * block.head_dim, block.key_heads * block.head_dim
        if matrix == "out":
            return width, 0, block.out.out_features
        start, rows = {"query": (0, width), "key": (width, keys), "value": (width + keys, keys)}[matrix]
        return block.qkv.in_features, start, rows
    if matrix == "down":
        return block.down.in_features, 0, block.down.out_features
    half = block.down.in_features
    return block.up.in_features, half if block.gated and matrix == "up" else 0, half


def wrap_low(
    model: nn.Module, path: str, lows: Mapping[str, Low], dropout: float = 0.0, generator: torch.Generator | None = None
) -> None:
    """Put low-rank changes around the projection at a path; with a generator, drawn anew."""
    base = model.get_submodule(path)
    assert type(base) is Linear
    for low in lows.values():
        if generator is not None:
            low.draw(generator)
        low.to(base.weight.device, base.weight.dtype)
    _replace(model, path, LowRank(base, lows, dropout))


def _lows(block: Attention | FeedForward, matrices: Mapping[str, Matrix], s: Strategy) -> dict[str, Low]:
    chosen = [name for name, matrix in matrices.items() if matrix in s.matrices]
    return {name: Low(*rows_of(block, name), s.rank, s.alpha) for name in chosen}


def _insert(model: TaskModel | LanguageModel, s: Strategy, generator: torch.Generator) -> None:
    """Adapters after the blocks of each layer."""
    for path, _, matrices in projections(model):
        after = "down" in matrices or (s.where == "both" and "out" in matrices)
        if after:
            base = model.get_submodule(path)
            assert isinstance(base, Linear)
            made = Adapted(base, s.size)
            made.draw(generator)
            made.adapter.to(base.weight.device, base.weight.dtype)
            _replace(model, path, made)
    if s.where == "both":
        norms = ("attention_norm", "cross_norm", "feed_forward_norm")
        for layer in _layers(model):
            thaw(p for name, p in layer.named_parameters() if name.startswith(norms))


def _mix(model: TaskModel | LanguageModel, *, alone: bool) -> None:
    """A mean of all layers for the last one.

    Args:
        alone: whether the stock is not trained beside it, whose rate would leave the shares where they are.
    """
    stack = answering(model)
    made = Mixed(stack, None if alone else MIXING)
    made.to(stack.embeddings.tokens.device, stack.embeddings.tokens.dtype)
    _replace(model, next(name for name, found in stacks(model) if found is stack), made)


def _put_before(model: TaskModel | LanguageModel, s: Strategy, generator: torch.Generator) -> None:
    """A prefix in every layer that sees whole sequences: at first, the keys and values of words there might be, since
    random numbers learn slowly and to less (Li & Liang 2021)."""
    assert isinstance(model, TaskModel)
    a, like = model.architecture, answering(model).embeddings.tokens
    length = min(s.length, a.max_length)
    ids = torch.randint(min(SAMPLE, a.vocab_size - 1), a.vocab_size, (length,), generator=generator).to(like.device)
    read: dict[nn.Module, Tensor] = {}  # what each attention was given, the first time where it serves several layers
    bases = [block.attention for block in _layers(model)]
    bases = [base for base in bases if base.rule is not None and base.rule.window is None]

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        read.setdefault(module, given[0])

    watches = [base.register_forward_pre_hook(look) for base in bases]
    training = model.training
    with torch.no_grad():
        model.eval().states(ids, Layout.from_lengths([length]).to(like.device))
    model.train(training)
    for watch in watches:
        watch.remove()
    at = torch.arange(s.length, device=like.device) % length
    for block in _layers(model):
        base = block.attention
        if base not in read:
            continue
        block.attention = made = Prefixed(base, s.length).to(like.device, like.dtype)
        with torch.no_grad():
            for kept, found in zip((made.keys, made.values), base.keys_values(read[base]), strict=True):
                kept.copy_(found[at])
    for _, stack in stacks(model):
        stack.before = s.length


def _fresh(model: TaskModel | LanguageModel, fresh: Collection[str] | None) -> tuple[str, ...]:
    if fresh is not None:
        return tuple(fresh)
    if isinstance(model, LanguageModel):
        return tuple(model.missing)
    return tuple(name for name, _ in model.named_parameters() if not in_stack(name))


def _stock(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if in_stack(name))


def _layers(model: TaskModel | LanguageModel) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def _last(model: TaskModel | LanguageModel, count: int) -> Iterator[nn.Parameter]:
    """The parameters of the last layers, and of the norm after them."""
    stack = answering(model)
    if count > stack.depth:
        raise UserError(f"there are only {stack.depth} layers", where="strategy.last", mend="train all with full")
    for block in stack.blocks[-count:]:
        yield from block.parameters()
    if stack.norm is not None:
        yield from stack.norm.parameters()


def thaw(parameters: typing.Iterable[nn.Parameter]) -> None:
    """Let these be trained."""
    for parameter in parameters:
        parameter.requires_grad_(True)


def _replace(model: nn.Module, path: str, made: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, made)
