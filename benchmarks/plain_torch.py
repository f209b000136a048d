"""A Keras model as a plain PyTorch network with the same weights, to compare with."""

import keras
import torch


class ChannelsLast(torch.nn.Module):
    """Flattens (b, channels, h, w) in the order of Keras: rows, columns, channels."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def plain_torch(model):
    """torch.nn.Sequential of the layers of a Keras `model` under their names, the softmax left out.

    Convolutions and dense layers are followed by their rectifier, <name>_relu. Memory format channels_last.
    """
    layers = []
    for layer in model.layers:
        weights = [torch.from_numpy(array) for array in layer.get_weights()]
        if isinstance(layer, (keras.layers.InputLayer, keras.layers.Rescaling)):
            continue  # `preprocessed` does what the second does
        if isinstance(layer, keras.layers.Conv2D):
            module = torch.nn.Conv2d(*weights[0].shape[2:], 3, padding=1)
            weights[0] = weights[0].permute(3, 2, 0, 1)
        elif isinstance(layer, keras.layers.MaxPooling2D):
            module = torch.nn.MaxPool2d(2)
        elif isinstance(layer, keras.layers.Flatten):
            module = ChannelsLast()
        elif isinstance(layer, keras.layers.BatchNormalization):
            module = torch.nn.BatchNorm1d(len(weights[0]), layer.epsilon, 1 - layer.momentum)
            module.running_mean.data, module.running_var.data = weights[2:]
        elif isinstance(layer, keras.layers.Dropout):
            module = torch.nn.Dropout(layer.rate)
        elif isinstance(layer, keras.layers.Dense):
            module = torch.nn.Linear(*weights[0].shape)
            weights[0] = weights[0].T
        else:
            raise TypeError(f"no plain PyTorch for {layer}")
        for parameter, array in zip(module.parameters(), weights):
            parameter.data = array.contiguous()
        layers.append((layer.name, module))
        if (
            isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
            and layer.name != "predictions"
        ):
            layers.append((f"{layer.name}_relu", torch.nn.ReLU(inplace=True)))
    network = torch.nn.Sequential()
    for name, module in layers:
        network.add_module(name, module)
    return network.to(memory_format=torch.channels_last)


def preprocessed(images):
    """uint8 (b, h, w, 3) as VGG16 takes them: float32 (b, 3, h, w), BGR, ImageNet's mean subtracted."""
    mean = torch.tensor([103.939, 116.779, 123.68], device=images.device)
    return (images.flip(-1).float() - mean).permute(0, 3, 1, 2)


def pooled_features(network, names):
    """A function x -> float32 (b, n_features): the layers `names` of `plain_torch`, convolutions averaged
    over their positions."""

    def features(x):
        found = []
        for name, module in network.named_children():
            x = module(x)
            if name.removesuffix("_relu") in names and name.endswith("_relu"):
                value = x.float()
                found.append(value.mean(dim=(2, 3)) if value.ndim == 4 else value)
                if len(found) == len(names):
                    break
        return torch.cat(found, dim=1)

    return features
