"""What each ingredient of Refract is worth, on validation classes with true labels.

    PRISM_DATA=folder python benchmarks/refract_study.py --out benchmarks/refract_study [--workers 2] [--only grocery]
        [--noise "all labels right"] [--seeds 0 1 2] [--constants]

Needs grocery.parquet, omniglot.parquet and cifar10n_worse.parquet in $PRISM_DATA. A fifth of the training classes (of
CIFAR-10N, whose ten classes are in both splits, of the images) is set aside with true labels, labels of the others are
made wrong (CIFAR-10N: as people gave them), and the variants of VARIANTS are trained on those; the test split is not
touched. A finished run is one line of results.jsonl and is not run again. `time` is processor time beside MCL's on the
same data; runs side by side slow each other down, so it is good to a tenth.
"""

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from unittest import mock

import torch
from resumed import read_results, run_all
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch.nn.functional import normalize

from prism_dml.benchmark.jobs import Job
from prism_dml.benchmark.tables import tuning_table
from prism_dml.data import Augment, open_images
from prism_dml.losses.contrastive import MemoryContrastiveLoss
from prism_dml.methods import beliefs, refract
from prism_dml.methods.base import EmbedAll, StepResult
from prism_dml.methods.classifier import CosineClassifier
from prism_dml.methods.compared import Compared
from prism_dml.methods.refract import Refract
from prism_dml.methods.registry import METHODS
from prism_dml.methods.selector import make_bank
from prism_dml.models import load
from prism_dml.models.levels import WithLevels
from prism_dml.models.patches import Patches, PatchFeatures
from prism_dml.retrieval import retrieval_metrics
from prism_dml.selection import cross_fit
from prism_dml.selection.discriminant import ClassBalls, class_sums
from prism_dml.selection.mistakes import AnyAlike, ByPair
from prism_dml.training import TrainConfig, train
from prism_dml.training.measure import embed_all

COMMON = {
    "validation": 0.2,
    "validate_every": 10**6,
    "precision": "bf16-mixed",
    "embedding_dim": 128,
    "workers": 0,
}
RECIPES = {
    "grocery": {"image_size": 48, "augment": "photo", "steps": 1000},
    "omniglot": {"image_size": 32, "augment": "drawing", "steps": 1600},
    "cifar10n_worse": {
        "image_size": 32,
        "augment": "none",
        "steps": 1000,
        "classes_per_batch": 8,
        "samples_per_class": 8,
        "bank_size": 2048,
    },
}
# as the quick comparison chose them: of the network for MCL, of the network and of the proxies for Refract
RATES = {
    "grocery": ({"lr": 1e-3}, {"lr": 3e-3, "proxy_lr": 3e-2}),
    "omniglot": ({"lr": 3e-3}, {"lr": 1e-3, "proxy_lr": 1e-1}),
    "cifar10n_worse": ({"lr": 3e-3}, {"lr": 3e-3, "proxy_lr": 3e-2}),
}
KEYS = ("data", "noise", "row", "seed")
GIVEN = torch.eye(1 + beliefs.OTHERS)[0]  # of the given label and the others


class BlocksOnly(Compared):
    """What the blocks of the network see, and nothing that is seen without it."""

    def rows(self, seen, embeddings, unlearned):
        return super().rows(seen, embeddings, torch.zeros_like(unlearned))


class EmbeddingsOnly(Compared):
    """Embeddings, and not what the blocks of the network see."""

    def rows(self, seen, embeddings, unlearned):
        return embeddings


class ByBlocks(Refract):
    """Refract that judges by `COMPARED`."""

    COMPARED = BlocksOnly

    def look_every(self, epoch, steps):
        part = super().look_every(epoch, steps)
        self._compared = self.COMPARED(**vars(self._compared))
        return part


class ByEmbedding(ByBlocks):
    """Refract that judges embeddings."""

    COMPARED = EmbeddingsOnly


class FromSteps(ByEmbedding):
    """Refract that judges the features of training, the last of each sample, instead of embedding all images anew."""

    def __init__(self, embedder, data, config) -> None:
        super().__init__(embedder, data, config)
        self.register_buffer("features", torch.zeros(data.num_samples, self.embedding_dim))

    def forward(self, images, labels, index):
        def remember(head, given, embeddings) -> None:
            self.features[index] = normalize(embeddings.detach().float(), dim=1)

        with self.embedder.head.register_forward_hook(remember):
            return super().forward(images, labels, index)

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        def remembered(network):
            return embed_all(network) if isinstance(network, Patches | PatchFeatures) else self.features

        super().on_epoch_start(remembered)
        seen = (self.features != 0).any(dim=1)
        self.draws = torch.where(seen, self.draws, 1.0)  # else what was not seen yet would never be


class AsGiven(Refract):
    """Refract that takes a label it believes as given: the likelihood is for the doubtful ones only."""

    def _believe(self, judged) -> None:
        super()._believe(judged)
        if not isinstance(judged.mistakes, ByPair):
            self.weights.copy_(torch.where(self.trusted[:, None], GIVEN, self.weights))
            self.anywhere.copy_(torch.where(self.trusted, 0, self.anywhere))


class RateOnly(Refract):
    """Of each look only the rate counts: forward correction by a noise that makes any class of any other."""

    def _believe(self, judged) -> None:
        super()._believe(judged)
        share = judged.rate / (len(self.class_weights) - 1)
        self.weights.copy_((1 - judged.rate - share) * GIVEN.expand_as(self.weights))
        self.anywhere.fill_(share)


class Weighing(Refract):
    """Cross-entropy with one weight for each label that a sample may have."""

    def _believe(self, judged) -> None:
        super()._believe(judged)
        self.weights.copy_(self.weigh(judged.chances, self.trusted[:, None]))

    def weigh(self, chances, trusted):
        """Weights (N, 1 + OTHERS) of what has these chances; `trusted` is (N, 1)."""
        return torch.where(trusted, GIVEN, chances)

    def _label_loss(self, logits, index):
        chances, weights = logits.log_softmax(dim=1), self.weights[index]
        losses = -(weights * chances.gather(1, self.targets[index])).sum(dim=1)
        return losses.sum() / weights.sum().clamp(min=1e-6)


class NothingPutRight(Weighing):
    learns_from_rejected = False

    def weigh(self, chances, trusted):
        return trusted * GIVEN


class OneLabelWhereSure(Weighing):
    """The most probable label, whole, where that is another and has a probability of 0.8; else nothing."""

    def weigh(self, chances, trusted):
        return trusted * GIVEN + ~trusted * (chances >= 0.8)


class Teacher(Refract):
    """The looks are those of the weights' moving average, in evaluation mode."""

    KEPT = 0.98

    def __init__(self, embedder, data, config) -> None:
        super().__init__(embedder, data, config)
        self.teacher = deepcopy(embedder).requires_grad_(False)

    def on_update(self) -> None:
        for mine, its in zip(
            self.teacher.state_dict().values(), self.embedder.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(its, 1 - self.KEPT)
            else:
                mine.copy_(its)

    def on_epoch_start(self, embed_all: EmbedAll) -> None:
        def by_teacher(network):
            if network is self.embedder:
                return embed_all(self.teacher)
            return embed_all(WithLevels(self.teacher) if isinstance(network, WithLevels) else network)

        super().on_epoch_start(by_teacher)


class OnMemory(OneLabelWhereSure):
    """The memory contrastive loss, whose memory holds every sample, with one label where that is sure."""

    def __init__(self, embedder, data, config) -> None:
        super().__init__(embedder, data, config)
        self.bank = make_bank(data, self.embedding_dim, config)
        self.criterion = MemoryContrastiveLoss(config.margin, config.bank_weight)

    def forward(self, images, labels, index):
        weight, place = self.weights.max(dim=1)
        learned = torch.where(weight > 0, self.targets.gather(1, place[:, None]).squeeze(1), -1)
        embeddings, believed, bank = self.embedder(images), learned[index], self.bank
        self._learned = (embeddings.detach(), labels, index)
        known = believed >= 0
        remembered = torch.where(bank.labels >= 0, learned[bank.index.clamp(min=0)], -1)
        memory = (bank.embeddings, remembered, index[known], bank.index)
        return StepResult(self.criterion(embeddings[known], believed[known], *memory), self.trusted[index])

    def on_update(self) -> None:
        self.bank.enqueue(*self._learned)

    def proxies(self):
        return []

    def _sees(self, embeddings, judged):
        return judged.chances  # there are no class weights to ask


def margin_mixture(embeddings, labels, *options):
    """Judge by the margin of leave-one-out centres, and two normal distributions of it; see `beliefs.judge`.

    Centres are of what is trusted, all at first, in three rounds. The nearest class is suggested.
    """
    trust, count = torch.ones(len(labels)), int(labels.max()) + 1
    for _ in range(3):
        sums, _ = class_sums(embeddings, labels, trust)
        cosines = embeddings @ normalize(sums, dim=1).T
        alone = normalize(sums[labels] - trust[:, None] * embeddings, dim=1)
        own = (embeddings * alone).sum(dim=1)
        others = cosines.scatter(1, labels[:, None], -torch.inf)
        margin = (own - others.amax(dim=1))[:, None].double().numpy()
        mixture = GaussianMixture(2, random_state=0).fit(margin)
        clean = torch.from_numpy(mixture.predict_proba(margin)[:, mixture.means_.argmax()]).float()
        trust = (clean >= refract.BELIEVED).float()
    best = others.topk(min(beliefs.OTHERS, count - 1), dim=1).indices
    classes, chances = beliefs.certain(labels)
    classes[:, 1 : 1 + best.shape[1]] = best
    chances[:, 0], chances[:, 1] = clean, 1 - clean
    suggested = torch.where(clean >= refract.BELIEVED, labels, best[:, 0])
    probability = torch.maximum(clean, 1 - clean)
    rate = float(1 - clean.mean())
    nowhere = torch.zeros(len(labels))
    return beliefs.Judged(classes, chances, suggested, probability, nowhere, rate, AnyAlike(rate))


def without_folds(embeddings, labels, similarities, neighbours):
    """`judge_labels`, but a sample is judged by trust that itself had a say in."""
    agreement = (labels[neighbours] == labels[:, None]).float().mean(dim=1)
    candidates, rows = cross_fit.find_candidates(labels, similarities, neighbours), torch.arange(len(labels))
    first = cross_fit._first_copies(labels, similarities, neighbours)
    whitened, slope = cross_fit.judged_in(embeddings, labels, agreement, first)

    def weigh(trust):
        return cross_fit.weigh_candidates(candidates, whitened, labels, trust, rows)

    everyone = torch.ones(len(labels))
    begun = []
    for trust in (everyone, cross_fit._agreed_with(agreement, labels, everyone > 0)):
        model = cross_fit.LabelModel(int(labels.max()) + 1, slope)
        begun.append((model.fit(weigh(trust)), model, trust))
    _, model, trust = begun[0] if begun[0][0] < begun[1][0] - cross_fit._ALIKE else begun[1]
    for _ in range(2):
        evidence = weigh(trust)
        trust = model(evidence).trust().float()
    model.fit(evidence)
    model.raise_rate(evidence, cross_fit.least_rate(whitened, labels, model(evidence).classes[:, 0].float()))
    model.count_pairs(evidence)
    return cross_fit._judgement(model, evidence, candidates, labels)


def with_itself(balls, samples, *classes, density=ClassBalls.density):
    """Density as if no sample were in its class's sums, nor in the spread: none is taken out."""
    whole = copy(balls)
    whole.trust, whole.whitened = torch.zeros_like(balls.trust), replace(balls.whitened, own=None)
    return density(whole, samples, *classes)


def every(parts: int) -> dict:
    """Looks after equal parts of the run, however few epochs it has; on CIFAR-10N, too, blocks are compared then."""
    return {
        "methods.looks.PARTS": parts,
        "methods.looks.APART": 0,
        "methods.looks.FEW": 0,
        "methods.looks.FIRST": 10**9,
        "methods.looks._is_look": lambda parts: parts > 0,
        "methods.compared.APART": 0,
        "methods.compared.FEW": 0,
    }


NO_LOOKS = {"methods.looks._is_look": lambda parts: False, "methods.looks.FEW": 0}
NOT_TOLD_APART = {"methods.refract.MOST": 0.0}
NOT_EVENED = {"methods.refract.EVENED": 0.0}
NO_SAY = {
    "selection.bursts.judge_labels": without_folds,
    "selection.discriminant.ClassBalls.density": with_itself,
}
# row: method, what differs in prism_dml, another class in the place of Refract
VARIANTS = {
    "MCL": ("mcl", {}, None),
    "Refract": ("refract", {}, None),
    "oracle of Refract": ("refract-oracle", {}, None),
    "no looks: all labels believed": ("refract", NO_LOOKS, None),
    "images not told apart": ("refract", NOT_TOLD_APART, None),
    "embeddings not evened out": ("refract", NOT_EVENED, None),
    "none of the three": ("refract", NO_LOOKS | NOT_TOLD_APART | NOT_EVENED, None),
    "one label, put right from 0.8 on": ("refract", {}, OneLabelWhereSure),
    "nothing put right": ("refract", {}, NothingPutRight),
    "the embeddings judged": ("refract", {}, ByEmbedding),
    "the blocks of the network judged only": ("refract", {}, ByBlocks),
    "the features of training instead of looks": ("refract", {}, FromSteps),
    "a teacher embeds": ("refract", {}, Teacher),
    "first look after a quarter": ("refract", every(4), None),
    "centres' margin, mixture of two": ("refract", {"methods.refract.judge": margin_mixture}, None),
    "no folds, a sample has a say on itself": ("refract", NO_SAY, None),
    "doubtful samples drawn as often as others": ("refract", {"methods.refract.SURENESS": 0}, None),
    "cross-entropy: given label and four others": ("refract", {}, Weighing),
    "the judge's rate only": ("refract", {}, RateOnly),
    "the judge's evidence counts whole": ("refract", {"methods.beliefs.EVIDENCE": 1.0}, None),
    "what is believed taken as given": ("refract", {}, AsGiven),
    "believed from 0.8 on": ("refract", {"methods.refract.BELIEVED": 0.8}, None),
    "15 looks at equal parts": ("refract", every(16), None),
    "the rate by the likelihood alone": (
        "refract",
        {"selection.cross_fit.least_rate": lambda *of: 0.0},
        None,
    ),
    "neighbours have no votes": ("refract", {"selection.cross_fit.vote_odds": lambda *of: 1.0}, None),
    "no image is of no class": (
        "refract",
        {"selection.cross_fit.of_a_class": lambda labels, *of: torch.ones(len(labels))},
        None,
    ),
    "temperature 0.05": ("refract", {"methods.refract.WarmClassifier": CosineClassifier}, None),
    "memory contrastive loss": ("refract", {}, OnMemory),
}
CLOSED = tuple(row for row in VARIANTS if row != "no image is of no class")
# constant of the method, or of its judge: a smaller and a larger value than it has
CONSTANTS = {
    "methods.looks.PARTS": (16, 64),
    "methods.looks.FIRST": (1, 4),
    "methods.refract.BELIEVED": (0.35, 0.65),
    "methods.refract.SURENESS": (2, 8),
    "methods.refract.INSTANCE": (1 / 80, 1 / 20),
    "methods.refract.EVENED": (0.125, 0.375),
    "methods.refract.WarmClassifier.TEMPERATURE": (0.07, 0.14),
    "methods.beliefs.OTHERS": (2, 8),
    "methods.beliefs.EVIDENCE": (0.25, 0.75),
    "methods.beliefs.NEIGHBOURS": (32, 128),
    "selection.levels.DIRECTIONS": (128, 384),
    "selection.cross_fit.FOLDS": (3, 10),
    "selection.cross_fit._SLOPE": (0.5, 1.0),
    "selection.discriminant._SHRINKAGE": (0.05, 0.2),
    "selection.noise_parameters._CLASS_STRENGTH": (0.1, 0.4),
}
CONSTANT_ROWS = {
    f"{name.rsplit('.', 1)[1].strip('_')} {value:g}": ("refract", {name: value}, None)
    for name, values in CONSTANTS.items()
    for value in values
}
VARIANTS |= CONSTANT_ROWS
CHOSEN_ON = "omniglot", "symmetric 50 %"
EVERYWHERE = CLOSED[:8]  # under every kind of noise
# noise in words: kind, rate, rows
NOISES = {
    "symmetric 50 %": ("symmetric", 0.5, CLOSED),
    "as people gave them": ("given", None, CLOSED),
    "symmetric 80 %": ("symmetric", 0.8, (*EVERYWHERE, "doubtful samples drawn as often as others")),
    "small cluster 50 %": ("small-cluster", 0.5, (*EVERYWHERE, "no image is of no class")),
    "all labels right": (
        "none",
        None,
        (
            "Refract",
            "no looks: all labels believed",
            "images not told apart",
            "embeddings not evened out",
        ),
    ),
    "symmetric 20 %": ("symmetric", 0.2, EVERYWHERE),
    "pairs 30 %": ("pair", 0.3, EVERYWHERE),
}
HUMAN = ("cifar10n_worse",)
"""Data sets with labels that people gave; of the others the true labels are made wrong."""
COLUMNS = [
    "row",
    "seeds",
    "P@1",
    "MAP@R",
    "noise estimated",
    "AUROC",
    "purity",
    "clean recall",
    "put right",
    "of them right",
]
COLUMNS += ["AUROC at the first look", "time"]


def run(job: dict, root: Path) -> dict:
    """Train one variant on one data set and seed, and measure it on the classes set aside."""
    torch.set_num_threads(1)
    method, differs, other = VARIANTS[job["row"]]
    kind, rate, _ = NOISES[job["noise"]]
    asked = Job("tuning", job["data"], f"{job['data']}.parquet", None, kind, rate, "", method, "given",
                {"validation": COMMON["validation"]}, job["seed"])  # fmt: skip
    table = tuning_table(asked, root)
    with_proxies = method != "mcl" and other is not OnMemory
    rates = RATES[job["data"]][with_proxies]
    config = TrainConfig(method=method, seed=job["seed"], **COMMON, **RECIPES[job["data"]], **rates)
    truth, looks = torch.from_numpy(table.split("train").clean_labels), []

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(METHODS, {"refract": other} if other else {}))
        for name, value in differs.items():
            stack.enter_context(mock.patch(f"prism_dml.{name}", value))

        def judged(embeddings, labels, *options, judge=refract.judge):
            found = judge(embeddings, labels, *options)
            looks.append(facts(found, labels, truth) if len(labels) == len(truth) else {})
            return found

        stack.enter_context(mock.patch.object(refract, "judge", judged))
        start = time.process_time()
        result = train(table, config, Path(folder) / "run")
        seconds = time.process_time() - start
        model = load(Path(folder) / "run")
    validation = open_images(table.split("validation"), config.image_size, Augment("none"))
    metrics = retrieval_metrics(embed_all(model, validation), torch.from_numpy(validation.table.labels))
    names = ("precision_at_1", "map_at_r")
    return (
        job
        | {name: metrics[name] for name in names}
        | {"seconds": round(seconds, 1), "looks": looks}
        | {"estimate": result.get("noise_rate_estimate")}
    )


def facts(found, labels: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """How right a judgement is."""
    right, trusted = labels == truth, found.clean >= refract.BELIEVED
    put_right = ~trusted & (found.suggested != labels) & (found.probability >= 0.5)
    corrected = (found.suggested == truth)[put_right].float()
    return {
        "auroc": float(roc_auc_score(right, found.clean)) if len(right.unique()) > 1 else None,
        "purity": float(right[trusted].float().mean()),
        "clean_recall": float(trusted[right].float().mean()),
        "put_right": float(put_right.float().mean()),
        "of_them_right": float(corrected.mean()) if len(corrected) else None,
    }


def write_table(out: Path, results: list[dict]) -> None:
    lines = [
        "# What each ingredient of Refract is worth",
        "",
        "    python benchmarks/refract_study.py --out benchmarks/refract_study",
        "",
    ]
    lines += [
        "Validation classes with true labels (CIFAR-10N: images), the labels of the rest wrong as the headline says; "
        'mean over the seeds that all rows have. AUROC to "of them right": the last judgement of the training '
        'labels; "put right": share '
        "of all, by a suggestion that is more likely right than wrong; time: of MCL's.",
        "",
    ]
    for data, noise in [(data, noise) for data in RECIPES for noise in NOISES]:
        mine = [
            r for r in results if (r["data"], r["noise"]) == (data, noise) and r["row"] not in CONSTANT_ROWS
        ]
        if not mine:
            continue
        base = mean(
            [r["seconds"] for r in results if (r["data"], r["row"]) == (data, "MCL")] or [float("nan")]
        )
        lines += [f"## {data}, {noise}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        rows = [[r for r in mine if r["row"] == row] for row in VARIANTS]
        shared = set.intersection(*({r["seed"] for r in runs} for runs in rows if runs))
        for row, runs in zip(VARIANTS, rows, strict=True):
            runs = [r for r in runs if r["seed"] in shared or not shared]
            if runs:
                lines.append("| " + " | ".join([row, *cells(runs, base)]) + " |")
        lines.append("")
    lines += constants_table(results)
    (out / "table.md").write_text("\n".join(lines))


def constants_table(results: list[dict]) -> list[str]:
    """What other constants are worth on the data set that they are chosen on, seed by seed beside Refract's own."""
    of = {(r["row"], r["seed"]): r for r in results if (r["data"], r["noise"]) == CHOSEN_ON}
    lines = [
        f"## Other constants, {', '.join(CHOSEN_ON)}",
        "",
        "MAP@R, and what it differs from that of Refract as it is, with the same seed.",
        "",
        "| constant | value | P@1 | MAP@R | difference, seed by seed | AUROC | noise estimated |",
        "|" + "---|" * 7,
    ]
    for row in ("Refract", *CONSTANT_ROWS):
        runs = [r for (name, _), r in sorted(of.items()) if name == row]
        if not runs:
            continue
        seeds = [r for r in runs if ("Refract", r["seed"]) in of]
        moved = [r["map_at_r"] - of["Refract", r["seed"]]["map_at_r"] for r in seeds]
        name, _, value = row.partition(" ")
        values = average(runs, lambda r: r["precision_at_1"]), average(runs, lambda r: r["map_at_r"])
        auroc = average(runs, lambda r: r["looks"][-1].get("auroc"))
        told = ", ".join(f"{difference:+.3f}" for difference in moved) if row != "Refract" else ""
        estimate = average(runs, lambda r: r["estimate"])
        lines.append("| " + " | ".join([name, value, *values, told, auroc, estimate]) + " |")
    return [*lines, ""] if len(lines) > 6 else []


def cells(runs: list[dict], base: float) -> list[str]:
    """What the table says of a row; `base` is the processor time of MCL."""
    values = [average(runs, lambda r, k=k: r[k]) for k in ("precision_at_1", "map_at_r", "estimate")]
    for name in ("auroc", "purity", "clean_recall", "put_right", "of_them_right"):
        values.append(average(runs, lambda r, k=name: r["looks"][-1].get(k) if r["looks"] else None))
    values.append(average(runs, lambda r: r["looks"][0].get("auroc") if r["looks"] else None))
    return [str(len(runs)), *values, f"{mean(r['seconds'] for r in runs) / base:.2f}"]


def average(runs: list[dict], value) -> str:
    values = [v for v in map(value, runs) if v is not None]
    return f"{mean(values):.3f}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=RECIPES, help="one data set")
    parser.add_argument("--noise", choices=NOISES, help="one kind of noise")
    parser.add_argument(
        "--constants",
        action="store_true",
        help="other constants instead, on the data set that they are chosen on",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    done = {tuple(r[key] for key in KEYS) for r in read_results(file)}
    asked = [
        (data, noise, row)
        for noise, (kind, _, rows) in NOISES.items()
        for row in rows
        for data in RECIPES
        if (data in HUMAN) == (kind == "given")
        and arguments.only in (None, data)
        and arguments.noise in (None, noise)
    ]
    if arguments.constants:
        asked = [(*CHOSEN_ON, row) for row in ("Refract", *CONSTANT_ROWS)]
    jobs = [
        dict(zip(KEYS, (*wanted, seed), strict=True))
        for seed in arguments.seeds
        for wanted in asked
        if (*wanted, seed) not in done
    ]
    train_one = partial(run, root=Path(os.environ["PRISM_DATA"]))
    run_all(
        train_one, jobs, file, arguments.workers, KEYS, lambda results: write_table(arguments.out, results)
    )


if __name__ == "__main__":
    main()
