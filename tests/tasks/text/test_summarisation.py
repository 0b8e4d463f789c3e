import gzip
import json
import random
import sys

import pytest
import torch

import thalweg
from thalweg.tasks.task import BadData
from thalweg.tasks.text.losses import IGNORED
from thalweg.tasks.text.papers import Paper, read_papers, read_parts
from thalweg.tasks.text.rouge import Rouge, longest_common, overlap
from thalweg.tasks.text.summarisation import build, coded, example, make, predict
from thalweg.tasks.text.summary_networks import Summariser, SummaryLoss
from thalweg.tasks.text.tokens import BEGIN, END, PADDING, BytePairs

FILLERS = ["it rained all day", "the road was long", "birds sang in trees", "nobody came home", "lamps went out"]
WHO = ["the king", "a queen", "the miller", "a farmer", "the smith"]
DID = ["found gold", "lost a ring", "built a house", "sold the horse", "broke the mill"]


def paper(draw):
    """One sentence of four begins with "we report" and is the summary but for that."""
    news = f"{draw.choice(WHO)} {draw.choice(DID)}"
    sentences = draw.sample(FILLERS, 3)
    sentences.insert(draw.randrange(4), f"we report that {news}")
    return {"source": sentences, "target": [news]}


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)
    data = tmp_path / "data"
    data.mkdir()
    for part, count in (("train", 400), ("dev", 24), ("test", 24)):
        write(data / f"{part}.jsonl", [paper(draw) for _ in range(count)])
    return data


SMALL = {"vocabulary": 400, "width": 32, "layers": 1, "dropout": 0.0}


def test_it_learns_to_point_and_to_write_and_answers(folder, tmp_path):
    recipe = thalweg.recipe("summarisation", data=folder, **SMALL)
    run = recipe.fit(epochs=12, run_dir=tmp_path / "run", verbose=False, learning_rate=0.01, batch_size=16)
    # The first sentence is the right one in a quarter of the texts; a random summary shares a word or two.
    assert run.metrics["rougeL_pointed"] > 70 > 40 > run.metrics["lead1_rougeL"]
    assert run.metrics["rougeL_written"] > 60
    assert run.metrics["rougeL"] == run.metrics["rougeL_pointed"]
    assert [section.title for section in run.sections] == ["Summaries", "Where it points", "What is copied"]
    assert "oracle" in run.report().read_text()

    for path in folder.iterdir():
        path.unlink()  # a trained model is asked without its data
    asked = tmp_path / "asked.txt"
    fillers = FILLERS[:2]
    entry = {"source": [*fillers, "we report that a farmer lost a ring"]}
    asked.write_text(json.dumps(entry) + "\n\nIt rained all day. The road was long.\n")
    answers = list(thalweg.Task.answers(tmp_path / "run", [asked]))
    assert [answer["line"] for answer in answers] == [1, 2, 3] and answers.pop(1)["answer"] == ""
    assert answers[0]["answer"] == "we report that a farmer lost a ring" and answers[0]["sentence"] == 3
    assert answers[1]["answer"] in ("It rained all day.", "The road was long.")


def test_it_can_be_asked_for_its_own_words(folder, tmp_path):
    recipe = thalweg.recipe("summarisation", data=folder, answer="write", **SMALL)
    run = recipe.fit(steps=2, run_dir=tmp_path / "run", verbose=False)
    assert run.metrics["rougeL"] == run.metrics["rougeL_written"]
    (tmp_path / "a.txt").write_text("Some text. It has sentences.\n")
    (answer,) = predict(run.model.eval(), recipe.facts, [tmp_path / "a.txt"])
    assert answer["answer"] == answer["written"]


def test_micro_batches_give_the_gradient_of_the_whole(folder):
    papers = read_parts(folder, ("source", "target"), 1000, BadData(), 0).train[:7]
    tokens = BytePairs.learned((s for p in papers for s in (*p.sentences, *p.summaries)), 300)
    x, y = coded(tokens, papers)
    loss = SummaryLoss(5.0)
    torch.manual_seed(0)
    model = Summariser(300, 32, 1, 1, 0.0).eval()  # what is dropped differs from draw to draw

    def gradient(rows):
        numbers = torch.tensor(rows)
        inputs, target = [tuple(part.take(numbers) for part in side) for side in (x, y)]
        output = model(*inputs)
        model.zero_grad()
        loss(output, target).backward()
        return model.sentence.weight.grad.clone(), int(loss.num_terms(output, target))

    whole, terms = gradient(range(7))
    parts = [gradient(rows) for rows in ([0, 1, 2], [3], [4, 5, 6])]
    assert terms == sum(count for _, count in parts)
    torch.testing.assert_close(sum(g * count for g, count in parts) / terms, whole, rtol=1e-4, atol=1e-6)


def test_inputs_and_targets_belong_together():
    papers = [Paper(["the cat sat", "we propose a model", "it works"], ["we propose models", "it works well"])]
    tokens = BytePairs.learned(["we propose a model it works the cat sat well"], 280)
    (source, answer), (target, wanted) = coded(tokens, papers)
    assert len(source) == 2  # a row for each summary
    assert (source[0] == BEGIN).sum() == 3 and source[0][-1] == END
    for row, best in ((0, 1), (1, 2)):
        assert answer[row].tolist()[1:] == target[row].tolist()[:-1]
        assert float(wanted[row].sum()) == pytest.approx(1)
        places = (source[row] == BEGIN).nonzero().flatten()
        assert int(wanted[row].argmax()) == int(places[best])
        assert float(wanted[row][source[row] != BEGIN].abs().max()) == 0


def test_a_summary_that_is_cut_has_no_end_and_is_counted(tmp_path):
    """79 tokens and the end fit; of 80 tokens the end is cut off."""
    letters = [" ".join("abcdefghij"[n % 10] for n in range(count)) for count in (5, 40)]
    write(tmp_path / "train.jsonl", [{"source": letters, "target": letters}] * 3)
    made = make(tmp_path, vocabulary=259, width=32, layers=1)  # each byte is a token: 9 and 79 of them
    assert not made["notes"]
    write(tmp_path / "train.jsonl", [{"source": letters, "target": [*letters, letters[1] + "x"]}] * 3)
    made = make(tmp_path, vocabulary=259, width=32, layers=1)
    (note,) = made["notes"]
    assert note.startswith("3 of 9 summaries are longer than 79 tokens: what follows is cut off")
    (_, answers), (targets, _) = made["data"]
    assert [len(targets[n]) for n in range(3)] == [10, 80, 80]
    assert [int(targets[n][-1]) == END for n in range(3)] == [True, True, False]
    assert all(answers[n].tolist()[1:] == targets[n].tolist()[:-1] for n in range(3))


def test_the_pointer_gives_probabilities_also_to_words_that_are_never_generated():
    torch.manual_seed(0)
    model = Summariser(50, 32, 1, 1, 0.0).eval()
    source = torch.tensor([[BEGIN, 7, 8, BEGIN, 9, END, PADDING], [BEGIN, 7, 7, 7, 7, 7, END]])
    log_p, sentences = model(source, torch.tensor([[BEGIN, 7], [BEGIN, 8]]))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 2))
    torch.testing.assert_close(sentences.exp().sum(-1), torch.ones(2))
    assert (sentences.exp() > 0).tolist() == (source == BEGIN).tolist()
    with torch.no_grad():
        model.gate.bias.fill_(-100.0)  # copy only
    log_p, _ = model(source, torch.tensor([[BEGIN], [BEGIN]]))
    copied = log_p[0, 0].exp() > 1e-6
    assert copied.nonzero().flatten().tolist() == [BEGIN, END, 7, 8, 9]
    assert model.best_sentence(source).tolist()[1] == 0


def test_step_by_step_it_says_the_same_as_at_once():
    torch.manual_seed(2)
    model = Summariser(30, 32, 2, 2, 0.0).eval()
    source, answer = torch.randint(3, 30, (3, 7)), torch.randint(3, 30, (3, 6))
    source[:, 0], source[1, 4:] = BEGIN, PADDING
    (at_once, _), state = model(source, answer), model.begin(source)
    for place in range(6):
        said, state = model.step(answer[:, place], state)
        torch.testing.assert_close(said, at_once[:, place], rtol=1e-4, atol=1e-4)


def test_weights_go_out_and_the_network_is_made_again_from_its_facts(folder, tmp_path):
    recipe = thalweg.recipe("summarisation", data=folder, **SMALL)
    model = recipe.arguments["model"].eval()
    thalweg.export(model, tmp_path / "m.safetensors", "safetensors")
    again = build(recipe.facts)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}
    assert model(*example(recipe.facts))[0].shape == (2, 8, recipe.facts["vocabulary"])


#: Muon times which arithmetic is faster, and two runs may each find another.
EXACT = {"optimizer_options": {"arithmetic": "exact"}}


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(folder, tmp_path):
    fixed = {"verbose": False, "batch_size": 32, "repair": "off", "schedule": "constant", **EXACT}
    options = {**SMALL, "data": folder, "dropout": 0.1}
    whole = thalweg.recipe("summarisation", **options).fit(steps=16, run_dir=tmp_path / "whole", **fixed)
    thalweg.recipe("summarisation", **options).fit(steps=9, run_dir=tmp_path / "half", **fixed)
    half = thalweg.resume(tmp_path / "half", steps=16, verbose=False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, half.model.state_dict()[name]), name


# ── scores ──


def test_rouge_is_counted_as_by_hand_and_takes_the_best_reference():
    rouge = Rouge()
    # Three of four words on either side; two of three pairs; "a b d" in the same order.
    one, two, longest = rouge.scores(["alpha beta gamma delta"], "alpha beta xi delta")
    assert (one, two, longest) == (pytest.approx(75), pytest.approx(100 / 3), pytest.approx(75))
    assert rouge.scores(["nothing alike", "running dogs"], "run dog") == pytest.approx((100, 100, 100))  # stems


def test_overlap_is_rouge_l_of_plain_words():
    draw, rouge = random.Random(0), Rouge()
    for _ in range(30):
        a, b = (" ".join(draw.choice(["xa", "xb", "xc", "xd"]) for _ in range(draw.randint(1, 9))) for _ in range(2))
        assert 100 * overlap(a, b) == pytest.approx(rouge.scores([a], b)[2])
    assert longest_common([], ["a"]) == 0 and overlap("", "a") == 0


# ── bad data ──

GOOD = {"source": ["One.", "Two."], "target": "One."}
CASES = {
    "no JSON": ("{'source': 1}", "the line is not JSON"),
    "no object": ("[1, 2]", "the line holds no JSON object"),
    "no field": (json.dumps({"source": ["a"]}), "the line has no field 'target'"),
    "a number": (json.dumps({**GOOD, "source": 3}), "the field 'source' is neither a text nor a list of texts"),
    "nothing": (json.dumps({**GOOD, "source": [" "]}), "the field 'source' is empty"),
    "half a character": ('{"source": "\\ud800", "target": "x"}', "the line holds half a character"),
    "nested": ('{"source": ' + "[" * 100_000, "the line's JSON is nested too deeply"),
    "too long": (json.dumps({**GOOD, "source": "word " * 100}), "the field 'source' is longer than 300 characters"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_lines_are_named_or_skipped(case, tmp_path):
    line, words = CASES[case]
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError, match=f"train.jsonl, line 2.*: {words}"):
        read_papers(path, ("source", "target"), 300, BadData("refuse"))
    bad = BadData("skip")
    assert len(read_papers(path, ("source", "target"), 300, bad)) == 2
    assert bad.counts.total() == 1 and next(iter(bad.counts)).startswith(words)


def test_text_that_is_not_utf_8_an_empty_file_and_none_are_said(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"source": "\xff"}\n')
    with pytest.raises(ValueError, match="train.jsonl, line 2, byte 13: the text is not UTF-8"):
        make(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        make(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train.jsonl\[.gz\]"):
        make(tmp_path)


def test_one_file_will_do_and_archives_are_read(folder, tmp_path):
    lines = (folder / "train.jsonl").read_bytes()
    (tmp_path / "papers.jsonl.gz").write_bytes(gzip.compress(lines))
    parts = read_parts(tmp_path / "papers.jsonl.gz", ("source", "target"), 1000, BadData(), 0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (360, 40, 0)
    assert IGNORED == -100


ASKED = {
    '{"target": "x"}': "the line has no field 'source'",
    '{"source": 3}': "the field 'source' is neither a text nor a list of texts",
    '{"source": [" "]}': "the field 'source' is empty",
    '{"source": "\\udfff"}': "the line holds half a character",
    "{x": "the line is not JSON",
    '{"source":' + "[" * 100_000: "the line's JSON is nested too deeply",
    "word " * 200: "the line is longer than 300 characters",
}


def test_a_line_that_cannot_be_summarised_is_said(folder, tmp_path):
    recipe = thalweg.recipe("summarisation", data=folder, **SMALL, longest=300)
    asked = tmp_path / "asked.txt"
    for line, words in ASKED.items():
        asked.write_text(f"Some words.\n{line}\n")
        with pytest.raises(ValueError, match=f"{asked}, line 2(, which begins like JSON)?: {words}"):
            next(predict(recipe.arguments["model"].eval(), recipe.facts, [asked]))


def test_a_character_of_two_halves_is_one(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"source": "a \\ud83d\\ude00 b", "target": "x"}\n')
    assert read_papers(tmp_path / "train.jsonl", ("source", "target"), 9, BadData())[0].sentences == ["a 😀 b"]


def test_lines_are_asked_as_they_were_learned(folder, tmp_path):
    recipe = thalweg.recipe("summarisation", data=folder, **SMALL)
    asked, text = tmp_path / "asked.txt", "It  rained all\tday.  The road was long. "
    asked.write_text(f"{text}\n\n" + json.dumps({"source": text}) + "\n")
    plain, empty, field = predict(recipe.arguments["model"].eval(), recipe.facts, [asked])
    assert plain["pointed"] == field["pointed"] in ("It rained all day.", "The road was long.")
    assert plain["written"] == field["written"]
    assert (empty["answer"], empty["sentence"], empty["line"]) == ("", 0, 2)


def test_a_missing_scorer_is_said_before_the_training(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match="needs the package rouge-score"):
        make(folder, **SMALL)
