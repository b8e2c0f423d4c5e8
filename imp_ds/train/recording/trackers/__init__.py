"""What a run is watched in: TensorBoard, trackio, wandb, behind one interface (`tracker.Tracker`)."""
