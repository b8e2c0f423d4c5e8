"""The routers of Uni-Perceiver-MoE against each other: the same tasks, seeds, data and steps, all but the gate.

jobs.py      what is trained, and what of it is done         processes.py  several of them side by side
timing.py    steps and inference, in turns, on their own     measures.py   what is read of a finished run
report.py    table.json and README.md                        picture.py    comparison.png
across.py    speech to images, never trained
"""
