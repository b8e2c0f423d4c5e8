"""One rank of tests/distributed/test_balanced_router.py: a run with a balancing bias, handed from one layout to the next."""

import json
from pathlib import Path

from helpers.ranks import leave
from helpers.small_run import make_batch, make_engine, make_run, step_engine
from imp_ds.parallel.groups import is_main
from imp_ds.train import checkpoint
from imp_ds.train.engine.engine import start_process_group

STEPS = 3  # of each part of a run: every task once
MODEL = dict(router="top_k_balanced", drop_tokens=False, qk_norm=False, moe_layers="all", router_options={"bias_rate": 0.05})


def hand_over(out: str, layouts: list[tuple[str, int, int]], parts: int) -> None:
    """layouts: (file, ep_size, micro-batches) in turns; one of them alone goes on without a checkpoint."""
    device, folder = start_process_group(60), Path(out).parent / Path(out).stem
    losses, raises, engine = [], [], None
    for part in range(parts):
        file, ep_size, micro_batches = layouts[part % len(layouts)]
        if engine is None or len(layouts) > 1:
            reader = checkpoint.Reader(checkpoint.newest(folder)) if part else None
            prepare = {} if reader is None else {"prepare_model": reader.load_weights}
            engine = make_engine(make_run(ep_size=ep_size, clip=0.0, **MODEL), file, device, seed=part, **prepare)
            if reader is not None:
                reader.load_optimizer(engine)
        for step in range(part * STEPS, (part + 1) * STEPS):
            losses.append(step_engine(engine, make_batch(step), 1e-3, micro_batches)[0])
            raises.append([block.feed_forward.router.raises_E.tolist() for block in engine.model.imp.blocks])
        # what is not learned from leaves nothing: a step that is not taken, and one that is only looked at
        engine.forward(make_batch(0))
        engine.update(1e-3, accept=lambda norm: False)
        engine.forward(make_batch(1))
        engine.skip()
        state = {"step": (part + 1) * STEPS, "adam_steps": (part + 1) * STEPS}
        checkpoint.save(engine, folder, state["step"], state, keep=2)
    if is_main():
        Path(out).write_text(json.dumps({"losses": losses, "raises": raises}))
    leave()
