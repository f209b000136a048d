"""A Keras model as a plain PyTorch network with the same weights, to compare with."""

import keras
import torch

LEFT_OUT = (keras.layers.InputLayer, keras.layers.Rescaling)  # `preprocessed` does what they do


class ChannelsLast(torch.nn.Module):
    """Flattens (b, channels, h, w) in the order of Keras: rows, columns, channels."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def torch_layer(layer):
    """The PyTorch module of a Keras layer, with its weights."""
    weights = [torch.from_numpy(array) for array in layer.get_weights()]
    if isinstance(layer, keras.layers.Conv2D):
        module = torch.nn.Conv2d(*weights[0].shape[2:], 3, padding=1)
        weights[0] = weights[0].permute(3, 2, 0, 1)
    elif isinstance(layer, keras.layers.Dense):
        module = torch.nn.Linear(*weights[0].shape)
        weights[0] = weights[0].T
    elif isinstance(layer, keras.layers.BatchNormalization):
        module = torch.nn.BatchNorm1d(len(weights[0]), layer.epsilon, 1 - layer.momentum)
        module.running_mean.data = weights[2]
        module.running_var.data = weights[3]
    elif isinstance(layer, keras.layers.MaxPooling2D):
        module = torch.nn.MaxPool2d(2)
    elif isinstance(layer, keras.layers.Flatten):
        module = ChannelsLast()
    elif isinstance(layer, keras.layers.Dropout):
        module = torch.nn.Dropout(layer.rate)
    else:
        raise TypeError(f"no plain PyTorch for {layer}")
    for parameter, array in zip(module.parameters(), weights):
        parameter.data = array.contiguous()
    return module


def plain_torch(model):
    """torch.nn.Sequential of the layers of a Keras `model` under their names, without the softmax.

    Convolutions and dense layers are followed by their rectifier, <name>_relu. Memory format
    channels_last. It takes what `preprocessed` gives.
    """
    network = torch.nn.Sequential()
    for layer in model.layers:
        if isinstance(layer, LEFT_OUT):
            continue
        network.add_module(layer.name, torch_layer(layer))
        if hasattr(layer, "kernel") and layer.name != "predictions":
            network.add_module(f"{layer.name}_relu", torch.nn.ReLU(inplace=True))
    return network.to(memory_format=torch.channels_last)


def preprocessed(images):
    """uint8 (b, h, w, 3) as VGG16 takes them: float32 (b, 3, h, w), BGR, less ImageNet's mean."""
    mean = torch.tensor([103.939, 116.779, 123.68], device=images.device)
    return (images.flip(-1).float() - mean).permute(0, 3, 1, 2)


def torch_extractor(network, images, precision, compiled=False):
    """A function from rows of `images`, uint8 (n, h, w, 3) on the device of `network`, to features.

    It returns float32 (b, n_features) on the host.
    Features are all rectified outputs of `network`, those of convolutions averaged over positions.
    precision: "float32" or "bfloat16", of the weights too.
    """
    dtype = getattr(torch, precision)
    *modules, _ = network.eval().to(dtype)  # the last one gives the classes

    def features(x):
        found = []
        for module in modules:
            x = module(x)
            if isinstance(module, torch.nn.ReLU):
                value = x.float()
                found.append(value.mean(dim=(2, 3)) if value.ndim == 4 else value)
        return torch.cat(found, dim=1)

    features = torch.compile(features, disable=not compiled)

    def extract(rows):
        with torch.inference_mode():
            return features(preprocessed(images[rows]).to(dtype)).cpu()

    return extract


def torch_trainer(network, images, classes, precision, compiled=False):
    """A function that trains all of `network` once on rows of `images`, uint8 on its device.

    As finetune.py trains head iii: Adam at 1e-5, L2 0.01 on the dense layers.
    """
    device = images.device.type
    labels = torch.arange(len(images), device=device) % classes
    penalised = [getattr(network, name).weight for name in ("fc1", "fc2", "fc3")]
    optimizer = torch.optim.Adam(network.parameters(), 1e-5, eps=1e-7, fused=True)
    half = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    network.train()

    def loss_of(rows):
        with half:
            scores = network(preprocessed(images[rows]))
        loss = torch.nn.functional.cross_entropy(scores.float(), labels[rows])
        return loss + 0.01 * sum(weight.square().sum() for weight in penalised)

    loss_of = torch.compile(loss_of, disable=not compiled)

    def train(rows):
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step()

    return train
