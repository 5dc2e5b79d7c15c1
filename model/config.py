"""Typed, closed configuration of the section `model` of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from features.config import Closed, Section
from features.errors import DataError
from features.spec import FeatureSpec

Positive = Annotated[int, Field(ge=1)]
Window = Annotated[int, Field(ge=0)]
Kind = Literal["ultra_hstu", "hstu", "transformer", "sasrec", "din", "stca"]


class StreamConfig(Closed):
    """The transducer of one stream.

    max_length: history tokens at most; also the attention's divisor.
    num_layers: STU layers.
    local_window, global_window: K1 and K2 of the mask. A local_window of at least max_length is full causal HSTU.
    pyramid: [after_layer, keep] steps: after that many layers only the newest `keep` history tokens go on.
    """

    max_length: Positive
    num_layers: Positive
    local_window: Window
    global_window: Window
    pyramid: tuple[tuple[Positive, Positive], ...]

    @model_validator(mode="after")
    def _pyramid_narrows(self) -> Self:
        layer, length = 0, self.max_length
        for after_layer, keep in self.pyramid:
            if not layer < after_layer < self.num_layers:
                raise ValueError(
                    f"pyramid: after_layer {after_layer} must be above {layer} and below num_layers {self.num_layers}"
                )
            if keep >= length:
                raise ValueError(
                    f"pyramid: keep {keep} after layer {after_layer} must be below {length}, what arrives there"
                )
            layer, length = after_layer, keep
        return self


class HeadsConfig(Closed):
    """The multi-task heads.

    tasks: actions to predict, the columns of the logits.
    hidden_dim: width of each task's hidden layer.
    watch_ratio_weight: weight of the watch-ratio regression in the loss; 0 leaves the head out.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    hidden_dim: Positive
    watch_ratio_weight: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _each_task_once(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: a name is listed twice")
        return self


class ModelConfig(Section):
    """A ranker: HSTU 2.0, or a baseline that differs in its sequence encoders alone.

    kind: the sequence encoder, see model.transducer and model.baselines. Of a stream all kinds read max_length and
    num_layers; the windows, the pyramid and global_axis are ultra_hstu's, impl and gemm its and hstu's.
    action_encoding: what a history token tells of its actions: which they were and how intense (`heterogeneous`), which
    alone (`type`), or neither (`none`).
    dim: D, width of every token.
    num_heads, qk_dim, v_dim: attention heads and the dimensions of each.
    dropout: probability, on the output of each layer and in the heads.
    norm_epsilon: of every layer norm.
    global_axis: see kernels.mask.
    streams: one transducer per entry.
    contextual: one token per group of user fields, the sum of their embeddings.
    impl: which kernels compute attention and the rest of a layer.
    compute: what the transducers compute in; weights, tables, heads and the loss stay fp32. bf16 needs a GPU.
    gemm: what a layer's two products take, fp8 being e4m3 with a scale per row; fp8 needs bf16 compute.
    """

    section: ClassVar[str] = "model"

    kind: Kind
    action_encoding: Literal["heterogeneous", "type", "none"]
    dim: Annotated[int, Field(ge=4, multiple_of=4)]
    num_heads: Positive
    qk_dim: Positive
    v_dim: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    norm_epsilon: Annotated[float, Field(gt=0)]
    global_axis: Literal["queries", "keys"]
    streams: Annotated[dict[str, StreamConfig], Field(min_length=1)]
    contextual: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...]
    heads: HeadsConfig
    impl: Literal["reference", "triton"]
    compute: Literal["fp32", "bf16"]
    gemm: Literal["bf16", "fp8"]

    @model_validator(mode="after")
    def _each_field_once(self) -> Self:
        members = [name for group in self.contextual for name in group]
        repeated = sorted({name for name in members if members.count(name) > 1})
        if repeated:
            raise ValueError(f"contextual: '{repeated[0]}' is listed twice")
        return self

    @model_validator(mode="after")
    def _fp8_lies_within_bf16(self) -> Self:
        if self.gemm == "fp8" and self.compute != "bf16":
            raise ValueError("gemm: fp8 needs compute: bf16")
        return self

    def check_device(self, device_type: str) -> None:
        """Refuses what a device cannot compute.

        Raises:
            DataError: names the key, its value and the device.
        """
        if device_type == "cuda":
            return
        for key, value, instead in (
            ("impl", "triton", "reference"),
            ("gemm", "fp8", "bf16"),
            ("compute", "bf16", "fp32"),
        ):
            if getattr(self, key) == value:
                raise DataError(f"params.yaml: model.{key}: '{value}' needs the device cuda; the CPU runs '{instead}'")

    def check_against(self, spec: FeatureSpec) -> None:
        """Refuses a configuration that names what the dataset does not have.

        Raises:
            DataError: names the key, the unknown name and what there is.
        """
        user_fields = tuple(field.name for field in spec.user_fields)
        _check_names("model.streams", tuple(self.streams), spec.streams)
        _check_names("model.heads.tasks", self.heads.tasks, spec.actions)
        for index, group in enumerate(self.contextual):
            _check_names(f"model.contextual.{index}", group, user_fields)


def _check_names(key: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise DataError(f"params.yaml: {key}: the dataset has no '{name}', it has {', '.join(known) or 'none'}")
