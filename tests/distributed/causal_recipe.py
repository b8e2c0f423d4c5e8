"""Short texts by a language model of another family, evaluated after the third step and at the end."""

import os
import signal

import causal_family

from imp_ds import DataSettings, Evaluation, RunConfig, Source, Task, TextView, TrainSettings, Views

HERE = os.path.dirname(os.path.abspath(__file__))

if "STOP" in os.environ:  # a signal during the first evaluation
    run = causal_family.TokenLoss.run

    def run_and_stop(self, model):
        os.kill(os.getpid(), signal.SIGTERM)
        return run(self, model)

    causal_family.TokenLoss.run = run_and_stop


def causal_texts() -> RunConfig:
    source = Source(path="texts", format="parquet", text="caption")
    views = Views(text=TextView(length=12))
    return RunConfig(
        name="causal_texts",
        model={"family": "causal_moe"},
        data=DataSettings(root=HERE, vocab_size=40, workers=0),
        tasks=[Task(name="write", source=source, views=views, objectives=[causal_family.NextToken()], batch_size=8)],
        evaluations=[Evaluation(name="said", evaluator="token_loss", modality="text", source=source, views=views)],
        train=TrainSettings(steps=6, eval_every=3, save_every=3, log_every=1),
        optimizer={"peak_rate": 1e-2},
    )
