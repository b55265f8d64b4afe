"""Results in other tools: Weights & Biases, MLflow, TensorBoard, plain CSV; afterwards, or while a run goes on."""
