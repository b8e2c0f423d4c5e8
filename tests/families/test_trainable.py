"""The names of what is trained, folded."""

from imp_ds.families.trainable import Tensors, folded


def test_repeated_layers_are_one_entry():
    names = [f"layers.{n}.moe.w1" for n in range(4)] + ["head.weight"]
    shapes = [(4, 128, 8)] * 4 + [(10, 8)]
    assert folded(zip(names, shapes)) == [Tensors("layers.{0-3}.moe.w1", (4, 128, 8), 4), Tensors("head.weight", (10, 8), 1)]


def test_gaps_other_shapes_and_several_numbers():
    named = [(f"layers.{n}.w", (2,)) for n in (0, 1, 2, 5, 7, 8)] + [("layers.3.w", (3,))]
    assert [(one.name, one.count) for one in folded(named)] == [("layers.{0-2,5,7-8}.w", 6), ("layers.3.w", 1)]
    every_second = [(f"layers.{n}.w", ()) for n in range(1, 32, 2)]
    assert folded(every_second) == [Tensors("layers.{1-31 by 2}.w", (), 16)]
    # every combination is one entry, others one for each first number
    grid = [(f"a.{x}.b.{y}.c", ()) for x in range(2) for y in range(3)]
    assert folded(grid) == [Tensors("a.{0-1}.b.{0-2}.c", (), 6)]
    assert [one.name for one in folded(grid[:-1])] == ["a.0.b.{0-2}.c", "a.1.b.{0-1}.c"]
    # numbers that are parts of words, or at the end, are names
    assert folded([("mlp2x.w1", (1,)), ("0.w", (1,)), ("1.w", (1,))]) == [
        Tensors("mlp2x.w1", (1,), 1),
        Tensors("{0-1}.w", (1,), 2),
    ]
