"""Networks of text out of Thalweg: an exported one takes sequences of any length."""

import pytest
import torch

import thalweg
from thalweg.cli import main
from thalweg.tasks.text.language_networks import LSTMLanguageModel, TransformerLanguageModel
from thalweg.tasks.text.summary_networks import Summariser
from thalweg.tasks.text.tokens import BEGIN, PADDING
from thalweg.tasks.text.translation_networks import LSTMTranslator, TransformerTranslator

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

KINDS = 20
ONE, TWO = (torch.zeros(2, 8, dtype=torch.int64),), (torch.full((2, 8), BEGIN), torch.full((2, 8), BEGIN))
NETWORKS = {
    "language model": (lambda: TransformerLanguageModel(KINDS, 32, 1, 2, 0.0, 8), ONE),
    "language model, lstm": (lambda: LSTMLanguageModel(KINDS, 32, 1, 0.0, 8), ONE),
    "translator": (lambda: TransformerTranslator(KINDS, 32, 1, 2, 0.0), TWO),
    "translator, lstm": (lambda: LSTMTranslator(KINDS, 32, 1, 0.0), TWO),
    "summariser": (lambda: Summariser(KINDS, 32, 1, 2, 0.0), TWO),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter meets its own deprecations
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_takes_any_length(name, tmp_path, capfd):
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    thalweg.export(model, tmp_path / "m.onnx", example=example, any_length=True)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    capfd.readouterr()
    for rows, lengths in ((3, (13, 5)), (1, (1, 9)), (2, (8, 8))):
        given = [torch.randint(3, KINDS, (rows, length)) for length, _ in zip(lengths, example, strict=False)]
        given[0][:, 0] = BEGIN
        if len(given) == 2:
            given[0][0, 6:] = PADDING
        with torch.no_grad():
            expected = model(*given)
        found = session.run(None, {part.name: x.numpy() for part, x in zip(session.get_inputs(), given, strict=True)})
        for a, b in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(b), a, rtol=1e-4, atol=1e-4)
    assert "Expected shape" not in capfd.readouterr().err  # what the runtime says where a file claims another shape


@pytest.mark.parametrize("name", ["language-model", "translation", "summarisation"])
def test_the_tasks_ask_for_it(name):
    assert thalweg.Recipe.find(name).task.any_length


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_exports_a_run_so(tmp_path):
    (tmp_path / "text.txt").write_text("some words of a text\n" * 50)
    recipe = thalweg.recipe("language-model", data=tmp_path / "text.txt", width=32, layers=1, length=16)
    recipe.fit(steps=1, run_dir=tmp_path / "run", verbose=False)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "m.onnx")]) == 0
    (tokens,) = runtime.InferenceSession(tmp_path / "m.onnx").get_inputs()
    assert not any(isinstance(size, int) for size in tokens.shape)
