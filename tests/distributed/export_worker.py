"""Started by a launcher: the train command, which at its end also embeds fixed inputs with the model on the ranks.

export_worker.py EMBEDDINGS train ...        (a --local_rank of the launcher may stand before EMBEDDINGS)
"""

import sys

import torch
from export_reader import embed, make_inputs
from safetensors.torch import save_file

from imp_ds.cli import main
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.train.trainer import Trainer


def embed_when_finished(path: str) -> None:
    """Each rank embeds its rows, with its own experts and those of the other rank; rank 0 writes all rows."""
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


if __name__ == "__main__":
    place = next(i for i, argument in enumerate(sys.argv) if i and not argument.startswith("--"))
    embed_when_finished(sys.argv.pop(place))
    main()
