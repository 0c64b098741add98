"""CTC behind a frozen upstream: what is judged, and what is refused."""

import logging

import pandas as pd
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee.batches import SortedBatches
from speechbrain_ee.brains import DownstreamCTC
from speechbrain_ee.checkpoints import SafeCheckpointer
from speechbrain_ee.downstreams import (
    ConvTransformerCTC,
    make_label_encoder,
    split_labels,
)
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.interfaces import WeightedSum

TEXTS = {
    "a": ("[eng] NO", "character"),
    "b": ("[deu] NEIN", "character"),
    "c": ("n e i n", "phone"),
    "d": ("[deu]", "character"),
}
SECONDS = {"a": 0.6, "b": 0.5, "c": 0.4, "d": 0.3}


@pytest.fixture
def encoder(tmp_path):
    labels = (split_labels(*text) for text in TEXTS.values())
    return make_label_encoder(tmp_path / "labels.txt", labels)


def make_brain(encoder, labels=None, **settings):
    torch.manual_seed(0)
    upstream = FilterbankEncoder(n_mels=10, deltas=False)
    settings = {"opt_class": torch.optim.Adam, **settings}
    return DownstreamCTC(
        label_encoder=encoder,
        modules={
            "upstream": upstream,
            "interface": WeightedSum(upstream.state_sizes),
            "downstream": ConvTransformerCTC(
                *(upstream.output_size, labels or len(encoder)),
                **{"linear_size": 20, "d_model": 16, "nhead": 4, "d_ffn": 32},
            ),
        },
        **settings,
    )


def dataset(encoder, names=tuple(TEXTS), seconds=SECONDS):
    generator = torch.Generator().manual_seed(0)
    items = {}
    for name in names:
        text, unit = TEXTS[name]
        labels = split_labels(text, unit)
        items[name] = {
            "wrd": text,
            "unit": unit,
            "duration": seconds[name],
            "sig": torch.randn(int(16000 * seconds[name]), generator=generator),
            "tokens": encoder.encode_sequence_torch(labels),
            "language": "deu",
            "few_shot": "False",
        }
    keys = ["id", "sig", "tokens", "wrd", "unit"]
    return DynamicItemDataset(items, output_keys=keys)


def says(encoder, *hypotheses):
    """Predictions that read as these labels, a blank between two."""
    paths = []
    for labels in hypotheses:
        indices = [encoder.encode_label(x) for x in labels]
        paths.append([x for index in indices for x in (index, 0)] or [0])
    frames = torch.tensor([len(path) for path in paths])
    log_probs = torch.full((len(paths), int(frames.max()), len(encoder)), -9.0)
    # What is said in the padding does not count.
    log_probs[..., 2] = -1.0
    for row, path in enumerate(paths):
        log_probs[row, range(len(path)), path] = 0.0
    return log_probs, frames


def judge(encoder, *hypotheses):
    batch = PaddedBatch(list(dataset(encoder)))
    return make_brain(encoder).judge(says(encoder, *hypotheses), batch)


def test_text_and_language_are_judged_apart(encoder):
    first, second, third, fourth = judge(
        encoder,
        ["[deu]", "N", "[eng]", "N", "O"],
        ["N", "E", "I", "N"],
        ["n", "e", "n"],
        ["[deu]", "O"],
    )
    assert first == {
        "id": "a",
        "hyp": "[deu] N[eng] NO",
        "ref": "[eng] NO",
        "errors": 1,  # one N too many
        "ref_len": 2,
        "hyp_language": "deu",
        "language_errors": 1,
    }
    assert (second["errors"], second["ref_len"]) == (0, 4)
    assert (second["hyp_language"], second["language_errors"]) == ("", 1)
    assert third == {
        "id": "c",
        "hyp": "n e n",
        "ref": "n e i n",
        "errors": 1,
        "ref_len": 4,
    }
    # Where the language is all there is, it is what counts.
    assert (fourth["errors"], fourth["ref_len"]) == (0, 1)
    assert fourth["language_errors"] == 0


def test_words_can_be_counted_instead(encoder):
    batch = PaddedBatch(list(dataset(encoder)))
    batch.wrd = ["NO ONE", "[deu] NEIN O NEIN", "n e i n", "EIN"]
    batch.unit = ["character"] * 2 + ["phone", "character"]
    said = [[*"NE", "O", "N", "E"], ["[deu]", *"NEIN"], [*"nein"], []]
    brain = make_brain(encoder, count_words=True)
    rows = brain.judge(says(encoder, *said), batch)
    assert [row["hyp"] for row in rows[:2]] == ["NEONE", "[deu] NEIN"]
    counts = [(row["errors"], row["ref_len"]) for row in rows]
    assert counts == [(2, 2), (2, 3), (0, 4), (1, 1)]
    assert rows[1]["language_errors"] == 0


def test_an_empty_hypothesis_is_all_deletions(encoder):
    rows = judge(encoder, [], [], [], [])
    assert [row["errors"] for row in rows] == [2, 4, 4, 1]
    assert {row["hyp"] for row in rows} == {""}


def test_the_loss_is_torchs_mean_over_utterances(encoder):
    brain = make_brain(encoder)
    batch = PaddedBatch(list(dataset(encoder)))
    brain.modules.eval()
    predictions = brain.compute_forward(batch, sb.Stage.VALID)
    log_probs, frames = predictions
    losses = [
        torch.nn.functional.ctc_loss(
            log_probs[row, : frames[row], None],
            item["tokens"][None],
            frames[row, None],
            torch.tensor([len(item["tokens"])]),
            reduction="sum",
        )
        for row, item in enumerate(dataset(encoder))
    ]
    expected = sum(losses) / 4
    torch.testing.assert_close(brain.loss(predictions, batch), expected)


def test_it_learns_resumes_and_says_how_wrong_it_is(encoder, tmp_path):
    train = dataset(encoder, "ab")

    def fitted(epochs):
        """A run of so many epochs, which goes on from what there is."""
        brain = make_brain(
            encoder,
            opt_class=lambda x: torch.optim.Adam(x, lr=0.005),
            run_opts={"noprogressbar": True},
        )
        counter = sb.utils.epoch_loop.EpochCounter(epochs)
        modules = brain.modules
        brain.checkpointer = SafeCheckpointer(
            tmp_path / "save",
            {
                "interface": modules.interface,
                "downstream": modules.downstream,
                "counter": counter,
            },
        )
        batches = SortedBatches([2, 1], 2, num_batches=30)
        brain.fit(
            *(counter, train, train),
            train_loader_kwargs={
                "batch_sampler": batches,
                "collate_fn": PaddedBatch,
            },
            valid_loader_kwargs={"batch_size": 2},
        )
        return brain

    fitted(1)
    brain = fitted(3)
    assert brain.optimizer_step == 60  # of its own
    groups = {"language": "language", "few_shot": "few_shot", "unit": "unit"}
    traces = brain.evaluate_set(train, "test", tmp_path, groups=groups)
    assert traces["hyp"].tolist() == ["[eng] NO", "[deu] NEIN"]
    assert traces["errors"].sum() == 0
    results = brain.results(traces).set_index(["metric", "group"])["value"]
    assert results["CER", "normal"] == 0
    assert results["LID accuracy", "normal, pooled"] == 100
    written = pd.read_csv(tmp_path / "traces_test.csv")
    assert written["language_errors"].tolist() == [0, 0]


def test_errors_of_the_language_stand_in_the_log(encoder):
    brain = make_brain(encoder)
    brain.judged = judge(encoder, ["[eng]", "N", "O"], [], [], ["[deu]"])
    figures = brain.figures(0.0)
    assert figures["error_rate"] == pytest.approx(100 * 8 / 11)
    assert figures["language_error_rate"] == pytest.approx(100 / 3)


def test_utterances_of_no_length_that_fits_are_named(encoder):
    brain = make_brain(encoder)
    brain.check_lengths(dataset(encoder))
    short = dataset(encoder, seconds=SECONDS | {"c": 0.05})
    with pytest.raises(ValueError, match=r"1 utterances .*: c \(0 frames\)"):
        brain.check_lengths(short)


def test_targets_that_cannot_be_spelled_are_left_out(encoder, caplog):
    brain = make_brain(encoder)
    assert list(brain.spellable(dataset(encoder)).data_ids) == list(TEXTS)
    # 10 ms frames, halved: of 0.08 s there are 2, and [deu] NEIN needs 5.
    short = dataset(encoder, seconds=SECONDS | {"b": 0.08})
    with caplog.at_level(logging.WARNING):
        kept = brain.spellable(short)
    assert list(kept.data_ids) == ["a", "c", "d"]
    assert "1 of 4 targets are longer" in caplog.text
    assert "b (2 frames, 5 needed)" in caplog.text
    with pytest.raises(ValueError, match="3 of 4 targets are longer"):
        brain.spellable(dataset(encoder, seconds=dict.fromkeys(TEXTS, 0.06)))


def test_a_downstream_of_another_size_is_refused(encoder):
    with pytest.raises(ValueError, match="made for 5 labels, the data has"):
        make_brain(encoder, labels=5)
