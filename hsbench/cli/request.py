"""What was typed: the options of a command as text, each by its field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsbench.cli.parse import typed_as
from hsbench.errors import UsageError

DEVICES = ("auto", "cuda", "cpu")
DEFAULT_PROFILE_DIR = "profiles/out"

#: What ``compare`` takes lists of, slowest-changing first. Sparsity, pruner and evict change fastest: cells that
#: differ only in them have the same tensors.
LISTS = ("workload", "dtype", "seq", "batch", "sparsity", "pruner", "evict")


class Typed:
    """Options as typed, by field; a dataclass's."""

    def given(self) -> dict[str, str | bool]:
        """What was given, by field."""
        return {name: typed for name, typed in vars(self).items() if typed is not None and typed is not False}

    def as_typed(self, error: UsageError) -> UsageError:
        """The error with the value as it was typed, ``2k`` for 2048; one of a list stays as it is."""
        typed = self.given().get(typed_as(error.option))
        if not isinstance(typed, str) or ("," in typed and error.option in LISTS):
            return error
        return UsageError(error.option, typed.strip() or '""', error.remedy)


@dataclass(frozen=True, kw_only=True)
class Request(Typed):
    """The options as typed; None where not given."""

    workload: str | None = None
    seq: str | None = None
    batch: str | None = None
    q_heads: str | None = None
    kv_heads: str | None = None
    head_dim: str | None = None
    dtype: str | None = None
    q_len: str | None = None
    sparsity: str | None = None
    key_sparsity: str | None = None
    value_sparsity: str | None = None
    pruner: str | None = None
    evict: str | None = None
    basis: str | None = None
    plan: str | None = None
    sink: str | None = None
    local: str | None = None
    methods: str | None = None
    ranks: str | None = None
    device: str | None = None
    kv: str | None = None
    layer: str | None = None
    tensors: str | None = None
    seed: str | None = None
    cache: str | None = None
    time: str | None = None
    sustain: str | None = None
    format: str | None = None
    output: str | None = None
    manifest: str | None = None
    phase: str | None = None
    model: str | None = None
    text: str | None = None
    new_tokens: str | None = None
    replay: str | None = None
    resume: str | None = None
    profile: bool = False
    profiler: str | None = None
    profile_dir: str | None = None

    @property
    def profile_folder(self) -> Path:
        """Where a profiler's reports go."""
        return Path(DEFAULT_PROFILE_DIR if self.profile_dir is None else self.profile_dir)

    def one(self, name: str) -> str | None:
        """The text of a field that takes one value in this command.

        Raises:
            UsageError: it is a list.
        """
        typed = getattr(self, name)
        if isinstance(typed, str) and "," in typed:
            raise UsageError(name, typed, "takes one value here; hsbench compare takes lists")
        assert typed is None or isinstance(typed, str)
        return typed
