"""Several conversations with sites at a time: each asks, takes the answers, and asks again."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.errors import LeptonError, SecAggError
from lepton_common.messages import TRAIN
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.collect import collect

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """One question to some nodes.

    Attributes:
        step: what it is about, for those who watch.
        contents: what each node is sent; taken out when it is.
        take: takes a node's answer, in order of arrival.
        fail: takes the error's name of a node that has dropped out.
        timeout_s: longest wait.
    """

    step: str
    contents: dict[int, RecordDict]
    take: Callable[[int, RecordDict], None]
    fail: Callable[[int, str], None]
    timeout_s: float


Conversation = Generator[Ask, None, T]


def hold(grid: Grid, conversation: Conversation[T]) -> T:
    """Holds one conversation to its end.

    Raises:
        SecAggError: what ended it.
    """
    (result,) = hold_together(grid, [conversation])
    if isinstance(result, SecAggError):
        raise result
    return result


def hold_together(grid: Grid, conversations: Sequence[Conversation[T]]) -> list[T | SecAggError]:
    """Holds conversations with different nodes at the same time, in step.

    Returns what each came to, or the error that ended it; the others go on.
    """
    results: dict[int, T | SecAggError] = {}
    while True:
        asks = []
        for number, conversation in enumerate(conversations):
            if number in results:
                continue
            try:
                asks.append(next(conversation))
            except StopIteration as ended:
                results[number] = ended.value
            except SecAggError as error:
                results[number] = error
        if not asks:
            return [results[number] for number in range(len(conversations))]
        _perform(grid, asks)


def _perform(grid: Grid, asks: Sequence[Ask]) -> None:
    by_node = {node: ask for ask in asks for node in ask.contents}
    contents = {node: ask.contents.pop(node) for node, ask in by_node.items()}
    observer, came = OBSERVER.get(Observer()), 0
    answers = collect(grid, contents, TRAIN, max(ask.timeout_s for ask in asks))
    del contents  # a model, which nobody needs while it is trained
    for node, answer in answers:  # not counted by `enumerate`, which holds on to the last one
        came += 1
        ask = by_node[node]
        observer.on_answer(ask.step, came, len(by_node))
        if isinstance(answer, str):
            ask.fail(node, answer)
            continue
        try:
            ask.take(node, answer)
        except LeptonError as error:
            ask.fail(node, type(error).__name__)
        del answer  # before the next is taken
