"""Loss curves, scores and figures for TensorBoard, MLflow and Weights & Biases, through their own libraries."""
