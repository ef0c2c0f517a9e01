"""The relational memory core: slots are a set, what the gates do, and memory over many steps."""

from __future__ import annotations

import torch

from clplat.backbones.rnn.rmc import RMC

from .helpers import assert_close, inputs


def network(**options: object) -> RMC:
    torch.manual_seed(0)
    return RMC(5, **{"hidden": 8, "slots": 4, "heads": 2, **options}).double()


def test_slots_that_are_exchanged_stay_exchanged() -> None:
    for options in ({}, {"gate": "memory", "blocks": 2}, {"gate": "none"}):
        core, x = network(**options), inputs(2, 6, 5)
        state, order = core.init_state(2), torch.tensor([2, 0, 3, 1])
        _, after = core(x, state)
        _, exchanged = core(x, {"memory": state["memory"][:, order]})
        assert_close(exchanged["memory"], after["memory"][:, order], 1e-10)
        assert not torch.allclose(after["memory"], after["memory"][:, order], atol=1e-3)  # they do differ


def test_a_step_is_the_papers() -> None:
    core, x = network(), inputs(2, 1, 5)
    M = inputs(2, 4, 8, seed=3)
    attend = core.rounds[0]
    u = core.enter_row(x[:, 0])
    rows = torch.cat([M, u[:, None]], 1)
    # queries of the memory alone, as in the paper's equation: what the input's row asks is not kept
    q, k, v = attend.qkv_norm(attend.qkv(rows)).chunk(3, -1)
    attended = torch.cat(
        [torch.softmax(q[:, :4, a:b] @ k[..., a:b].mT / 2, -1) @ v[..., a:b] for a, b in ((0, 4), (4, 8))], -1
    )
    new = attend.norm(M + attended)
    new = attend.mlp_norm(new + core.mlp(new))
    gates = core.gate_input(u)[:, None] + core.gate_memory(torch.tanh(M))
    expected = torch.sigmoid(gates[..., :8]) * torch.tanh(new) + torch.sigmoid(gates[..., 8:] + 1) * M
    y, state = core(x, {"memory": M})
    assert_close(state["memory"], expected, 1e-12)
    assert_close(y[:, 0], expected.flatten(1), 1e-12)


def test_an_open_forget_gate_and_a_closed_input_gate_keep_the_memory() -> None:
    core = network()
    with torch.no_grad():
        core.gate_memory.bias[:8], core.gate_memory.bias[8:] = -100.0, 100.0
    state = {"memory": inputs(2, 4, 8, seed=3)}
    _, after = core(inputs(2, 20, 5), state)
    assert_close(after["memory"], state["memory"], 1e-12)


def test_memory_begins_as_the_identity() -> None:
    for slots, width in ((2, 4), (4, 2)):
        memory = RMC(5, hidden=width, slots=slots, heads=2).init_state(3)["memory"]
        assert torch.equal(memory, torch.eye(slots, width).expand(3, -1, -1))


def test_gradients_stay_finite_over_many_steps() -> None:
    core, x = network(), inputs(1, 200, 5).requires_grad_()
    core(x)[0][:, -1].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[:, -1].abs().max() > 0
