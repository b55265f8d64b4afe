"""Which printed names and columns are metrics, which count steps, and which are neither; pure functions.

Rather too few than too many: what is no metric must not be drawn as one. A name is taken apart into words (`valLoss`,
`val_loss`, `val/loss` are the same two). One of `_NEVER` makes it a time, size, version, setting or count of something.
One of `_SURE` makes it a metric wherever it stands; one of `_LIKELY` only with a fraction, because "error: 2" and
"precision=16" are none. Any other name is believed only beside a step.
"""

import re
from functools import lru_cache

from executor.experiment import MAX_NAME


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_SURE = word_set(
    """
    loss losses acc accuracy ppl perplexity f1 auc auroc auprc mse rmse mae mape r2 nll bpc bpb bleu rouge wer cer iou miou
    dice psnr ssim fid elbo mrr ndcg logloss brier ece reward regret fitness likelihood
    """
)
_LIKELY = word_set(
    """
    error err return returns score scores recall precision map kl entropy objective cost correlation pearson spearman
    specificity sensitivity top1 top5 hits advantage divergence norm
    """
)
_TIMES = word_set(
    """
    time times eta elapsed duration second seconds secs sec ms minute minutes hour hours hr date day days timestamp
    walltime wall runtime latency speed throughput fps per hz tps
    """
)
_SIZES = word_set(
    """
    size sizes bytes byte memory mem ram vram gpu gpus cpu cpus device devices cuda port pid rank world worker workers
    thread threads line lineno col column address id uid version python torch numpy shape dim dims width height depth
    params parameters param flops index idx file files page url http https
    """
)
_SETTINGS = word_set(
    """
    seed seeds epochs steps iterations iters batches num n count counts samples tokens examples rows layers heads hidden
    embed embedding vocab block weight weights scale coef coefficient smoothing threshold target patience tolerance tol
    eps epsilon beta beta1 beta2 decay momentum dropout warmup exit code status errno signal level verbose debug
    """
)
_NEVER = _TIMES | _SIZES | _SETTINGS
_STEPS = ("global_step", "step", "train_step", "iteration", "iter", "update", "episode", "round", "epoch")
"""The best first: where a row has a step and an epoch, the step says more."""
_MARKS = frozenset(_STEPS) | word_set("it batch trial steps global iters")
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])")

_LONGEST = MAX_NAME - 8
"""Some names are made longer."""


@lru_cache(maxsize=4096)
def words(name: str) -> frozenset[str]:
    """The words of a name, in lower case."""
    return frozenset(word.lower() for word in _SPLIT.split(name[:_LONGEST]) if word)


@lru_cache(maxsize=4096)
def is_sure(name: str) -> bool:
    """A metric wherever it stands, if it is not one of those that never are."""
    return any(word in _SURE or word.endswith(("loss", "acc", "accuracy")) for word in words(name))


@lru_cache(maxsize=4096)
def is_likely(name: str) -> bool:
    """The same, if its value has a fraction."""
    return bool(words(name) & _LIKELY)


@lru_cache(maxsize=4096)
def is_never(name: str) -> bool:
    """No metric, whatever stands beside it."""
    if not 0 < len(name) <= _LONGEST or not name.isprintable() or not any(map(str.isalpha, name)):
        return True
    return bool(words(name) & _NEVER) or name.lower().strip("'\"_ ") in _MARKS


def step_column(names: list[str]) -> str | None:
    """The column that counts the steps, if there is one."""
    plain = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    return next((plain[step] for step in _STEPS if step in plain), None)


def metric_columns(names: list[str], step: str | None, path: str = "") -> list[str]:
    """The columns of a table that are metrics: beside a step all that may be, else those whose names say so.

    path: what the table itself is called, such as "losses".
    """
    found = [name for name in names if name != step and not is_never(name)]
    if step is None:
        found = [name for name in found if is_sure(f"{path}/{name}") or is_likely(f"{path}/{name}")]
    return found


def titles(path: str, names: list[str]) -> dict[str, str]:
    """The names of a table's columns, each after what the table is called; without those that a record cannot take."""
    found = {name: f"{path}/{name}" if path else name for name in names}
    return {name: title for name, title in found.items() if len(title) <= MAX_NAME and title.isprintable()}
