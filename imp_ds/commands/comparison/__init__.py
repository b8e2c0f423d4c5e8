"""Runs against each other that differ in one thing, several seeds of each: jobs, tables, a picture.

job.py       a run: how it is trained, and what of it is done     processes.py  several of them side by side
measure.py   a number of a run, and its spread over seeds         report.py     table.json and README.md
picture.py   comparison.png                                       experts/      `compare-experts`: experts of Uni-MoE

`compare-routers`, the routers of Uni-Perceiver-MoE: the same tasks, seeds, data and steps, all but the gate:

command.py   the command                                          jobs.py       what is trained and measured
timing.py    steps and inference, in turns, on their own          measures.py   what is read of a finished run
across.py    speech to images, never trained
"""
