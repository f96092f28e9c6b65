"""The Python face: what the command line does, as functions. `import bertkin` has them all.

import bertkin
bertkin.train_tokenizer("corpus/", out="tokenizer")
bertkin.pretrain("corpus/", out="runs/mine", **{"data.tokenizer": "tokenizer", "train.minutes": 30})
bertkin.resume("runs/mine")
print(bertkin.fill("runs/mine", "Paris is the [MASK] of France."))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bertkin.config import AUTO, Recipe, TokenizerKind, from_mapping, load_recipe, merge
from bertkin.errors import UserError

if TYPE_CHECKING:
    from bertkin.tasks.checking import Checked
    from bertkin.tasks.fill import Filled, Loaded, Order
    from bertkin.tasks.generate import Generated, Precision, Writer
    from bertkin.tasks.pairs import Scores
    from bertkin.tasks.predict import Reader
    from bertkin.tasks.prompted import Prompted
    from bertkin.tasks.sampling import Sampling
    from bertkin.tasks.scoring import Method
    from bertkin.text.store import Store
    from bertkin.text.tokenizer import NormalForm, Tokenizer
    from bertkin.train.loop import Result
    from bertkin.train.progress import Listener

Paths = str | Path | Sequence[str | Path]

BUDGETS = ("steps", "tokens", "epochs", "minutes")


def make_recipe(
    corpus: Paths = (),
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe from a file and from what is said beside it, which counts for more.

    Args:
        corpus: files, folders, globs; by default the file's.
        preset: FAMILY-SIZE; by default the file's, or modern-mini.
        config: a recipe in YAML.
        options: fields by dotted name, {"train.minutes": 1}, or by room, {"train": {"minutes": 1}}.

    Raises:
        UserError: a field we do not know or cannot use.
    """
    recipe = load_recipe(config) if config else Recipe()
    given = _nested(options or {})
    checked = from_mapping(Recipe, given, "options")
    for room, values in given.items():
        kept = getattr(recipe, room)
        if room == "train" and any(name in BUDGETS for name in values):  # a new budget takes the place of the old
            kept = replace(kept, **dict.fromkeys(BUDGETS, AUTO))
        changes = {name: getattr(getattr(checked, room), name) for name in values}
        recipe = replace(recipe, **{room: replace(kept, **changes)})
    if preset is not None:
        recipe = replace(recipe, preset=preset)
    sources = _listed(corpus)
    if sources:
        recipe = replace(recipe, data=replace(recipe.data, corpus=sources))
    return recipe


def _nested(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by room; one that is in no room is refused."""
    rooms = [f.name for f in fields(Recipe) if f.name != "preset"]
    nested: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        room, _, field = name.partition(".")
        if room in rooms and (field or isinstance(value, Mapping)):
            nested.setdefault(room, {}).update({field: value} if field else value)
        else:
            raise UserError(
                f"unknown option {name!r}", mend=f"name a field of {', '.join(rooms)}, such as train.minutes"
            )
    return nested


def _listed(paths: Paths) -> tuple[str, ...]:
    return (os.fspath(paths),) if isinstance(paths, str | Path) else tuple(os.fspath(path) for path in paths)


def train_tokenizer(
    corpus: Paths,
    *,
    out: str | Path | None = None,
    kind: TokenizerKind = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    normal_form: NormalForm | None = None,
    split_chinese: bool = True,
    sentinels: int = 0,
    **reading: Any,
) -> Tokenizer:
    """Train a tokenizer on a corpus and, if `out` is given, save it there.

    Args:
        corpus: files, folders, globs.
        out: a folder, which `transformers` opens too.
        kind, vocab_size, lowercase, strip_accents, normal_form, split_chinese, sentinels:
            see `bertkin.text.tokenizer.train_tokenizer`.
        reading: field, documents, encoding_errors, max_words, cache; see `bertkin.config.Data`.

    Raises:
        UserError: the corpus cannot be read, or cannot fill the vocabulary.
    """
    from bertkin.text.cache import tokenizer_for

    tokenizer = tokenizer_for(
        _listed(corpus),
        kind=kind,
        vocab_size=vocab_size,
        lowercase=lowercase,
        strip_accents=strip_accents,
        normal_form=normal_form,
        split_chinese=split_chinese,
        sentinels=sentinels,
        **reading,
    )
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def prepare(corpus: Paths, *, preset: str = "modern-mini", listener: Listener | None = None, **data: Any) -> Store:
    """Turn a corpus into a token store, so that a pretraining with the same options finds it made.

    Args:
        corpus: files, folders, globs.
        preset: decides the kind of tokenizer, where none is given.
        listener: who is told how it goes.
        data: fields of `bertkin.config.Data`.

    Raises:
        UserError: anything about the corpus.
    """
    from bertkin.models.presets import preset as preset_recipe
    from bertkin.train.progress import QuietListener
    from bertkin.train.setup import read_corpus

    asked = make_recipe(corpus, preset=preset, options={"data": data}).data
    listener = listener or QuietListener()
    try:
        return read_corpus(merge(preset_recipe(preset).data, asked), listener.preparing)[1]
    finally:
        listener.close()


def pretrain(
    corpus: Paths = (),
    *,
    out: str | Path,
    preset: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Grow a language model from raw text into a run folder.

    Args:
        corpus: files, folders, globs; by default what the recipe file says.
        out: the run folder.
        preset: FAMILY-SIZE, such as modern-mini or bert-base.
        config: a recipe in YAML.
        overwrite: empty the run folder first.
        listener: who is told how it goes; by default a bar on standard error.
        options: any field of `bertkin.config`, as train={"minutes": 1} or **{"train.minutes": 1}.

    Raises:
        UserError: something about the recipe, the corpus or the disk will not do.
    """
    recipe = make_recipe(corpus, preset=preset, config=config, options=options)
    from bertkin.train import pretraining
    from bertkin.train.progress import RichListener

    return pretraining.pretrain(recipe, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def adapt(
    model: str | Path,
    corpus: Paths = (),
    /,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Go on pretraining a model on new text (Gururangan et al. 2020) into a run folder.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        options: as for `pretrain`; data.grow_vocab gives the model words of the corpus's own, data.keep_text names
            other text whose held-out loss is measured too. `bertkin.train.changes` reads what changed.

    Raises:
        UserError: the model cannot be trained on, or as for `pretrain`.
    """
    train = {**options.pop("train", {}), "init": os.fspath(model)}
    return pretrain(
        corpus, out=out, config=config, overwrite=overwrite, listener=listener, **{**options, "train": train}
    )


def resume(run: str | Path, *, listener: Listener | None = None) -> Result:
    """Go on with a run that was stopped; it ends with the same weights as one that never was.

    Raises:
        UserError: not a run folder, or its corpus has changed.
    """
    from bertkin.tasks import finetune as tuning
    from bertkin.tasks import search, together
    from bertkin.tasks.joining import is_together
    from bertkin.train import pretraining
    from bertkin.train.progress import RichListener

    if search.is_search(Path(run)):
        search.resume_search(Path(run), listener=listener or RichListener())  # whose best trial is then the run
    go_on = tuning.resume if tuning.is_tuning(Path(run)) else pretraining.resume
    go_on = together.resume_together if is_together(Path(run)) else go_on
    return go_on(Path(run), listener=listener or RichListener())


def load(path: str | Path) -> Loaded:
    """Open a model: a run folder, a model folder (ours or transformers'), or a hub id.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from bertkin.tasks import fill as room

    return room.load(path)


@overload
def fill(  # type: ignore[overload-overlap]  # a str is a sequence of str too
    model: Loaded | str | Path, texts: str, *, top_k: int = 5, order: Order = "once"
) -> Filled: ...
@overload
def fill(
    model: Loaded | str | Path, texts: Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> list[Filled]: ...
def fill(
    model: Loaded | str | Path, texts: str | Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> Filled | list[Filled]:
    """What a model puts where a text says [MASK].

    Args:
        model: from `load`, or what `load` takes.
        texts: one text or several.
        top_k: answers for each blank.
        order: "confident" fills in the surest blank and reads the text again, until none is left.

    Returns:
        One `Filled` for one text, a list for several. Printed, it shows the answers with their probabilities.

    Raises:
        UserError: a text without [MASK], or longer than the model reads.
    """
    from bertkin.tasks import fill as room

    filled = room.fill(model, texts, top_k=top_k, order=order)
    return filled[0] if isinstance(texts, str) else filled


@overload
def generate(  # type: ignore[overload-overlap]
    model: Writer | Loaded | str | Path,
    prompts: str,
    *,
    greedy: bool = False,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> Generated: ...
@overload
def generate(
    model: Writer | Loaded | str | Path,
    prompts: Sequence[str],
    *,
    greedy: bool = False,
    num: int = 1,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> list[Generated]: ...
def generate(
    model: Writer | Loaded | str | Path,
    prompts: str | Sequence[str],
    *,
    greedy: bool = False,
    num: int = 1,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> Generated | list[Generated]:
    """What a model writes after a text; an encoder–decoder, for it.

    Args:
        model: a run folder, a model folder, a hub id, or what is open: `load`, `bertkin.tasks.generate.open_writer`.
        prompts: one text or several.
        greedy: always take the likeliest token; short for temperature=0.
        num: texts for each prompt, by chance.
        stop: strings that end a text.
        truncate: "left" lets a prompt that is too long lose its beginning.
        precision: of the weights, where the model is opened here.
        how: fields of `bertkin.models.generate.Decoding`: max_new_tokens, temperature, top_k, top_p, min_p, beams,
            length_penalty, repetition_penalty, seed.

    Returns:
        One `Generated` for one prompt and num=1, otherwise a list.

    Raises:
        UserError: a model that cannot write, or a prompt longer than it reads.
    """
    from bertkin.tasks import generate as room

    chosen = room.decoding(**how, **({"temperature": 0.0} if greedy else {}))
    stops = [stop] if isinstance(stop, str) else stop
    writer = room.open_writer(model, precision=precision)
    written = room.generate(writer, prompts, chosen, num=num, stop=stops, truncate=truncate)
    return written[0] if isinstance(prompts, str) and num == 1 else written


def pairs(
    model: Loaded | str | Path,
    folder: str | Path,
    *,
    limit: int | None = None,
    method: Method = "auto",
    within_word: bool = False,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask a model which of two sentences is right, for every pair of a folder such as BLiMP's.

    Args:
        model: from `load`, or what `load` takes.
        folder: of .jsonl files with sentence_good and sentence_bad, one a paradigm.
        limit: pairs of each file at most.
        method, within_word: how a sentence is scored; see `bertkin.tasks.scoring.score_sentences`.
        precision: of the computation.
        progress: called with pairs done and pairs in all.

    Returns:
        Shares of pairs whose good sentence scored higher; printed, a table.

    Raises:
        UserError: no pairs there, or a model that cannot score a sentence that way.
    """
    from bertkin.tasks.fill import Loaded
    from bertkin.tasks.pairs import evaluate_pairs

    loaded = model if isinstance(model, Loaded) else load(model)
    return evaluate_pairs(
        loaded.model,
        loaded.tokenizer,
        folder,
        limit,
        method=method,
        objective=loaded.objective,
        noise=loaded.noise,
        within_word=within_word,
        precision=precision,
        progress=progress,
    )


def prompt(models: Loaded | str | Path | Sequence[Loaded | str | Path], examples: str | Path, **how: Any) -> Prompted:
    """Ask models by example: a task, some examples and an input, without training (Brown et al. 2020).

    Args:
        models: one or several, from `load`, or what `load` takes.
        examples: a .tsv, .csv or .jsonl file with a column input and a column output.
        how: task, test, pattern, shots, seeds, score, normalise, choices and more; see
            `bertkin.tasks.prompt.evaluate_prompts`.

    Returns:
        Scores by model, shots and seed. Printed, a table; `plot(path)` draws it.

    Raises:
        UserError: something about the files, the pattern, the choices or a model will not do.
    """
    from bertkin.tasks.fill import Loaded
    from bertkin.tasks.prompt import evaluate_prompts

    several = [models] if isinstance(models, Loaded | str | Path) else list(models)
    return evaluate_prompts(several, examples, **how)


def check_data(data: Paths, **how: Any) -> Checked:
    """Look labelled data over: duplicates, leaks from training, skewed labels, empty and overlong texts, unusable rows.

    Args:
        data: a folder with parts named train, dev and test; or files, told apart by their names.
        how: dev, test, tokenizer, max_length, and columns, output, scheme and more; see
            `bertkin.tasks.checking.check_data`.

    Returns:
        What was found, with places. Printed, a report; `faults` are the rows that cannot be used.

    Raises:
        UserError: files that cannot be read, or labels that make no task.
    """
    from bertkin.tasks import checking

    return checking.check_data(data, **how)


def finetune(
    model: str | Path,
    data: Paths,
    *,
    out: str | Path,
    strategy: str | Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Fine-tune a pretrained model on labelled data into a run folder.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        data: labelled files, or one folder with train, dev and test.
        out: the run folder.
        strategy: how much is trained: a kind, such as "lora", or fields of `bertkin.models.strategy.Strategy`.
        train: fields of `bertkin.config.Train`, such as {"epochs": 3}.
        overwrite: empty the run folder first.
        listener: who is told how it goes; by default a bar on standard error.
        options: other fields of `bertkin.tasks.tuning.Tuning`, such as task="class" or batch=16.

    Raises:
        UserError: anything about the data, the model or the disk.
    """
    from bertkin.tasks.finetune import finetune as run
    from bertkin.tasks.tuning import Tuning
    from bertkin.train.progress import RichListener

    how: Mapping[str, Any] = {"kind": strategy} if isinstance(strategy, str) else strategy or {}
    fields = {"model": os.fspath(model), "data": list(_listed(data)), "strategy": dict(how), "train": dict(train or {})}
    tuning = from_mapping(Tuning, fields | options, "options")
    return run(tuning, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def finetune_together(
    model: str | Path,
    tasks: str | Path | Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    data: str | Path | None = None,
    sampling: Sampling = "annealed",
    strategy: str | Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Fine-tune a pretrained model on several tasks together: one stock, and for each task a head, and whatever the
    strategy puts around it.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        tasks: a suite (glue, or a YAML file; see `bertkin.tasks.suites`), or for each task by name its fields of
            `bertkin.tasks.tuning.Tuning`, such as {"films": {"data": "films.tsv"}}.
        out: the run folder.
        data: where a suite's data lie; by default beside the YAML file.
        sampling: how the task of a step is drawn; see `bertkin.tasks.sampling`.
        strategy, train: as for `finetune`.
        options: fields that are the same for all tasks: batch, dropout, attention_dropout, length, pooling, skip_bad.

    Raises:
        UserError: anything about the tasks, their data, the model or the disk.
    """
    from bertkin.tasks.joining import recipe_of
    from bertkin.tasks.suites import read_suite
    from bertkin.tasks.together import together as run
    from bertkin.tasks.tuning import Tuning
    from bertkin.train.progress import RichListener

    how: Mapping[str, Any] = {"kind": strategy} if isinstance(strategy, str) else strategy or {}
    common = {"model": os.fspath(model), "strategy": dict(how), "train": dict(train or {})}
    if isinstance(tasks, Mapping):
        each = {name: from_mapping(Tuning, dict(values), name) for name, values in tasks.items()}
    else:
        each = read_suite(tasks, data)
    recipe = recipe_of(each, from_mapping(Tuning, common | options, "options"), sampling)
    return run(recipe, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def predict(
    model: Reader | str | Path, texts: str | Sequence[str | Sequence[str]], *, precision: str = "auto"
) -> list[dict[str, Any]]:
    """What a fine-tuned model answers.

    Args:
        model: what `finetune` made, a folder of transformers, or an opened `bertkin.tasks.predict.Reader`.
        texts: one text, several, or, for tasks that read more than one, a tuple of texts for each question.
        precision: auto is bfloat16 where the processor gains by it.

    Returns:
        For each a mapping: label and probability, labels, score, words and entities, or answer, by the task.

    Raises:
        UserError: there is no such model, or more or fewer texts than the task takes.
    """
    from bertkin.tasks import predict as room

    reader = model if isinstance(model, room.Reader) else room.open_reader(model, precision=precision)
    return _said(reader, texts)


def predict_all(
    models: str | Path | Sequence[str | Path],
    texts: str | Sequence[str | Sequence[str]],
    *,
    tasks: str | Sequence[str] = (),
    precision: str = "auto",
) -> dict[str, list[dict[str, Any]]]:
    """What several models answer, light ones of one stock over that stock, which is in memory once.

    Args:
        models: one or several, each what `predict` takes or the run of tasks that were trained together.
        texts, precision: as for `predict`.
        tasks: which of the tasks that were trained together; by default all.

    Returns:
        What `predict` gives, by the name of the task or the path of the model.

    Raises:
        UserError: as `predict`; or there is no such task.
    """
    from bertkin.tasks.several import open_readers

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    readers = open_readers(_listed(models), tasks=names, precision=precision)
    return {name: _said(reader, texts) for name, reader in readers.items()}


def _said(reader: Reader, texts: str | Sequence[str | Sequence[str]]) -> list[dict[str, Any]]:
    given = [texts] if isinstance(texts, str) else texts
    groups = [(one,) if isinstance(one, str) else tuple(one) for one in given]
    return [reader.said(group, found) for group, found in zip(groups, reader.predict(groups), strict=True)]


def embed(model: str | Path, texts: Sequence[str], **options: Any) -> Any:
    """A vector for each text: float32 [texts, width].

    Args:
        model: a run folder, a model folder, or a hub id.
        options: see `bertkin.tasks.embed.Embedder`: pooling, normalise, precision, length.

    Raises:
        UserError: there is no such model.
    """
    from bertkin.tasks.embed import Embedder

    return Embedder(model, **options).encode(list(texts))
