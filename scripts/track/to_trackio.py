"""Sends a run to Trackio: python to_trackio.py RUN [--project NAME] [--once]. See docs/tracking.md."""

import trackio
from follow import arguments, config, follow

args = arguments(__doc__)
trackio.init(project=args.project, name=args.run.resolve().name, config=config(args.run), embed=False)
for step, figures in follow(args.run, args.once, args.seconds):
    trackio.log(figures, step=step)
trackio.finish()
