"""Sends a run to MLflow: python to_mlflow.py RUN [--project NAME] [--once]. See docs/tracking.md."""

import mlflow
from follow import arguments, config, follow

# What a server takes in one request.
PARAMS, METRICS = 100, 1000


def batches(table, size):
    items = list(table.items())
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


args = arguments(__doc__)
mlflow.set_experiment(args.project)
with mlflow.start_run(run_name=args.run.resolve().name):
    for batch in batches(config(args.run), PARAMS):
        mlflow.log_params(batch)
    for step, figures in follow(args.run, args.once, args.seconds):
        for batch in batches(figures, METRICS):
            mlflow.log_metrics(batch, step=step)
