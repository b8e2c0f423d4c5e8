"""`compare-experts`: what the experts of a Uni-MoE gain, by how many, where, from what and with which losses (its tables 7 to 9).

variants.py  what a variant changes of a recipe     jobs.py   a run for each variant and seed
command.py   the command                            paper.py  the published numbers
"""
