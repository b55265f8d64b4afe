"""Promises of `ml_utils`: the names, arguments and results that recorded scripts rely on."""

import json
import subprocess
from pathlib import Path

from sandbox_images.lock import HERE

PROGRAM = """
import json, ml_utils as m, torch
loader = m.create_synthetic_mnist(num_samples=600, batch_size=32)
images = m.create_synthetic_mnist_images(num_samples=64, batch_size=16)
x, y = next(iter(loader)); xi, yi = next(iter(images))
model = m.SimpleMLP(input_dim=784, hidden_dim=64, output_dim=10)
before = m.evaluate_accuracy(model, loader)
trained = m.train_simple_classifier(model, loader, num_epochs=2, lr=0.005, print_every=10)
fresh = m.evaluate_accuracy(model, m.create_synthetic_mnist(300))
errors = []
for arguments in ({"method": "random"}, {"pruning_ratio": 1.0}, {"pruning_ratio": -0.1}):
    try: m.prune_model(m.SimpleMLP(), **arguments)
    except ValueError as e: errors.append(str(e))
pruned = m.prune_model(m.SimpleCNN(input_channels=1, num_classes=10), pruning_ratio=0.5, method="magnitude")
zeros = sum(int((p == 0).sum()) for n, p in pruned.named_parameters() if n.endswith("weight"))
weights = sum(p.numel() for n, p in pruned.named_parameters() if n.endswith("weight"))
table = m.compare_models({"mlp": model, "deep": m.DeepMLP()}, loader)
m.print_comparison_table(table)
m.save_experiment_results({"a": 1, "t": torch.tensor(1)}, "results.json")
print(json.dumps({
    "x": [list(x.shape), str(x.dtype)], "y": [str(y.dtype), int(y.min()) >= 0, int(y.max()) <= 9],
    "xi": list(xi.shape), "cnn": list(m.SimpleCNN()(xi).shape), "trained": trained, "before": before, "fresh": fresh,
    "size": m.get_model_size(model), "ms": m.measure_inference_time(model, input_shape=(1, 784), num_runs=5),
    "errors": errors, "share": zeros / weights, "table": table}))
"""


def test_every_helper_takes_and_returns_what_recorded_scripts_expect(sandbox_python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sandbox_python, "-c", PROGRAM], env={"PYTHONPATH": str(HERE)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["x"] == [[32, 784], "torch.float32"]
    assert said["y"] == ["torch.int64", True, True]
    assert said["xi"] == [16, 1, 28, 28] and said["cnn"] == [16, 10]
    assert set(said["trained"]) == {"epoch_losses", "final_loss", "training_time"}
    assert said["trained"]["epoch_losses"][-1] == said["trained"]["final_loss"]
    assert said["before"] < 40 < 90 < said["fresh"], "what was learned must hold for new samples"
    assert said["fresh"] == round(said["fresh"], 2)
    assert said["size"]["parameters"] == 784 * 64 + 64 + 64 * 10 + 10
    assert said["size"]["size_mb"] == said["size"]["parameters"] * 4 / 2**20
    assert said["ms"] > 0
    assert len(said["errors"]) == 3
    assert abs(said["share"] - 0.5) < 0.01
    assert set(said["table"]["deep"]) == {"accuracy", "parameters", "size_mb", "inference_ms"}
    assert "Epoch [1/2], Step [10/19], Loss: " in done.stdout
    assert json.loads((tmp_path / "results.json").read_text())["a"] == 1
