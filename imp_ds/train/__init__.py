"""Training: the schedule of tasks, DeepSpeed's configuration, the plan of a run, the engine, the loop and its records."""
