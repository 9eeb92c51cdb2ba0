"""Benchmarks of lm-evaluation-harness: what they ask and how they score. The one module that imports ``lm_eval``.

Its own code builds the questions, in its order and with its few-shot examples, and its filters and metrics score them.
Its evaluation loop, which answers a benchmark in one go, is not used: kvray keeps what is done chunk by chunk.
"""

import contextlib
import difflib
import functools
import io
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from kvray.errors import CellError, install_command, last_line
from kvray.models.reference import find, tokenizer_place
from kvray.tasks.lm_eval import FEWSHOT_SEED, LmEval

NO_EFFECT = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "max_new_tokens", "max_tokens"}
"""Generation settings that are followed, or have no effect on greedy decoding."""
KINDS = ("generate_until", "loglikelihood", "multiple_choice")
"""Kinds of subtasks that score a question; lm_eval's fourth, loglikelihood_rolling, measures perplexities."""
_LENGTH = "max_length"
"""Column of generated questions (RULER's) with the length that they were made for."""
_PYTHON_SEED, _NUMPY_SEED = 0, 1234
"""lm_eval's own seeds of the libraries, for tasks whose preparation draws."""


@dataclass(frozen=True)
class Row:
    """One question: document ``doc_id`` of a subtask, and lm_eval's ``Instance`` per option of a choice, else one."""

    subtask: str
    doc_id: int
    document: Any
    requests: tuple[Any, ...]

    @property
    def id(self) -> str:
        return f"{self.subtask}-{self.doc_id}"


@dataclass(frozen=True)
class Benchmark:
    """A loaded benchmark.

    ``rows`` is every question by subtask (sorted by name), in lm_eval's order; ``subtasks`` and ``groups`` are its
    objects by name. ``system_left_out`` counts chats asked without their system message, which the chat template
    refused.
    """

    task: LmEval
    rows: tuple[Row, ...]
    subtasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    system_left_out: int = 0


def load(task: LmEval, tokenizer: Any, place: str | None = None) -> Benchmark:
    """Load a benchmark: its data (from the hub or from disk, or generated, as its task files say) and its questions.

    ``tokenizer`` is the base model's, for its chat template; None for a model that is asked by plain prompts.
    ``place`` is where the harness finds the tokenizer that measures generated prompts. Raises CellError if lm_eval is
    not installed, does not know the benchmark or cannot get its data, or the benchmark needs what is not offered here
    (sampling, images, running code of the model).
    """
    try:
        import datasets
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise CellError(
            f"lm_eval: {error.name} is not installed; type {install_command('benchmarks')} "
            "(where make setup made the environment: .venv/bin/pip install --no-deps -r requirements/benchmarks.txt)"
        ) from error
    template = ChatTemplate(tokenizer) if task.chat_template else None
    directory = contextlib.chdir(task.include_path) if task.include_path else contextlib.nullcontext()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    # tqdm writes to what sys.stderr is when a bar starts, nltk to sys.stdout. Errors are raised, so nothing is lost.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), directory:
        manager = _manager(task.include_path)
        if task.benchmark not in manager.all_tasks:
            near = difflib.get_close_matches(task.benchmark, manager.all_tasks, 3)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise CellError(f"benchmark: found {task.benchmark!r}; lm-evaluation-harness has none by this name{hint}")
        try:
            # As the harness's command line does, but of one index of all benchmarks for every metadata.
            manager._factory._meta = _metadata(task, place)
            _seed()
            loaded = manager.load([task.benchmark])
            subtasks = dict(sorted(loaded["tasks"].items()))
            for name, subtask in subtasks.items():
                _configure(name, subtask, task)
                places = _first_of_each_length(subtask, task.limit)
                subtask.build_all_requests(
                    limit=task.limit if places is None else None,
                    samples=places,
                    apply_chat_template=task.chat_template,
                    fewshot_as_multiturn=True,  # lm_eval's own default; without a chat template it has no meaning
                    chat_template=template,
                    tokenizer_name="",  # names a cache that is not used
                )
        except CellError:
            raise
        except Exception as error:
            # Data sets, hub and templates of lm_eval raise kinds of their own.
            why = f"lm-evaluation-harness cannot load it: {last_line(error)}"
            raise CellError(f"benchmark {task.benchmark}: {why}") from error
    rows = tuple(row for name, subtask in subtasks.items() for row in _rows(name, subtask))
    return Benchmark(task, rows, subtasks, loaded["groups"], template.left_out if template else 0)


def generation(task: LmEval, settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the most tokens of a generation and the texts that end it; the task's ``max_tokens`` takes precedence.

    ``settings`` are lm_eval's ``generation_kwargs``; CellError if they ask for more than greedy decoding.
    """
    if settings.get("do_sample") and float(settings.get("temperature") or 0.0) > 0.0:
        raise CellError(f"benchmark {task.benchmark} samples its answers; kvray decodes greedily")
    unknown = sorted(set(settings) - NO_EFFECT)
    if unknown:
        raise CellError(f"benchmark {task.benchmark}: generation settings {', '.join(unknown)} are not known to kvray")
    own = next((settings[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if settings.get(key)), None)
    stop = settings.get("until") or []
    return task.max_tokens or int(own or task.MAX_OUTPUT_TOKENS), tuple([stop] if isinstance(stop, str) else stop)


def choose_metric(values: Iterable[str], wanted: str | None) -> str:
    """Return which of the measured values, each a ``metric,filter`` in the benchmark's order, is the score.

    ``wanted`` is one of them, or a metric, by its first filter; CellError if it is not measured. None takes the first
    of all: ``acc`` of MMLU and HellaSwag, ``exact_match`` of GSM8K (strict-match), TriviaQA and NQ-Open.
    """
    known = list(values)
    for key in known:
        if wanted is None or wanted in (key, key.rpartition(",")[0]):
            return key
    raise CellError(f"metric: found {wanted!r}; expected one of {', '.join(known)}")


def by_length(values: Iterable[str]) -> list[str]:
    """Return those of some ``metric,filter`` that are the score at a length, as RULER's are: "4096,none"."""
    return [key for key in values if key.rpartition(",")[0].isdecimal()]


def _metadata(task: LmEval, place: str | None) -> dict[str, Any]:
    """Return the harness's metadata: the task's own, and the tokenizer that measures what benchmarks generate."""
    values = dict(task.metadata or {})
    if task.tokenizer:
        place = tokenizer_place(find(task.tokenizer, "metadata", weights=False))
    return values | ({"pretrained": place, "tokenizer": place} if place else {})


def _seed() -> None:
    """Put every generator that a benchmark's own code may draw from where it is in a new process."""
    random.seed(_PYTHON_SEED)
    np.random.seed(_NUMPY_SEED)
    for name, module in list(sys.modules.items()):
        held = getattr(module, "__dict__", {})
        # One of a module's own (RULER's common words) goes on from load to load; loading the module anew resets it.
        if "__mtime__" in held and any(isinstance(each, random.Random) for each in held.values()):
            del sys.modules[name]


def _first_of_each_length(subtask: Any, limit: int | None) -> list[int] | None:
    """Return the places of the first ``limit`` questions of each length; None without a limit or several lengths."""
    documents = subtask.eval_docs
    if limit is None or _LENGTH not in getattr(documents, "column_names", ()):
        return None
    lengths = list(documents[_LENGTH])
    if len(set(lengths)) < 2:
        return None
    seen: Counter[int] = Counter()
    places = []
    for place, length in enumerate(lengths):
        seen[length] += 1
        if seen[length] <= limit:
            places.append(place)
    return places


def _configure(name: str, subtask: Any, task: LmEval) -> None:
    """Set shots as lm_eval's command line does; refuse what kvray does not offer."""
    if subtask.OUTPUT_TYPE not in KINDS or getattr(subtask, "MULTIMODAL", False):
        needed = "images or sound" if subtask.OUTPUT_TYPE in KINDS else subtask.OUTPUT_TYPE
        raise CellError(
            f"benchmark {task.benchmark}: {name} needs {needed}; expected one of {', '.join(KINDS)} over text"
        )
    if getattr(subtask, "UNSAFE_CODE", False):
        raise CellError(f"benchmark {task.benchmark}: {name} runs code that the model writes; kvray does not")
    if (subtask.get_config("repeats") or 1) > 1:
        raise CellError(f"benchmark {task.benchmark}: {name} asks each question several times; kvray decodes greedily")
    if subtask.OUTPUT_TYPE == "generate_until":
        generation(task, subtask.get_config("generation_kwargs") or {})
    metric = choose_metric(
        (f"{metric},{each.name}" for each in subtask._filters for metric in subtask.aggregation()), task.metric
    )
    if subtask.higher_is_better().get(metric.rpartition(",")[0]) is False:
        raise CellError(f"metric {metric} of {name} is the better the lower; choose a score of questions in [0, 1]")
    own = subtask.get_config("num_fewshot")
    if task.shots is not None and task.shots != own and own == 0:
        raise CellError(f"shots: found {task.shots}; {name} is asked without any, so leave shots out")
    if task.shots is not None or own is None:
        subtask.set_config("num_fewshot", task.shots or 0)
    subtask.set_fewshot_seed(FEWSHOT_SEED + task.seed)


def _rows(name: str, subtask: Any) -> Iterator[Row]:
    by_document: dict[int, list[Any]] = {}
    for request in subtask.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    for doc_id, requests in by_document.items():
        requests.sort(key=lambda request: request.idx)
        yield Row(name, doc_id, requests[0].doc, tuple(requests))
    subtask._instances = None


@functools.cache
def _manager(include_path: str | None) -> Any:
    """Return the index of all benchmarks; building it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


class ChatTemplate:
    """Renders chats as lm_eval does; ``left_out`` counts those whose template takes no system message (Mistral's)."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer; CellError if it has no chat template."""
        if tokenizer is None or not tokenizer.chat_template:
            raise CellError("chat_template: the tokenizer has none; leave chat_template out to ask by plain prompts")
        self._tokenizer = tokenizer
        self.left_out = 0

    def __call__(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as text, ready for the answer or for the rest of its last message."""
        end = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **end))
        except TemplateError:
            self.left_out += 1
            rest = [message for message in messages if message["role"] != "system"]
            return str(self._tokenizer.apply_chat_template(rest, tokenize=False, **end))
