"""Opening a model: cheap checks, room for it, weights, and a look at what its layers ask of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hsbench.errors import HsbenchError, UnavailableError, UnsupportedError, UsageError, unknown
from hsbench.kernels.device import CPU, Device
from hsbench.measure.out_of_memory import is_out_of_memory, let_go
from hsbench.models.extra import quiet
from hsbench.models.fused import fuse_norms, join_projections
from hsbench.models.geometry import ModelGeometry
from hsbench.models.head import widen_head
from hsbench.models.memory import check_fits
from hsbench.models.sources import Source, find_source
from hsbench.problem.captured import ranges
from hsbench.problem.elements import FP32, INPUTS, Element
from hsbench.problem.shapes import ModelShape

if TYPE_CHECKING:
    from hsbench.models.hook import LayerFacts
    from hsbench.models.model import Model

COMPUTE = {FP32.name: FP32} | INPUTS
"""What a model may be computed in, by name."""

_SMALLER = "give a smaller model"
_RANDOM_VOCAB = 32_000
_RANDOM_MLP = 3.5  # width of the feed-forward layers over the model's, as in Llama-3.1-8B


def open_model(
    spec: str | Source,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    context: int | None = None,
    for_speed: bool = False,
) -> Model:
    """Open what MODEL names.

    Args:
        spec: a local HuggingFace folder, a ``.gguf`` file, a name in the local HuggingFace cache or on the hub, or
            ``random:PROFILE``; or what `find_source` made of it.
        device: as torch names it.
        dtype: what it is computed in, a name of `COMPUTE`; None for fp32 on a CPU, where it is as fast, and on a GPU
            for the 16-bit type that it was published in (that of the widest range where it was in none).
        context: tokens that it will see at most; None for all that it can. A layer that slides over a window at least
            as long is attended.
        for_speed: whether a model of 16 bits makes its logits in 16, and not, for what compares them, in fp32; and
            whether a GPU has a kernel of its own for norms.

    Raises:
        UsageError: no such model, a damaged one, or one that does not continue text.
        UnavailableError: the extra is missing, the hub cannot be reached, or there is not enough memory.
        UnsupportedError: an architecture that hsbench or this transformers does not know.
    """
    where = Device.of(device)
    if dtype is not None and dtype not in COMPUTE:
        raise unknown("dtype", dtype, COMPUTE)
    source = spec if isinstance(spec, Source) else find_source(spec)
    spec = source.spec
    element = COMPUTE[dtype] if dtype else _usual(source, where)
    _check_room(source, element, where)
    try:
        return _loaded(source, element, where, context, for_speed)
    except HsbenchError:
        raise
    except Exception as error:
        let_go(error)
        reason = " ".join(str(error).split())[:300]
        if is_out_of_memory(error):
            raise UnavailableError(f"MODEL {spec}: no room in memory for it ({reason}): {_SMALLER}") from error
        if "Unrecognized configuration class" in reason:
            raise UsageError("model", spec, "does not continue text; give a causal language model") from error
        raise UsageError("model", spec, f"cannot be loaded ({type(error).__name__}: {reason})") from error


def _usual(source: Source, device: Device) -> Element:
    if not device.is_cuda:
        return FP32
    return _published(source) or max(INPUTS.values(), key=lambda element: torch.finfo(element.torch_dtype).max)


def _published(source: Source) -> Element | None:
    """The 16-bit type of its weights; None where they are in none."""
    return next((element for element in INPUTS.values() if element.torch_name == source.dtype), None)


def _check_room(source: Source, element: Element, device: Device) -> None:
    parameters = _random_parameters(source.shape) if source.shape else source.parameters
    weights = element.nbytes(parameters)
    # transformers dequantises all of a GGUF file to fp32 before it makes a model of it.
    on_the_way = FP32.nbytes(parameters) if source.is_gguf else 0
    what = f"MODEL {source.spec} in {element}"
    if device.is_cuda:
        check_fits(what, weights, device, _SMALLER)
        check_fits(f"{what}, on the host,", on_the_way or weights, CPU, _SMALLER)
    else:
        check_fits(what, weights + on_the_way, device, _SMALLER)


def _loaded(source: Source, element: Element, device: Device, context: int | None, for_speed: bool) -> Model:
    from hsbench.models.hook import NAME, register
    from hsbench.models.model import Model

    register()
    tokenizer = source.tokenizer
    with quiet():
        from transformers import AutoModelForCausalLM

        if source.shape is not None:
            hf = _random_weights(source.shape, element, device)
        else:
            hf, info = AutoModelForCausalLM.from_pretrained(
                **source.arguments, dtype=element.torch_dtype, attn_implementation=NAME, output_loading_info=True
            )
            _check_whole(source, info)
        hf = hf.eval().to(str(device))
    config = hf.config.get_text_config()
    if source.rope_base is not None:
        _check_rope(source, hf)
    if not for_speed and element is not FP32:
        widen_head(hf)
    if for_speed and device.is_cuda:
        fuse_norms(hf)
        join_projections(hf)
    facts = _asked(hf)
    geometry = _geometry(config, source.max_positions, facts)
    attended, notes = _attended(facts, context or geometry.max_positions)
    return Model(
        hf,
        tokenizer,
        name=source.name,
        identity=source.identity,
        geometry=geometry,
        attended=attended,
        notes=notes,
        windows=frozenset(found.window for found in facts.values() if found.window is not None),
        element=_published(source),
    )


def _check_whole(source: Source, info: Mapping[str, Any]) -> None:
    """transformers fills weights that it does not find with random numbers, and says so in a warning."""
    lacking = [*info.get("missing_keys", ()), *(str(key) for key in info.get("mismatched_keys", ()))]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UsageError(
            "model", source.spec, f"lacks the weights {sorted(lacking)[0]}{more}; copy or download it again"
        )


def _check_rope(source: Source, hf: Any) -> None:
    """The frequencies that the model really has must be those of its files: versions of transformers look for the base
    in different places, and take a default where they find none."""
    for name, frequencies in hf.named_buffers():
        if name.endswith("inv_freq") and "local" not in name and "sliding" not in name:
            count = frequencies.numel()
            if count < 2 or source.rope_base is None:
                continue
            base = float(frequencies[1].double()) ** -count
            if abs(base / source.rope_base - 1) > 1e-3:
                what = f"its RoPE base is {source.rope_base:g}, but this transformers took {base:g}"
                raise UnsupportedError(f"MODEL {source.spec}: {what}; use the transformers that it was saved by")


def _asked(hf: Any) -> dict[int, LayerFacts]:
    """What each layer asks of attention, by a pass of two tokens through a cache of ours.

    Raises:
        UnsupportedError: a layer has no attention of the usual kind, or no K and V of its own.
    """
    from hsbench.models.hook import Call, calling

    facts: dict[int, LayerFacts] = {}
    with torch.no_grad(), calling(Call(None, frozenset(), frozenset(), facts)):
        hf(input_ids=torch.zeros(1, 2, dtype=torch.long, device=hf.device), use_cache=False)
    config = hf.config.get_text_config()
    others = sorted(set(range(config.num_hidden_layers)) - facts.keys())
    if others:
        raise UnsupportedError(
            f"layers {ranges(others)} of the {config.model_type} have no attention of the usual kind"
        )
    return facts


def _geometry(config: Any, positions: int, facts: Mapping[int, LayerFacts]) -> ModelGeometry:
    shapes = {(found.q_heads, found.kv_heads, found.head_dim) for found in facts.values()}
    if len(shapes) > 1:
        raise UnsupportedError(f"the layers of the {config.model_type} differ in their heads, {sorted(shapes)}")
    return ModelGeometry(len(facts), *shapes.pop(), positions, config.vocab_size)


def _attended(facts: Mapping[int, LayerFacts], context: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The layers that attention of ours may take, and a line for each reason that others stay dense."""
    why: dict[str, list[int]] = {}
    for layer, found in sorted(facts.items()):
        if found.softcap:
            why.setdefault("cap their scores", []).append(layer)
        elif found.sinks:
            why.setdefault("have a learned sink", []).append(layer)
        elif found.window is not None and found.window < context:
            why.setdefault(f"slide over {found.window} tokens", []).append(layer)
    dense = {layer for layers in why.values() for layer in layers}
    notes = (f"layers {ranges(layers)} {reason}: they stay dense" for reason, layers in why.items())
    return tuple(layer for layer in sorted(facts) if layer not in dense), tuple(notes)


def _random_weights(shape: ModelShape, element: Element, device: Device) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from hsbench.models.hook import NAME

    hidden = shape.q_heads * shape.head_dim
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=int(_RANDOM_MLP * hidden),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.q_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_seq,
        vocab_size=_RANDOM_VOCAB,
        tie_word_embeddings=True,
    )
    # Where they are to be: a CPU would draw billions of them for a minute.
    devices = [torch.cuda.current_device()] if device.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.device(str(device)):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=element.torch_dtype, attn_implementation=NAME)


def _random_parameters(shape: ModelShape) -> int:
    hidden = shape.q_heads * shape.head_dim
    attention = 2 * hidden * (shape.q_heads + shape.kv_heads) * shape.head_dim
    mlp = 3 * hidden * int(_RANDOM_MLP * hidden)
    return shape.layers * (attention + mlp) + _RANDOM_VOCAB * hidden
