"""Small helpers for quick classifier experiments: synthetic data, models, training, measuring, pruning."""

import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def create_synthetic_mnist(num_samples=1000, batch_size=32):
    """A DataLoader of (float vectors of 784, long labels 0-9) in which the classes can be told apart.

    Every class has a fixed random pattern; a sample is its class's pattern with noise.
    """
    features, labels = _synthetic(num_samples)
    return DataLoader(TensorDataset(features, labels), batch_size=batch_size, shuffle=True)


def create_synthetic_mnist_images(num_samples=1000, batch_size=32):
    """As `create_synthetic_mnist`, as images of 1x28x28."""
    features, labels = _synthetic(num_samples)
    return DataLoader(TensorDataset(features.view(-1, 1, 28, 28), labels), batch_size=batch_size, shuffle=True)


def _synthetic(num_samples):
    # The patterns have a generator of their own: train and test sets must show the same classes.
    patterns = torch.rand(10, 784, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 10, (num_samples,))
    return (patterns[labels] + 0.5 * torch.randn(num_samples, 784)).clamp(0, 1), labels


class SimpleMLP(nn.Module):
    """One hidden layer."""

    def __init__(self, input_dim=784, hidden_dim=128, output_dim=10):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim))

    def forward(self, x):
        return self.layers(x.flatten(1))


class DeepMLP(nn.Module):
    """784-512-256-128-10."""

    def __init__(self, input_dim=784, output_dim=10):
        super().__init__()
        sizes = [input_dim, 512, 256, 128]
        hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], output_dim))

    def forward(self, x):
        return self.layers(x.flatten(1))


class SimpleCNN(nn.Module):
    """Two convolutions with pooling, for images of 28x28."""

    def __init__(self, input_channels=1, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(32 * 7 * 7, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def train_simple_classifier(model, train_loader, num_epochs=5, lr=0.001, print_every=50):
    """Trains with Adam and cross-entropy; returns epoch_losses, final_loss and training_time (seconds)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loss_of = nn.CrossEntropyLoss()
    epoch_losses, began = [], time.time()
    model.train()
    for epoch in range(num_epochs):
        total = 0.0
        for step, (inputs, labels) in enumerate(train_loader, 1):
            optimizer.zero_grad()
            loss = loss_of(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if print_every and step % print_every == 0:
                place = f"Epoch [{epoch + 1}/{num_epochs}], Step [{step}/{len(train_loader)}]"
                print(f"{place}, Loss: {loss.item():.4f}")
        epoch_losses.append(total / max(1, len(train_loader)))
    final = epoch_losses[-1] if epoch_losses else float("nan")
    return {"epoch_losses": epoch_losses, "final_loss": final, "training_time": time.time() - began}


@torch.no_grad()
def evaluate_accuracy(model, test_loader):
    """Percent of labels that were right, to two decimals."""
    model.eval()
    right = total = 0
    for inputs, labels in test_loader:
        right += (model(inputs).argmax(1) == labels).sum().item()
        total += len(labels)
    return round(100.0 * right / max(1, total), 2)


def get_model_size(model):
    """Number of parameters, and their size in MB (2^20 bytes) with the buffers'."""
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"parameters": sum(p.numel() for p in model.parameters()), "size_mb": size / (1 << 20)}


@torch.no_grad()
def measure_inference_time(model, input_shape=(1, 784), num_runs=100):
    """Mean milliseconds of one forward pass, after ten to warm up."""
    model.eval()
    inputs = torch.randn(*input_shape)
    for _ in range(10):
        model(inputs)
    began = time.perf_counter()
    for _ in range(num_runs):
        model(inputs)
    return 1000.0 * (time.perf_counter() - began) / max(1, num_runs)


def save_experiment_results(metrics, filepath="results.json"):
    """Writes metrics as JSON; what JSON does not know is written as text."""
    with open(filepath, "w") as file:
        json.dump(metrics, file, indent=2, default=str)


def prune_model(model, pruning_ratio=0.3, method="magnitude"):
    """Sets the smallest weights of every linear and convolutional layer to zero and returns the model.

    Raises ValueError for a method other than "magnitude" or a ratio outside [0, 1).
    """
    if method != "magnitude":
        raise ValueError(f"unknown pruning method {method!r}: only 'magnitude' is known")
    if not 0 <= pruning_ratio < 1:
        raise ValueError(f"pruning_ratio must be in [0, 1), not {pruning_ratio}")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                count = int(pruning_ratio * module.weight.numel())
                if count:
                    smallest = module.weight.abs().flatten().topk(count, largest=False).indices
                    module.weight.view(-1)[smallest] = 0.0
    return model


def compare_models(models_dict, test_loader):
    """{name: {accuracy, parameters, size_mb, inference_ms}} for every model."""
    shape = (1, *next(iter(test_loader))[0].shape[1:])
    return {
        name: {
            "accuracy": evaluate_accuracy(model, test_loader),
            **get_model_size(model),
            "inference_ms": measure_inference_time(model, shape),
        }
        for name, model in models_dict.items()
    }


def print_comparison_table(results):
    """Prints what `compare_models` returned."""
    print(f"{'model':<20} {'accuracy %':>10} {'parameters':>12} {'size MB':>9} {'ms':>8}")
    for name, row in results.items():
        print(
            f"{name:<20} {row['accuracy']:>10.2f} {row['parameters']:>12,} {row['size_mb']:>9.3f}"
            f" {row['inference_ms']:>8.3f}"
        )
