"""Sends a run to Weights & Biases: python to_wandb.py RUN [--project NAME] [--once]. See docs/tracking.md."""

import wandb
from follow import arguments, config, follow

args = arguments(__doc__)
with wandb.init(project=args.project, name=args.run.resolve().name, config=config(args.run)) as run:
    for step, figures in follow(args.run, args.once, args.seconds):
        run.log(figures, step=step)
