"""What ``dense``, ``hierarchical`` and ``evict`` share: attention over pages, by our own kernels."""

from __future__ import annotations

from hsbench.attention import calls
from hsbench.cache.fit import QUERIES
from hsbench.cache.fitted import KVCompressor
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.layouts import why_decode_only, why_no_pages
from hsbench.cache.prune import BLOCK
from hsbench.cache.pruner import MAGNITUDE, Pruner, pruner_for
from hsbench.errors import UnsupportedError
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.methods.base import Method, Prepared
from hsbench.methods.native_call import prepare_native, why_not_native
from hsbench.problem.elements import FP32, SIXTEEN_BIT, STORED, StoredElements
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload

_NEEDS_QUERIES = "pruner {} needs the context's last queries: give --kv with a file that holds several"


_FP64 = 8
"""Bytes."""


def paths(phase: Phase, device: Device) -> list[str]:
    """The kernels of a phase that can be asked for by name, after ``auto``, the choice that is left to the library."""
    return list(library.PATHS) if phase.causal and device.is_cuda else ["auto"]


def variants(phase: Phase, device: Device) -> list[tuple[str, StoredElements]]:
    """The rows of a family: values of 16 bits by each of :func:`paths`, others by the one kernel that there is."""
    of_others = [("auto", elements) for elements in STORED.values() if elements is not SIXTEEN_BIT]
    return [(path, SIXTEEN_BIT) for path in paths(phase, device)] + of_others


class PagesMethod(Method):
    """Attention over pages at the sparsity that ``sparsities`` gives.

    Args:
        phase: the one that it runs in.
        device: where.
        path: one of :func:`paths`; a kernel that is named makes a variant, ``family:path``, that runs on request.
        elements: what the pages' values are; others than 16 bits make a variant, ``family:elements``, or
            ``family:elements:path``.
    """

    family: str
    prunes = True

    def __init__(
        self, phase: Phase, device: Device, path: str = "auto", elements: StoredElements = SIXTEEN_BIT
    ) -> None:
        self.phase, self.device, self.path, self.elements = phase, device, path, elements
        named = path != "auto"
        # Nor does a row come with its family that no kernel of the device could ever run.
        no_pages = why_no_pages(elements, device) or (phase.causal and why_decode_only(elements, device))
        self.on_request = named or bool(no_pages)
        variants = [elements.name] * elements.has_scale + [path] * named
        self.name = ":".join([self.family, *variants])

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        """Key and value sparsity, 0 to 0.5."""
        raise NotImplementedError

    def evict(self, workload: Workload) -> float:
        """The share of eligible blocks that is evicted, 0 to 1."""
        return 0.0

    def pruner(self, workload: Workload) -> Pruner:
        """What prunes K and V, where their values have 16 bits."""
        return MAGNITUDE

    def _pruner(self, workload: Workload) -> Pruner:
        return pruner_for(self.pruner(workload), self.elements)

    def unavailable(self, device: Device) -> str | None:
        return library.why_cannot(self.phase.name, device) or calls.why_not_path(self.path)

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        pruner = self._pruner(workload)
        if pruner.needs_queries and workload.is_synthetic:
            return _NEEDS_QUERIES.format(pruner)
        without_kernel = why_no_pages(self.elements, device, pruner.value_axis)
        if self.phase.causal:
            without_kernel = without_kernel or calls.why_not_prefill(self.elements, device, pruner.value_axis)
        return why_not_native(workload) or without_kernel

    def why_not_sharded(self, workload: Workload) -> str | None:
        if self.evict(workload) > 0:
            return "blocks to evict are chosen over the whole sequence: leave --ranks or --evict out"
        if self._pruner(workload).needs_queries:
            return f"pruner {self._pruner(workload)} looks at queries over the whole sequence: take another"
        return None

    def estimate_bytes(self, workload: Workload) -> int:
        return self.held_bytes(workload) + self._pruning_bytes(workload)

    def held_bytes(self, workload: Workload) -> int:
        # The pages, at most a dense cache and its last padding; outputs; split partials are small beside them.
        outputs = workload.query_bytes + FP32.nbytes(workload.batch * workload.q_heads * workload.q_len)
        padding = 2 * workload.element.nbytes(workload.batch * workload.kv_heads * BLOCK * workload.head_dim)
        left = workload.dense_kv_bytes if self.evict(workload) else 0  # of K and V, gathered
        return workload.dense_kv_bytes + padding + outputs + left + (64 << 20)

    def _pruning_bytes(self, workload: Workload) -> int:
        """What fitting a pruner and choosing whom to evict take on the way, in torch; native code prunes, weighs, folds
        and converts block by block."""
        pruner, evicts = self._pruner(workload), self.evict(workload) > 0
        tokens = workload.batch * workload.kv_heads * workload.seq
        weighing = 7 * _FP64 * tokens if pruner.value_weights != "none" else 0  # norms of V's tokens, and their weights
        # A mean is of one head in fp64 at a time, where no kernel of ours takes it; keys' norms likewise.
        in_fp64 = pruner.key_shift or pruner.value_shift or evicts
        of_a_head = 2 * _FP64 * workload.seq * workload.head_dim if in_fp64 else 0
        looked_at = 0
        if pruner.needs_queries or (evicts and not workload.is_synthetic):
            scores = workload.batch * workload.q_heads * QUERIES * workload.seq
            looked_at = FP32.nbytes(3 * scores + tokens * workload.head_dim)
        return max(weighing, of_a_head, looked_at)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        key, value = self.sparsities(workload)
        pruner = self._pruner(workload)
        if pruner.needs_queries and (inputs.context is None or inputs.context.shape[2] < 2):
            raise UnsupportedError(_NEEDS_QUERIES.format(pruner))
        # One query is no sample of what later ones attend to.
        several = inputs.context is not None and inputs.context.shape[2] > 1
        compressor = KVCompressor(
            inputs.k,
            inputs.v,
            key_sparsity=key,
            value_sparsity=value,
            sink=workload.sink,
            local=workload.local,
            pruner=pruner,
            queries=inputs.context if several else None,
            evict=self.evict(workload),
            query_rms=inputs.query_rms,
            elements=self.elements,
        )

        def call_of(kv: HierarchicalKV) -> calls.Call:
            if self.phase.causal:
                return calls.prefill_call(inputs.q, kv, self.path, inputs.ahead)
            return calls.decode_call(inputs.q, kv)

        return prepare_native(compressor, call_of, prunes=self.prunes, exact=self.dense)
