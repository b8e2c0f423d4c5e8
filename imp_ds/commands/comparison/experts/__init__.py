"""`compare-experts`: what the experts of a Uni-MoE gain, by how many, where, from what and with which losses (its tables 7 to 9),
and against models without a mixture.

variants.py  what a variant changes of a recipe     jobs.py   a run for each variant and seed
dense.py     the models without experts             paper.py  the published numbers
command.py   the command
"""
