"""The tuned lens reads translated streams wherever a lens reads; its file is itself or refused."""

import pytest
import torch
from torch.nn import functional as F

from distilllens.divergence import divergence
from distilllens.lens import (
    LogitLens,
    Passage,
    capture,
    divergence_by_depth,
    inspect_models,
    read_states,
    trajectory,
)
from distilllens.lens.translators import (
    Translators,
    load_translators,
    save_translators,
    translators_digest,
)
from distilllens.stored import DamagedFile

IDS = torch.tensor([[5, 9, 2, 77, 31, 8, 40, 3]])


def some(depths, width, seed=0):
    """Translators far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    found = Translators(depths, width)
    for parameter in found.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return found


def by_hand(lens, translators, depth, hidden):
    """Logits of a stream at a depth: the map written out, then the lens' own read-out."""
    if depth in translators.depths:
        at = translators.depths.index(depth)
        weight, bias = translators.weight[at].double(), translators.bias[at].double()
        hidden = (hidden.double() + hidden.double() @ weight.T + bias).float()
    return lens.logits(hidden)


def test_new_ones_change_nothing():
    """They start as the identity, to the bit, and pass on depths that they do not have."""
    hidden = torch.randn(3, 8)
    new = Translators([2, 1], 8)
    assert new.depths == (1, 2)
    assert torch.equal(new(1, hidden), hidden)
    assert some([1], 8)(5, hidden) is hidden


def test_maps_of_other_depths_are_refused():
    """They may be as many and as wide: depth 2 would be read through the map of depth 3."""
    with pytest.raises(ValueError, match=r"of the depths \[1, 3\], not of \[1, 2\]"):
        Translators([1, 2], 8).load_state_dict(some([1, 3], 8).state_dict())
    again = Translators([1, 3], 8)
    again.load_state_dict(some([3, 1], 8).state_dict())
    assert torch.equal(again.weight, some([1, 3], 8).weight)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_reader_translates(family, name):
    """read_states, trajectory, divergence_by_depth and inspect_models agree with the formula."""
    plain = LogitLens(family(name))
    depths = tuple(range(plain.num_layers + 1))
    raw = capture(plain, depths, input_ids=IDS)
    translators = some([1, 2], raw[0].shape[-1])
    lens = plain.tuned(translators)
    truth = [by_hand(plain, translators, d, raw[d]).detach() for d in depths]
    read = read_states(lens, depths, input_ids=IDS)
    found = trajectory(lens, input_ids=IDS, top_k=4)
    inspection = inspect_models(lens, [Passage(IDS[0], torch.arange(8))])
    for depth in depths:
        logits = lens.logits(read[depth], normalize=False)
        assert torch.allclose(logits, truth[depth], atol=1e-4)
        entropy = torch.distributions.Categorical(logits=truth[depth]).entropy()
        assert torch.allclose(found.entropy[depth], entropy, atol=1e-4)
        assert torch.allclose(inspection.teacher.entropy[depth], entropy[0], atol=1e-4)
    measured = divergence_by_depth(
        lens, plain, [(1, 1)], divergence=divergence("reverse_kl"), input_ids=IDS
    )
    log_q, log_p = truth[1][0, :-1].log_softmax(-1), plain.logits(raw[1])[0, :-1].log_softmax(-1)
    expected = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean").detach()
    assert measured.means[0] == pytest.approx(float(expected), rel=1e-4)
    assert not torch.allclose(truth[1], plain.logits(raw[1]), atol=0.1), "they change what is read"
    assert plain.translators is None, "the lens that it came from stays"


def test_gradients_reach_student_and_translators(family):
    """Those of autograd through the formula."""
    lens = LogitLens(family("llama"))
    translators = some([1], capture(lens, [1], input_ids=IDS)[1].shape[-1])
    wanted = [*translators.parameters(), *lens.model.parameters()]

    def gradients(logits):
        found = torch.autograd.grad(logits.square().sum(), wanted, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]

    tuned = lens.tuned(translators)
    read = read_states(tuned, [1], input_ids=IDS)[1]
    ours = gradients(tuned.logits(read, normalize=False))
    raw = capture(lens, [1], input_ids=IDS)[1]
    theirs = gradients(lens.logits(raw + raw @ translators.weight[0].T + translators.bias[0]))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize(
    ("depths", "width", "said"),
    [([1], 5, "width 5"), ([3], 16, "inner depths 0 to 2"), ([9], 16, "up to depth 9")],
)
def test_what_does_not_fit_is_refused(family, depths, width, said):
    """Another width, or a depth that is not inside of the model."""
    lens = LogitLens(family("llama"))
    width = lens.anatomy.stream_shape[-1] if width == 16 else width
    with pytest.raises(ValueError, match=said):
        lens.tuned(Translators(depths, width))


@pytest.mark.parametrize("depths", [[], [1, 1], [-1, 2]])
def test_depths_that_are_none(depths):
    """At least one, each once, from 0."""
    with pytest.raises(ValueError, match="different depths from 0"):
        Translators(depths, 4)


def test_raw_states_of_a_tuned_lens_are_refused(family):
    """They would be read by a head for which they were not translated."""
    lens = LogitLens(family("llama"))
    tuned = lens.tuned(Translators([1], lens.anatomy.stream_shape[-1]))
    with pytest.raises(ValueError, match="normalize"):
        read_states(tuned, [1], normalize=False, input_ids=IDS)


def test_a_file_holds_them(tmp_path):
    """Written and read back: depths, numbers, digest and notes."""
    before, file = some([4, 2], 6), tmp_path / "t.safetensors"
    save_translators(file, before, model="teacher")
    after, about = load_translators(file)
    assert after.depths == (2, 4)
    assert about == {"model": "teacher"}
    assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))
    assert translators_digest(before) == translators_digest(after)
    assert translators_digest(some([4, 2], 6, seed=1)) != translators_digest(after)
    assert translators_digest(some([4, 3], 6)) != translators_digest(after)


@pytest.mark.parametrize("kind", ["cut", "text", "other", "infinite"])
def test_a_file_that_holds_something_else_is_refused(tmp_path, kind):
    """One line that names the file."""
    file, translators = tmp_path / "t.safetensors", some([1], 4)
    if kind == "infinite":
        translators.bias.data[0, 1] = float("nan")
    save_translators(file, translators)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif kind == "text":
        file.write_text("no tensors")
    elif kind == "other":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(DamagedFile, match=r"t\.safetensors") as error:
        load_translators(file)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    """The system's own error, for callers to which it means something."""
    with pytest.raises(FileNotFoundError):
        load_translators(tmp_path / "none.safetensors")
