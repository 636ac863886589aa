"""lm-eval scores a model through the API as its own `hf` backend scores the same weights, sample by sample."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).with_name("lm_eval_tasks")
MODEL = "smollm2-135m-instruct"
# Of a whole answer or text, in nats. Up to half of it is the stock model's own rounding: see docs/clients.md.
CLOSE = 1e-3
FACTS, WORDS, STORIES, ENDINGS, PROSE = (
    f"tollhouse_{name}" for name in ("facts", "words", "stories", "endings", "prose")
)
ALL = (FACTS, WORDS, STORIES, PROSE)
LARGEST_BATCH = 8

pytestmark = [
    # What lm-eval and what it imports warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]


@dataclass(frozen=True)
class Outcome:
    """What lm-eval found: the scores of each task, and of each of its requests the answer.

    An answer is a text, a log-likelihood, or one with whether the model would have said just that.
    """

    scores: dict[str, dict[str, float]]
    answers: dict[str, list[Any]]


class Harness:
    """lm-eval in this process, with our tasks alone."""

    def __init__(self, base_url: str, folder: Path) -> None:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 - seconds, when it is wanted

        self._base_url = base_url
        self._folder = str(folder)
        self._tasks = TaskManager(include_path=str(TASKS), include_defaults=False)

    def stock(self, tasks: tuple[str, ...], *, chat: bool = False, **arguments: Any) -> Outcome:
        """By the stock model, in this process."""
        given = {"pretrained": self._folder, "dtype": "float32", **arguments}
        return self._run("hf", given, tasks, batch_size=LARGEST_BATCH, chat=chat, device="cpu")

    def completions(self, tasks: tuple[str, ...], *, batch_size: int, chat: bool = False, **arguments: Any) -> Outcome:
        given = {
            "model": MODEL,
            "base_url": f"{self._base_url}/completions",
            "tokenizer": self._folder,
            "tokenizer_backend": "huggingface",
            "max_length": 8192,
            **arguments,
        }
        return self._run("local-completions", given, tasks, batch_size=batch_size, chat=chat)

    def chats(self, tasks: tuple[str, ...], **arguments: Any) -> Outcome:
        given = {"model": MODEL, "base_url": f"{self._base_url}/chat/completions", **arguments}
        return self._run("local-chat-completions", given, tasks, batch_size=1, chat=True)

    def _run(
        self, model: str, arguments: dict[str, Any], tasks: tuple[str, ...], *, chat: bool, **options: Any
    ) -> Outcome:
        from lm_eval import simple_evaluate  # noqa: PLC0415 - as above

        found = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=list(tasks),
            task_manager=self._tasks,
            apply_chat_template=chat,
            log_samples=True,
            bootstrap_iters=0,
            **options,
        )
        return Outcome(
            scores={task: scores_of(found["results"][task]) for task in tasks},
            answers={task: answers_of(found["samples"][task]) for task in tasks},
        )


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in results.items() if "," in name and "stderr" not in name}


def answers_of(samples: list[dict[str, Any]]) -> list[Any]:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [answer for sample in ordered for responses in sample["resps"] for answer in flat(responses)]


def flat(responses: Any) -> list[Any]:
    return list(responses) if isinstance(responses, list) else [responses]


def check(found: Outcome, expected: Outcome) -> None:
    """All the tasks of `found` are answered and scored as `expected` has them."""
    for task, answers in found.answers.items():
        for ours, theirs in zip(answers, expected.answers[task], strict=True):
            check_answer(ours, theirs)
        for name, score in found.scores[task].items():
            # A perplexity is made of log-likelihoods; all others count right answers.
            tolerance = 1e-4 if task == PROSE else 0
            assert score == pytest.approx(expected.scores[task][name], rel=tolerance, abs=0), (task, name)


def check_answer(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, tuple):
        assert ours[1] is theirs[1]
        ours, theirs = ours[0], theirs[0]
    assert ours == (theirs if isinstance(theirs, str) else pytest.approx(theirs, rel=0, abs=CLOSE))


@pytest.fixture(scope="module")
def harness(house: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("OPENAI_API_KEY", house.key("open"))
        # The tasks' paths start there.
        patch.chdir(ROOT)
        yield Harness(house.base_url, model_folder)


@pytest.fixture(scope="module")
def stock(harness: Harness) -> Outcome:
    return harness.stock(ALL)


@pytest.fixture(scope="module")
def stock_chats(harness: Harness) -> Outcome:
    return harness.stock((FACTS, ENDINGS), chat=True)


def test_the_tasks_tell_right_from_wrong(stock: Outcome) -> None:
    """Scores of 0 or 1, or answers that are all alike, would agree by chance."""
    assert 0.4 < stock.scores[FACTS]["acc,none"] < 0.9
    assert 0.4 < stock.scores[WORDS]["exact_match,none"] < 0.9
    assert {greedy for _, greedy in stock.answers[FACTS]} == {True, False}
    assert len(set(stock.answers[STORIES])) == len(stock.answers[STORIES])


@pytest.mark.parametrize(
    ("tasks", "batch_size", "arguments"),
    [
        ((WORDS, PROSE), 1, {"tokenized_requests": False}),
        ((FACTS, PROSE), 1, {"num_concurrent": 4, "seed": 7}),
        (ALL, LARGEST_BATCH, {"tokenized_requests": False}),
        ((FACTS, STORIES), LARGEST_BATCH, {"num_concurrent": 3, "seed": 7}),
    ],
    ids=["texts alone", "tokens at once", "texts in batches", "batches at once"],
)
def test_completions_are_scored_as_the_stock_model(
    harness: Harness, stock: Outcome, tasks: tuple[str, ...], batch_size: int, arguments: dict[str, Any]
) -> None:
    check(harness.completions(tasks, batch_size=batch_size, **arguments), stock)


def test_texts_beyond_the_context_are_windowed_alike(harness: Harness) -> None:
    """`hf` may score one token more than it is told, for nothing follows the last; the API one less, for it answers."""
    expected = harness.stock((PROSE,), max_length=16)
    check(harness.completions((PROSE,), batch_size=LARGEST_BATCH, max_length=16 + 2), expected)


def test_the_chat_template_applied_by_lm_eval_is_scored_alike(harness: Harness, stock_chats: Outcome) -> None:
    check(harness.completions((FACTS, ENDINGS), batch_size=LARGEST_BATCH, chat=True), stock_chats)


def test_chats_are_answered_as_the_stock_model_with_its_template(harness: Harness, stock_chats: Outcome) -> None:
    check(harness.chats((ENDINGS,), num_concurrent=4), stock_chats)


def test_the_documented_command_scores_as_the_stock_model(
    house: Any, harness: Harness, stock: Outcome, model_folder: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs/clients.md").read_text()
    block = re.search(r"^lm_eval --model local-completions.*?(?=^```)", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    command = block[0].replace("http://127.0.0.1:8000/v1", house.base_url).replace("MODEL_FOLDER", str(model_folder))
    run = [sys.executable, "-m", *shlex.split(command.replace("\\\n", "")), "--output_path", str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (written,) = tmp_path.rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert results
    assert {task: scores_of(found) for task, found in results.items()} == {task: stock.scores[task] for task in results}
