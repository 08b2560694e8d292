"""ResNet: the published numbers of parameters, and the outputs and statistics of the paper's network in torch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.data.augment_image import Pack
from jaxbig.errors import UserError
from jaxbig.models import ResNet, max_pool_overlapping, resnet

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# (depth, form, classes) -> parameters: torchvision's documentation; for CIFAR He et al.'s table 6 gives 0.27, 0.46,
# 0.66, 0.85 and 1.7 million, and the exact numbers follow by hand: 9 conv weights a pair of channels, 2 a batch norm
PUBLISHED = {
    (18, "imagenet", 1000): 11_689_512,
    (34, "imagenet", 1000): 21_797_672,
    (50, "imagenet", 1000): 25_557_032,
    (101, "imagenet", 1000): 44_549_160,
    (152, "imagenet", 1000): 60_192_808,
    (20, "cifar", 10): 269_722,
    (32, "cifar", 10): 464_154,
    (44, "cifar", 10): 658_586,
    (56, "cifar", 10): 853_018,
    (110, "cifar", 10): 1_727_962,
    (18, "cifar", 10): 11_173_962,
    (34, "cifar", 10): 21_282_122,
    (50, "cifar", 10): 23_520_842,
}


def filled(shapes):
    """Random values, none special: a scale of zero or one would hide what it multiplies."""
    random = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: 0.5 + 0.3 * random.random(leaf.shape) * random.choice([-1, 1], leaf.shape), shapes)


def abstract(model, size=32):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "form", "classes"), PUBLISHED)
def test_published_numbers_of_parameters(depth, form, classes):
    shapes = abstract(resnet(depth, form, num_classes=classes))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[depth, form, classes]


def test_width_multiplies_all_channels():
    shapes = abstract(resnet(20, form="cifar", width=2))["params"]
    assert shapes["stem"]["kernel"].shape == (3, 3, 3, 32)
    assert shapes["head"]["kernel"].shape == (128, 1000)


def test_sides_halve_where_the_paper_halves_them():
    def sides(model, size):
        _, state = jax.eval_shape(
            lambda key, x: model.init_with_output(key, x, capture_intermediates=True),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        )
        stages = state["intermediates"]
        return [stages[f"stage_{i}_block_0"]["__call__"][0].shape[1] for i in range(len(model.blocks))]

    assert sides(resnet(50), 224) == [56, 28, 14, 7]
    assert sides(resnet(18), 225) == [57, 29, 15, 8]
    assert sides(resnet(20, form="cifar"), 32) == [32, 16, 8]
    assert sides(resnet(18, form="cifar"), 32) == [32, 16, 8, 4]


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    x = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
    model = ResNet(3, blocks=(1, 1), channels=4, form="cifar", bottleneck=True)
    jaxpr = jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x)[0])(x)
    convolutions = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    strided = {eqn.invars[1].aval.shape for eqn in convolutions if eqn.params["window_strides"] == (2, 2)}
    assert strided == {(3, 3, 8, 8), (1, 1, 16, 32)}  # the 3x3 convolution and the shortcut


def test_zero_scale_starts_blocks_as_their_shortcuts():
    model = ResNet(3, blocks=(2,), channels=4, form="cifar", zero_scale=True)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    variables = jax.jit(model.init, compiler_options=QUICK_TO_COMPILE)(jax.random.key(0), x)
    blocks = {name: leaf for name, leaf in variables["params"].items() if "block" in name}
    assert all(not block["norm_1"]["scale"].any() and block["norm_0"]["scale"].all() for block in blocks.values())
    shallow = model.clone(blocks=())
    np.testing.assert_array_equal(model.apply(variables, x), shallow.apply(variables, x))


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(3, 2, 1), *[pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 1, 0), (3, 1, 1), (2, 3, 1))]],
)
def test_max_pool_overlapping_is_flax_max_pool_in_value_and_gradient(window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))

    def both(x):
        ours = max_pool_overlapping(x, window, stride, padding)
        theirs = nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)
        return ours, theirs

    ours, theirs = both(x)
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (jax.grad(lambda x, i=i: jnp.sum(both(x)[i] ** 2))(x) for i in (0, 1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.slow
def test_remat_changes_nothing():
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    plain = ResNet(3, blocks=(1, 1), channels=4, form="cifar")
    variables = filled(jax.eval_shape(plain.init, jax.random.key(0), x))
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    model = plain

    def loss(params):
        logits, after = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), after

    results = []
    for remat in (False, True):
        model = plain.clone(remat=remat)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_TO_COMPILE)
        results.append(step(variables["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *results)


# the paper's network in torch


def reference(torch, model: ResNet):
    """A torch.nn network after the paper, with the hyperparameters of `model`; its modules have our names."""

    class Block(torch.nn.Module):
        def __init__(self, entering: int, channels: int, stride: int):
            super().__init__()
            conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
            out = channels * (4 if model.bottleneck else 1)
            if model.bottleneck:
                self.conv_0 = conv(entering, channels, 1, bias=False)
                self.conv_1 = conv(channels, channels, 3, stride=stride, padding=1, bias=False)
                self.conv_2 = conv(channels, out, 1, bias=False)
                self.norm_2 = norm(out)
            else:
                self.conv_0 = conv(entering, channels, 3, stride=stride, padding=1, bias=False)
                self.conv_1 = conv(channels, out, 3, padding=1, bias=False)
            self.norm_0, self.norm_1 = norm(channels), norm(channels)
            self.changes, self.out, self.stride = stride > 1 or entering != out, out, stride
            if self.changes and model.projection:
                self.shortcut = conv(entering, out, 1, stride=stride, bias=False)
                self.shortcut_norm = norm(out)

        def forward(self, x):
            y = self.norm_1(self.conv_1(torch.relu(self.norm_0(self.conv_0(x)))))
            if model.bottleneck:
                y = self.norm_2(self.conv_2(torch.relu(y)))
            if self.changes and model.projection:
                x = self.shortcut_norm(self.shortcut(x))
            elif self.changes:
                small = torch.nn.functional.avg_pool2d(x, 1, self.stride)
                x = torch.cat([small, small.new_zeros(len(x), self.out - x.shape[1], *small.shape[2:])], 1)
            return torch.relu(x + y)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            small = model.form == "cifar"
            side, stride, padding = (3, 1, 1) if small else (7, 2, 3)
            self.stem = torch.nn.Conv2d(3, model.channels, side, stride, padding, bias=False)
            self.stem_norm = torch.nn.BatchNorm2d(model.channels)
            self.pool = torch.nn.Identity() if small else torch.nn.MaxPool2d(3, 2, 1)
            entering, self.order = model.channels, []
            for stage, count in enumerate(model.blocks):
                for index in range(count):
                    channels = model.channels << stage
                    block = Block(entering, channels, 2 if stage > 0 and index == 0 else 1)
                    entering = block.out
                    self.add_module(f"stage_{stage}_block_{index}", block)
                    self.order.append(block)
            self.head = torch.nn.Linear(entering, model.num_classes)

        def forward(self, x):
            x = self.pool(torch.relu(self.stem_norm(self.stem(x))))
            for block in self.order:
                x = block(x)
            return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))

    return Net().double()


def torch_state(torch, variables):
    """torch's state from ours."""
    state = {}
    names = {"scale": "weight", "kernel": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for collection in variables.values():
        for keys, leaf in jax.tree_util.tree_flatten_with_path(collection)[0]:
            *modules, last = (key.key for key in keys)
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
            state[".".join([*modules, names[last]])] = torch.tensor(np.asarray(leaf).transpose(order))
    return state


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (resnet(18, width=0.125, num_classes=5), 33),
        (ResNet(5, (1, 2), 4, bottleneck=True), 32),
        (resnet(20, form="cifar", width=0.5, num_classes=5), 9),
        (ResNet(5, (1, 2), 4, form="cifar", bottleneck=True), 8),
    ],
    ids=["basic", "bottleneck", "cifar 6n+2", "cifar bottleneck"],
)
def test_outputs_gradients_and_statistics_are_torchs(model, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, size, size, 3))
    variables = filled(abstract(model, size))
    # kernels around zero, or activations grow by the number of channels in every layer
    spread = np.random.default_rng(6)
    variables["params"] = jax.tree.map(
        lambda leaf: spread.normal(size=leaf.shape) * 0.3 if leaf.ndim > 1 else leaf, variables["params"]
    )
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    net = reference(torch, model)
    missing, unexpected = net.load_state_dict(torch_state(torch, variables), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    weights = np.arange(1, 6) / 5

    def loss(params, x):
        logits, after = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * weights), (logits, after["batch_stats"])

    with jax.enable_x64(True):
        evaluated = jax.jit(model.apply, compiler_options=QUICK_TO_COMPILE)(variables, x)
        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK_TO_COMPILE)
        gradients, (trained, after) = step(variables["params"], x)
    images = torch.tensor(x.transpose(0, 3, 1, 2))

    def close(ours, theirs):
        theirs = theirs.detach().numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())

    close(evaluated, net.eval()(images))
    counts = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda m, given, y, name=name: counts.__setitem__(name, y[:, 0].numel()))
    logits = net.train()(images)
    close(trained, logits)
    (logits * torch.tensor(weights)).sum().backward()
    theirs = dict(net.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    for name, ours in torch_state(torch, {"params": gradients}).items():
        # a kernel before a batch norm has a gradient that almost cancels: measured against the largest of all
        np.testing.assert_allclose(ours, theirs[name].grad, rtol=1e-9, atol=1e-9 * largest)
    before = torch_state(torch, {"batch_stats": variables["batch_stats"]})
    state = net.state_dict()
    for name, ours in torch_state(torch, {"batch_stats": after}).items():
        if name.endswith("running_mean"):
            close(ours, state[name])
        else:  # torch averages the unbiased variance, flax the biased one
            m = counts[name.removesuffix(".running_var")]
            close(ours, 0.9 * before[name] + (state[name] - 0.9 * before[name]) * (m - 1) / m)


def test_patches_are_the_packed_pixels_of_the_data():
    options: dict = {"num_classes": 3, "blocks": (1,), "channels": 4, "form": "cifar"}
    x = np.random.default_rng(0).random((2, 8, 6, 3), np.float32)
    packed = Pack(2)({"image": x})["image"]
    variables = jax.jit(ResNet(patch=2, **options).init)(jax.random.key(0), x)
    ours, theirs = ResNet(patch=2, **options).apply(variables, x), ResNet(**options).apply(variables, packed)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: resnet(21), "depth=21"),
        (lambda: resnet(20), "form='cifar'"),
        (lambda: resnet(2, form="cifar"), "6 n"),
        (lambda: abstract(ResNet(form="tiny")), "form='tiny'"),
        (lambda: abstract(ResNet(patch=3)), "patch=3"),
        (lambda: ResNet().init(jax.random.key(0), jnp.ones((8, 8))), "batch, height"),
    ],
)
def test_errors_are_one_line_that_names_what_to_change(act, word):
    with pytest.raises(UserError) as caught:
        act()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
