"""What rounds while a model learns is what a form of 8 bits rounds, and gradients pass."""

from __future__ import annotations

import pytest
import torch
from families import answer, family, inputs

from hfadapt.core.errors import RequestError
from hfadapt.models.rounding import fake_quantise


class Table(torch.nn.Module):
    """An embedding and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # A range without zero is widened to it.
        self.table = torch.nn.Embedding(20, 16, _weight=torch.rand(20, 16) + 3)
        self.one, self.two = torch.nn.Linear(16, 24, bias=False), torch.nn.Linear(24, 8, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, 8)."""
        found: torch.Tensor = self.two(self.one(self.table(ids)))
        return found


@pytest.mark.parametrize("reduce_range", [False, True])
def test_rounds_as_onnx_runtime(reduce_range, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from hfadapt.formats import _onnx_graph as graph
    from hfadapt.formats._single_file import saturates

    if not reduce_range and saturates("this-machine"):
        pytest.skip("sums of bytes overflow on this processor, which is why the formats reduce the range here")
    net, ids = Table().requires_grad_(False), torch.arange(20)
    weights = {"table": net.table.weight, "one": net.one.weight.T, "two": net.two.weight.T}
    make = onnx.helper.make_node
    nodes = [make("Gather", ["table", "ids"], ["a"]), make("MatMul", ["a", "one"], ["b"])]
    nodes.append(make("MatMul", ["b", "two"], ["c"]))
    inputs_of = onnx.helper.make_tensor_value_info
    ends = [inputs_of("ids", onnx.TensorProto.INT64, ["rows"])], [inputs_of("c", onnx.TensorProto.FLOAT, ["rows", 8])]
    held = [onnx.numpy_helper.from_array(each.contiguous().numpy(), name) for name, each in weights.items()]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "net", *ends, held),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    graph.quantise(made, tmp_path / "model.onnx", {}, None, reduce_range=reduce_range)
    wanted = torch.from_numpy(graph.run(graph.session(tmp_path / "model.onnx", 1), {"ids": ids.numpy()})[0])
    plain = net(ids)
    with fake_quantise(net, reduce_range=reduce_range):
        torch.testing.assert_close(net(ids), wanted, rtol=1e-5, atol=1e-5)
    assert (plain - wanted).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_rounds_whole_models_as_onnx_runtime(name, reduce_range, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    from hfadapt.formats import _onnx_graph as graph
    from hfadapt.formats._single_file import saturates

    if not reduce_range and saturates("this-machine"):
        pytest.skip("the sums of 8-bit products overflow on this processor")
    model, batch = family(name), inputs(name)
    model.config.use_cache = False
    free = {0: "batch", 1: "length"}
    made = graph.exported(model, dict(batch), dict.fromkeys(batch, free), ["logits"])
    graph.quantise(made, tmp_path / "model.onnx", {}, None, reduce_range=reduce_range)
    session = graph.session(tmp_path / "model.onnx", 1)
    wanted = torch.from_numpy(graph.run(session, {key: value.numpy() for key, value in batch.items()})[0])
    plain = answer(model, batch)
    with fake_quantise(model, reduce_range=reduce_range):
        found = answer(model, batch)
    real = batch["attention_mask"].bool() if wanted.dim() == 3 else slice(None)
    error = (found - wanted)[real].abs().mean() / (plain - wanted)[real].abs().mean()
    assert error < 0.05, error


def test_gradients_pass_to_every_weight_and_removing_leaves_the_model() -> None:
    model, batch = family("bert").requires_grad_(True), inputs("bert")
    before, names = answer(model, batch), list(model.state_dict())
    rounded = fake_quantise(model)
    assert list(model.state_dict()) == names
    model(**batch).logits.pow(2).sum().backward()
    got = {name: each.grad for name, each in model.named_parameters() if each.dim() == 2}
    assert all(each is not None and bool(each.any()) for each in got.values()), got
    assert not torch.equal(answer(model, batch), before)
    rounded.remove()
    rounded.remove()
    assert torch.equal(answer(model, batch), before)


def test_weights_take_at_most_127_steps_either_way_and_inputs_256_values() -> None:
    layer = torch.nn.Linear(64, 3)
    seen = []
    with torch.no_grad():
        layer.weight[2] = 0
        layer.bias.zero_()
        step = layer.weight.abs().amax(1, keepdim=True) / 127
        with fake_quantise(layer):
            # One input at a time, whose range has itself and zero as ends: it is exact.
            seen = torch.stack([layer(row)[:2] for row in torch.eye(64)])
    whole = seen / step[:2].T
    torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    assert whole.abs().max().round() == 127


def test_each_row_has_its_own_range() -> None:
    layer = torch.nn.Linear(32, 32, bias=False)
    rows = torch.randn(2, 32) * torch.tensor([[1.0], [1000.0]])
    with torch.no_grad():
        wanted = layer(rows[:1])
        with fake_quantise(layer, each_row=True):
            alone = layer(rows)[:1]
        with fake_quantise(layer):
            together = layer(rows)[:1]
    assert (alone - wanted).abs().max() < 0.02 < (together - wanted).abs().max()


def test_adapters_have_to_be_merged() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(family("bert"), LoraConfig(target_modules=["query"]))
    with pytest.raises(RequestError, match="merged"):
        fake_quantise(model)
