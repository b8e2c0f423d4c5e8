"""One rank of tests/distributed/test_export.py: the train command, which at its end also embeds fixed inputs with the model on
the ranks."""

import torch
from export_reader import embed, make_inputs
from safetensors.torch import save_file

from helpers.ranks import command
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.train.trainer import Trainer


def train(path: str, *command_line: str) -> None:
    """The command. Each rank embeds its rows, with its own experts and those of the other rank; rank 0 writes all rows."""
    finish = Trainer.finish

    def finish_and_embed(trainer):
        finish(trainer)
        inputs = [
            {name: torch.as_tensor(x).chunk(world_size())[rank()] for name, x in i.items()}
            for i in make_inputs(trainer.processor)
        ]
        own = embed(trainer.engine.model.imp.eval(), inputs)
        vectors = {name: gather_rows(x) for name, x in own.items()}
        if is_main():
            save_file(vectors, path)

    Trainer.finish = finish_and_embed
    command(*command_line)
