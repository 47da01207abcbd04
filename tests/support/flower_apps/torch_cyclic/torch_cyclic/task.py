"""The network, its data, and its training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two layers with batch normalisation in between."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(torch.relu(self.norm(self.fc1(x))))


def initial():
    torch.manual_seed(0)
    return Net()


def load_data(partition_id, batch_size):
    generator = torch.Generator().manual_seed(partition_id)
    x = torch.randn(32, 6, generator=generator)
    y = (x.sum(dim=1) > partition_id / 10).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def train(net, loader):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    net.train()
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def test(net, loader):
    net.eval()
    right = sum((net(x).argmax(dim=1) == y).sum().item() for x, y in loader)
    return right / len(loader.dataset)
