"""The embedder with the small backbone and tiny ones of timm, no network needed."""

import json
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize

from prism_dml.data.decode import square
from prism_dml.models import Embedder

TINY = "resnet10t"


def images(n=3, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("small", {"widths": [8, 8], "residual": True}),
        (TINY, {"drop_rate": 0.1}),
        ("mobilenetv3_small_050", {}),  # its features are longer than timm's num_features says
        ("test_vit", {}),  # made for one size of image, 160
    ],
)
def test_unit_embeddings(backbone, options):
    model = Embedder(backbone, 16, image_size=32, backbone_options=options)
    embeddings = model(images())
    assert embeddings.shape == (3, 16) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert model.training and model.transform.image_size == 32
    embeddings[0, 0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    rebuilt = Embedder(**json.loads(json.dumps(model.config)))
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in model.parameters()]


def test_float32_under_autocast():
    model = Embedder("small", 16, backbone_options={"widths": (8, 8)}).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(images())
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert ((embeddings - model(images())).abs() < 0.05).all()


def test_half_precision_model():
    model = Embedder("small", 16, backbone_options={"widths": (8, 8)}).eval().bfloat16()
    assert model(images().bfloat16()).dtype == torch.float32


def test_zero_features_give_no_nan():
    model = Embedder("small", 16, backbone_options={"widths": (8, 8)})
    torch.nn.init.zeros_(model.head.weight)
    embeddings = model(images())
    embeddings.sum().backward()
    assert not embeddings.any() and all(p.grad.isfinite().all() for p in model.parameters())


def test_seed_alone_decides_the_weights():
    state = torch.get_rng_state()
    first, again, other = (Embedder("small", 8, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(images()), again(images()))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_features_are_the_embeddings_before_unit_length():
    model = Embedder("small", 8, backbone_options={"widths": (8, 8)}).eval()
    features = model.features(images())
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=1), model(images()))
    assert ((features.norm(dim=1) - 1).abs() > 1e-3).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.features(images()).dtype == torch.float32


def test_mapped_embeddings_on_the_same_backbone():
    model = Embedder("small", 16, image_size=32).eval()
    before = model(images())
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    mapped = model.mapped(matrix)
    torch.testing.assert_close(mapped(images()), normalize(before @ matrix.T, dim=1))
    assert torch.equal(model(images()), before)
    assert mapped.backbone is model.backbone and mapped.config == model.config
    assert mapped.head.weight.data_ptr() != model.head.weight.data_ptr()
    mapped.register_buffer("more", torch.zeros(1))
    assert "more" not in model.state_dict()
    del mapped.more
    assert mapped.state_dict().keys() == model.state_dict().keys()


def test_a_sibling_is_another_draw_of_the_same_architecture():
    model = Embedder("small", 8, image_size=16, backbone_options={"widths": (8, 8)}, seed=3)
    state = torch.get_rng_state()
    one, again = model.sibling(), model.sibling()
    assert torch.equal(torch.get_rng_state(), state)
    assert one.config == model.config and one.transform == model.transform
    for mine, other, same in zip(model.parameters(), one.parameters(), again.parameters(), strict=True):
        assert torch.equal(other, same) and (mine.ndim < 2 or not torch.equal(mine, other))


def test_a_sibling_has_the_same_published_weights(tmp_path):
    save_file(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    model = Embedder(TINY, 8, image_size=32, weights=tmp_path / "weights.safetensors")
    sibling = model.sibling()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, sibling.backbone.state_dict()[name]), name
    assert not torch.equal(model.head.weight, sibling.head.weight)


def test_batch_norms_of_published_weights_keep_their_statistics(tmp_path):
    """In training too: half-moved ones fit neither the weights nor the images."""
    save_file(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    trained = Embedder(TINY, 8, image_size=32, weights=tmp_path / "weights.safetensors")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model in (trained, trained.sibling(), trained.mapped(torch.eye(8)), trained.eval().train()):
        before = {name: value.clone() for name, value in model.backbone.named_buffers()}
        assert model.training and model.head.training
        result = model(images)
        result.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
        for name, value in model.backbone.named_buffers():
            assert torch.equal(value, before[name]), name
        assert torch.equal(result, model.eval()(images))
        model.train()
    fresh = Embedder(TINY, 8, image_size=32)
    before = fresh.backbone.bn1.running_mean.clone()
    fresh(images)
    assert not torch.equal(fresh.backbone.bn1.running_mean, before)


def test_transform_is_resize_crop_normalise():
    model = Embedder("small", 8, image_size=16, resize_ratio=1.25, backbone_options={"widths": (8,)})
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    resized = Image.fromarray(picture).resize((30, 20), Image.Resampling.BILINEAR).crop((7, 2, 23, 18))
    expected = (np.asarray(resized, dtype=np.float32) / 255 - 0.5) / 0.25
    result = model.transform(Image.fromarray(picture))
    assert result.shape == (3, 16, 16) and result.dtype == torch.float32
    torch.testing.assert_close(result, torch.from_numpy(expected).permute(2, 0, 1))
    grey = Image.fromarray(picture[:, :, 0])
    assert torch.equal(model.transform(grey)[0], model.transform(grey.convert("RGB"))[2])


def test_transform_cuts_as_the_readers_do():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8))
    pixels = np.asarray(square(picture, 16), dtype=np.float32)
    result = Embedder("small", 8, image_size=16, backbone_options={"widths": (8,)}).transform(picture)
    torch.testing.assert_close(result, torch.from_numpy((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1))


def test_a_frozen_backbone_stays_and_takes_what_it_made_of_images(tmp_path):
    save_file(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    model = Embedder(TINY, 8, image_size=32, weights=tmp_path / "weights.safetensors")
    shown = images()
    with torch.no_grad():
        expected = model.eval()(shown)
        seen = model.backbone(shown)
    assert model.train().freeze() is model and model.training and not model.backbone.training
    assert model.freeze() is model, "twice is once"
    mapped, other = model.mapped(torch.eye(8)), model.sibling()
    for network in (model, mapped):
        torch.testing.assert_close(network(seen), expected)
        torch.testing.assert_close(network(shown), expected)
    assert other.frozen and not torch.equal(other(seen), model(seen))
    torch.testing.assert_close(other(seen), other(shown))
    model(seen)[0, 0].backward()
    assert model.head.weight.grad is not None and not any(
        p.requires_grad for p in model.backbone.parameters()
    )


def test_timm_preprocessing():
    cfg = timm.get_pretrained_cfg(TINY)
    transform = Embedder(TINY, 8, resize_ratio=256 / 224).transform
    assert transform.image_size == cfg.input_size[-1] == 176
    assert transform.resize_size == 201 and transform.mean == cfg.mean and transform.std == cfg.std
    assert Embedder("small", 8).transform.image_size == 48


@pytest.mark.parametrize("num_classes", [0, 1000])
def test_weights_of_a_file(tmp_path, num_classes):
    """A checkpoint with or without its classifier, as timm's published ones have."""
    torch.manual_seed(3)
    published = timm.create_model(TINY, num_classes=num_classes)
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    model = Embedder(TINY, 8, image_size=32, weights=tmp_path / "weights.safetensors")
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, published.state_dict()[name]), name
    assert "weights" not in model.config and "pretrained" not in model.config


def test_pretrained_asks_timm_for_weights(tmp_path):
    """timm's own way to published weights, with the download replaced by a file."""
    torch.manual_seed(3)
    published = timm.create_model(TINY)
    with mock.patch(
        "timm.models._builder.load_state_dict_from_hf", return_value=published.state_dict()
    ) as hub:
        model = Embedder(TINY, 8, image_size=32, pretrained=True)
    assert hub.call_args.args[0].startswith("timm/resnet10t")
    assert torch.equal(model.backbone.conv1[0].weight, published.conv1[0].weight)
    with (
        mock.patch("timm.models._builder.load_state_dict_from_hf", side_effect=OSError("no network\nat all")),
        pytest.raises(ValueError, match=r'^the backbone "resnet10t" cannot be built .*: no network$'),
    ):
        Embedder(TINY, 8, pretrained=True)


def test_weights_that_do_not_fit(tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")  # timm only logs a warning
    part = timm.create_model(TINY, num_classes=0).state_dict()
    del part["layer4.0.conv2.weight"]
    save_file(part, tmp_path / "part.safetensors")
    for name, message in [
        ("junk", "cannot be built with weights"),
        ("other", "not those of the backbone"),
        ("part", r"1 tensors, layer4.0.conv2.weight the first"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            Embedder(TINY, 8, weights=tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        Embedder(TINY, 8, weights=tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet5"}, "did you mean resnet"),
        ({"backbone": "smal"}, "did you mean small"),
        ({"backbone": "?"}, "unknown backbone"),
        ({"backbone": "resnet18.nobody"}, "there are: resnet18.a1_in1k"),
        ({"backbone": TINY, "backbone_options": {"colour": 1}}, "cannot be built so: .*colour"),
        ({"backbone_options": {"colour": 1}}, "bad options .*colour"),
        ({"backbone": "test_vit", "image_size": 1}, "cannot|does not take images of 1 pixels"),
        ({"pretrained": True}, "no pretrained weights"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"image_size": -3}, "image_size"),
        ({"resize_ratio": 0.9}, "resize_ratio"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Embedder(**arguments)
    assert "\n" not in str(caught.value)
