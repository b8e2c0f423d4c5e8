"""What is seen of a run: curves, TensorBoard, samples, progress, rejections, results."""
